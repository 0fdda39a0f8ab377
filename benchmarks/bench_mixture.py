"""Whether experts specialise (Chen et al. 2022): accuracies and dispatch entropies of reproduce_mixture.py, 3 runs."""

from __future__ import annotations

import statistics
from functools import cache

import harness
import reproduce_mixture
from reproduce_mixture import SETTINGS, Result

CAPABILITY, NUM_RUNS = "Sparse experts, science", 3


@cache
def mixtures(kind: str) -> dict[int, list[Result]]:
    """Runs of a mixture by setting."""
    return {setting: reproduce_mixture.measure(setting, kind, NUM_RUNS) for setting in SETTINGS}


def accuracies(kind: str) -> dict[int, float]:
    return {setting: statistics.mean(run.accuracy for run in runs) for setting, runs in mixtures(kind).items()}


def entropies(kind: str) -> dict[int, float]:
    return {
        setting: statistics.mean(run.entropy for run in runs if run.entropy is not None)
        for setting, runs in mixtures(kind).items()
    }


def listed(by_setting: dict[int, float], digits: int) -> str:
    return "settings 1 to 4: " + ", ".join(f"{value:.{digits}f}" for value in by_setting.values())


@harness.goal(CAPABILITY, "mixture of cubic experts, worst of 4 settings", at_least=97.5, unit="%", slow=True)
def cubic_accuracy() -> harness.Figure:
    found = accuracies("cubic")
    return harness.Figure(min(found.values()), listed(found, 1))


@harness.goal(CAPABILITY, "dispatch entropy of cubic experts, most of 4", at_most=0.45, unit="nats", slow=True)
def cubic_entropy() -> harness.Figure:
    found = entropies("cubic")
    return harness.Figure(max(found.values()), listed(found, 3))


@harness.goal(CAPABILITY, "mixture of linear experts, worst of 4 settings", at_least=88, unit="%", slow=True)
def linear_accuracy_low() -> harness.Figure:
    found = accuracies("linear")
    return harness.Figure(min(found.values()), listed(found, 1))


@harness.goal(CAPABILITY, "mixture of linear experts, best of 4 settings", at_most=97, unit="%", slow=True)
def linear_accuracy_high() -> harness.Figure:
    found = accuracies("linear")
    return harness.Figure(max(found.values()), listed(found, 1))


@harness.goal(CAPABILITY, "dispatch entropy of linear experts, least of 4", at_least=1, unit="nats", slow=True)
def linear_entropy() -> harness.Figure:
    found = entropies("linear")
    return harness.Figure(min(found.values()), listed(found, 3))


@harness.goal(CAPABILITY, "one network, cubic or linear, best of 4 settings", at_most=87.5, unit="%", slow=True)
def single_accuracy() -> harness.Figure:
    found = {
        (kind, setting): reproduce_mixture.run_single(setting, kind, 0).accuracy
        for kind in reproduce_mixture.ACTIVATIONS
        for setting in SETTINGS
    }
    detail = ", ".join(f"{kind} {setting}: {value:.1f}" for (kind, setting), value in found.items())
    return harness.Figure(max(found.values()), detail)


if __name__ == "__main__":
    harness.main()
