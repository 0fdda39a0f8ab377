"""DRew against GCN on small molecules and proteins at equal parameters and equal processor time, as it is found.

There is no bar: docs/reproductions/drew_tu.md has the same comparison over more seeds, with its spread.
"""

from __future__ import annotations

import functools
import statistics

from reproduce_drew_tu import BUDGET, SECONDS, train

import harness

CAPABILITY = "DRew on TU sets"
SEEDS = (0, 1, 2)


@functools.cache
def accuracies(name: str, dataset: str) -> list[float]:
    """Test accuracy in percent by seed, trained now."""
    try:
        return [100 * train(name, dataset, seed)["accuracy"] for seed in SEEDS]
    except FileNotFoundError as error:
        raise harness.NotHere(str(error).splitlines()[0]) from error


def gain(name: str, dataset: str) -> harness.Figure:
    """Mean points of test accuracy over the GCN of the same seed."""
    ours, gcn = accuracies(name, dataset), accuracies("gcn", dataset)
    by_seed = [f"{a:.1f} against {b:.1f}" for a, b in zip(ours, gcn)]
    return harness.Figure(statistics.mean(ours) - statistics.mean(gcn), f"by seed {', '.join(by_seed)}")


def claim(title: str, dataset: str) -> str:
    return (
        f"{title} over GCN, points of test accuracy, {dataset}, {BUDGET} parameters and {SECONDS:.0f} s of training "
        f"each, {len(SEEDS)} seeds"
    )


@harness.goal(CAPABILITY, claim("DRew nu=1", "ENZYMES"), unit="points", slow=True)
def delayed_enzymes() -> harness.Figure:
    return gain("drew-1", "enzymes")


@harness.goal(CAPABILITY, claim("DRew without delay", "ENZYMES"), unit="points", slow=True)
def undelayed_enzymes() -> harness.Figure:
    return gain("drew-inf", "enzymes")


@harness.goal(CAPABILITY, claim("DRew nu=1", "PROTEINS"), unit="points", slow=True)
def delayed_proteins() -> harness.Figure:
    return gain("drew-1", "proteins")


@harness.goal(CAPABILITY, claim("DRew without delay", "PROTEINS"), unit="points", slow=True)
def undelayed_proteins() -> harness.Figure:
    return gain("drew-inf", "proteins")


if __name__ == "__main__":
    harness.main()
