"""Whether experts specialise (Chen et al. 2022): accuracies and dispatch entropies of reproduce_mixture.py, 3 runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import cache, partial
from operator import attrgetter

import harness
import reproduce_mixture
from reproduce_mixture import SETTINGS, Result

CAPABILITY, NUM_RUNS = "Sparse experts, science", 3


@cache
def mixtures(kind: str) -> dict[int, list[Result]]:
    """Runs of a mixture by setting."""
    return {setting: reproduce_mixture.measure(setting, kind, NUM_RUNS) for setting in SETTINGS}


def over_settings(
    kind: str, choose: Callable[[list[float]], float], value: Callable[[Result], float], digits: int
) -> harness.Figure:
    """The mean over runs of the setting that is chosen; the detail has all settings."""
    means = [statistics.mean(map(value, mixtures(kind)[setting])) for setting in SETTINGS]
    return harness.Figure(choose(means), "settings 1 to 4: " + ", ".join(f"{mean:.{digits}f}" for mean in means))


accuracy = partial(over_settings, value=attrgetter("accuracy"), digits=1)
entropy = partial(over_settings, value=attrgetter("entropy"), digits=3)


@harness.goal(CAPABILITY, "mixture of cubic experts, worst of 4 settings", at_least=97.5, unit="%", slow=True)
def cubic_accuracy() -> harness.Figure:
    return accuracy("cubic", min)


@harness.goal(CAPABILITY, "dispatch entropy of cubic experts, most of 4", at_most=0.45, unit="nats", slow=True)
def cubic_entropy() -> harness.Figure:
    return entropy("cubic", max)


@harness.goal(CAPABILITY, "mixture of linear experts, worst of 4 settings", at_least=88, unit="%", slow=True)
def linear_accuracy_low() -> harness.Figure:
    return accuracy("linear", min)


@harness.goal(CAPABILITY, "mixture of linear experts, best of 4 settings", at_most=97, unit="%", slow=True)
def linear_accuracy_high() -> harness.Figure:
    return accuracy("linear", max)


@harness.goal(CAPABILITY, "dispatch entropy of linear experts, least of 4", at_least=1, unit="nats", slow=True)
def linear_entropy() -> harness.Figure:
    return entropy("linear", min)


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
