"""Learning without a backward pass through layers: single forward against back-propagation, and what it keeps."""

from __future__ import annotations

import statistics
from functools import cache
from typing import Any

import harness
import reproduce_forward_gnn
from reproduce_forward_gnn import DEPTH, SEEDS

CAPABILITY = "Local learning"


@cache
def runs(method: str, name: str, depth: int = DEPTH) -> list[dict[str, Any]]:
    return [reproduce_forward_gnn.run(method, name, depth, seed) for seed in SEEDS]


def behind_backpropagation(name: str, method: str = "single forward") -> harness.Figure:
    """Points by which back-propagation is better, from the means over the seeds."""
    mean = {m: statistics.mean(run["accuracy"] for run in runs(m, name)) for m in ("back-propagation", method)}
    detail = ", ".join(f"{m} {value:.1f} %" for m, value in mean.items())
    return harness.Figure(mean["back-propagation"] - mean[method], detail)


SPLITS = f"{len(SEEDS)} splits, {DEPTH} layers"


@harness.goal(
    CAPABILITY, f"back-propagation over single forward, Cora, {SPLITS}", at_most=2.0, unit="points", slow=True
)
def single_forward_cora() -> harness.Figure:
    return behind_backpropagation("cora")


@harness.goal(
    CAPABILITY, f"back-propagation over single forward, squirrel, {SPLITS}", at_most=2.0, unit="points", slow=True
)
def single_forward_squirrel() -> harness.Figure:
    return behind_backpropagation("squirrel")


@harness.goal(
    CAPABILITY,
    f"back-propagation over single forward with one-way links, squirrel, {SPLITS}",
    at_most=2.0,
    unit="points",
    slow=True,
)
def single_forward_one_way_squirrel() -> harness.Figure:
    return behind_backpropagation("squirrel", "single forward, links to classes alone")


@harness.goal(CAPABILITY, "bytes kept for the backward pass, single forward, 8 layers over 2, Cora", at_most=1.0)
def kept_bytes_by_depth() -> harness.Figure:
    kept = {
        (method, depth): reproduce_forward_gnn.run(method, "cora", depth, 0, max_epochs=1)["saved_bytes"] / 2**20
        for method in ("single forward", "back-propagation")
        for depth in (2, 8)
    }
    detail = ", ".join(f"{method} {depth} layers {value:.1f} MiB" for (method, depth), value in kept.items())
    return harness.Figure(kept["single forward", 8] / kept["single forward", 2], detail)


if __name__ == "__main__":
    harness.main()
