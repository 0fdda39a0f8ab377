"""Hash layers on real text (Roller et al. 2021): mean perplexities of validation text, reproduce_hash_layers.py."""

from __future__ import annotations

import math
from functools import cache

import harness
import reproduce_hash_layers

CAPABILITY = "Sparse experts, science"


@cache
def losses() -> dict[str, float]:
    """Mean validation loss by hash."""
    seeds = reproduce_hash_layers.SEEDS
    return reproduce_hash_layers.mean_losses([run for seed in seeds for run in reproduce_hash_layers.measure(seed)])


def ratio(worse: tuple[str, ...], better: tuple[str, ...]) -> harness.Figure:
    """Perplexity of the best of the worse models over that of the worst of the better ones."""
    found = losses()
    shown = ", ".join(f"{name} {math.exp(found[name]):.1f}" for name in (*better, *worse))
    return harness.Figure(
        math.exp(min(found[n] for n in worse) - max(found[n] for n in better)), f"perplexity: {shown}"
    )


@harness.goal(CAPABILITY, "clustered over worst of balanced, random, dispersed: perplexity", at_least=1.0, slow=True)
def hash_clustered() -> harness.Figure:
    return ratio(("clustered",), ("balanced", "random", "dispersed"))


@harness.goal(CAPABILITY, "best of previous token and bigram over clustered: perplexity", at_least=1.0, slow=True)
def hash_context() -> harness.Figure:
    return ratio(("previous_token", "bigram"), ("clustered",))


@harness.goal(CAPABILITY, "position over dense: perplexity", at_least=0.9, at_most=1.1, slow=True)
def hash_position() -> harness.Figure:
    return ratio(("position",), ("dense",))


@harness.goal(CAPABILITY, "balanced over the oracle: perplexity", at_least=2.0, slow=True)
def hash_oracle() -> harness.Figure:
    return ratio(("balanced",), ("oracle_future",))


@harness.goal(CAPABILITY, "better of Switch and the dense twin over balanced: perplexity", at_least=1.0, slow=True)
def hash_switch_and_dense() -> harness.Figure:
    return ratio(("switch", "dense"), ("balanced",))


@harness.goal(CAPABILITY, "random over MultiHash: perplexity", at_least=1.0, slow=True)
def hash_multi_hash() -> harness.Figure:
    return ratio(("random",), ("multi_hash",))


if __name__ == "__main__":
    harness.main()
