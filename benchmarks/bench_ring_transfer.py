"""RingTransfer on rings of 60 nodes: DRew with delay 1 carries the class, a GCN of equal parameters does not."""

from __future__ import annotations

import statistics

from reproduce_ring_transfer import SEEDS, train

import harness

CAPABILITY = "RingTransfer"
SIZES = f"rings of 60 nodes, equal parameters, {len(SEEDS)} seeds"


def accuracy(name: str, worst: bool) -> harness.Figure:
    runs = [train(name, 60, seed) for seed in SEEDS]
    values = [100 * run["accuracy"] for run in runs]
    detail = f"by seed {', '.join(f'{value:.0f}' for value in values)}; {runs[0]['parameters']} parameters"
    return harness.Figure(min(values) if worst else statistics.mean(values), detail)


@harness.goal(CAPABILITY, f"DRew nu=1, lowest test accuracy, {SIZES}", at_least=100.0, unit="%", slow=True)
def drew_delayed() -> harness.Figure:
    return accuracy("drew-1", worst=True)


@harness.goal(CAPABILITY, f"GCN, mean test accuracy (chance is 20 %), {SIZES}", at_most=20.0, unit="%", slow=True)
def gcn() -> harness.Figure:
    return accuracy("gcn", worst=False)


@harness.goal(CAPABILITY, f"SPN of 10 hops, mean test accuracy, {SIZES}", unit="%", slow=True)
def spn() -> harness.Figure:
    return accuracy("spn", worst=False)


@harness.goal(CAPABILITY, f"DRew nu=infinity, mean test accuracy, {SIZES}", unit="%", slow=True)
def drew_without_delay() -> harness.Figure:
    return accuracy("drew-inf", worst=False)


if __name__ == "__main__":
    harness.main()
