"""Compressed stage boundaries: bytes on the wire in a run of two workers, and what they cost in accuracy."""

from __future__ import annotations

import statistics

import harness
from pipeline_job import Spec, launched
from reproduction import mean_and_spread
from stale_training import COMPARED, accuracy, complete

CAPABILITY = "Pipeline"
PUBLISHED = COMPARED[1]


def bytes_ratio(bits: int) -> harness.Figure:
    """Bytes of an epoch as they are over those of compressed rows, both counted."""
    sent = {}
    for choice in (None, bits):
        spec = Spec(scale=10, num_edges=8000, num_layers=4, epochs=1, config={"gossamer": {"boundary_bits": choice}})
        sent[choice] = launched(spec, 2)["counters"]["layer_level"]
    return harness.Figure(sent[None] / sent[bits], f"{sent[None]} bytes, {sent[bits]} with {bits} bits; F 64, fp32")


@harness.goal(CAPABILITY, "bytes between stages over those with 8-bit rows, F 64", at_least=3.0)
def bytes_8_bits() -> harness.Figure:
    return bytes_ratio(8)


@harness.goal(CAPABILITY, "bytes between stages over those with 4-bit rows, F 64", at_least=3.0)
def bytes_4_bits() -> harness.Figure:
    return bytes_ratio(4)


def accuracy_lost(bits: int) -> harness.Figure:
    """Mean test accuracy on Cora without compression minus that with it, over the same seeds."""
    whole = complete("cora", PUBLISHED)
    compressed = complete("cora", f"boundaries of {bits} bits, 2 workers")
    kept, rounded = ([accuracy(run) for run in runs] for runs in (whole[: len(compressed)], compressed))
    detail = f"as it is {mean_and_spread(kept)}, {bits} bits {mean_and_spread(rounded)}, {len(rounded)} seeds"
    return harness.Figure(statistics.mean(kept) - statistics.mean(rounded), detail)


@harness.goal(CAPABILITY, "accuracy lost on Cora with 8-bit rows", at_most=0.3, unit="points", slow=True)
def accuracy_8_bits() -> harness.Figure:
    return accuracy_lost(8)


@harness.goal(CAPABILITY, "accuracy lost on Cora with 4-bit rows", at_most=0.3, unit="points", slow=True)
def accuracy_4_bits() -> harness.Figure:
    return accuracy_lost(4)


if __name__ == "__main__":
    harness.main()
