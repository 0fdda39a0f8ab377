"""Shared keys and values at equal parameters on real text (Shazeer 2019, Table 3), reproduce_shared_keys.py."""

from __future__ import annotations

import statistics
from functools import cache

import harness
import reproduce_shared_keys

CAPABILITY = "Attention, science"


@cache
def gaps() -> dict[str, list[float]]:
    """Validation loss above that of multi-head attention with the same seed, in nats."""
    seeds = reproduce_shared_keys.SEEDS
    return reproduce_shared_keys.gaps([run for seed in seeds for run in reproduce_shared_keys.measure(seed)])


def mean_gap(names: tuple[str, ...]) -> harness.Figure:
    """The largest mean gap of some attentions; the detail has every seed."""
    found = gaps()
    shown = "; ".join(f"{name} {', '.join(f'{gap:+.3f}' for gap in found[name])}" for name in names)
    return harness.Figure(max(statistics.mean(found[name]) for name in names), shown)


@harness.goal(CAPABILITY, "loss of MQA above MHA at equal parameters, 3 seeds", at_most=0.05, unit="nats", slow=True)
def multi_query() -> harness.Figure:
    return mean_gap(("MQA",))


@harness.goal(CAPABILITY, "loss of fewer or smaller heads above MHA, worst, 3 seeds", unit="nats", slow=True)
def fewer_or_smaller_heads() -> harness.Figure:
    return mean_gap(("1 head of 8", "2 heads of 4", "4 heads of 2"))


if __name__ == "__main__":
    harness.main()
