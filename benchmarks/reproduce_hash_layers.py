"""Which hash makes the best experts (Roller et al. 2021), on the English that ships with Python.

    python benchmarks/reproduce_hash_layers.py              # all runs, then docs/reproductions/hash_layers.md and .png
    python benchmarks/reproduce_hash_layers.py --seeds 1    # one seed, kept; several such commands may run at once
    python benchmarks/reproduce_hash_layers.py --page       # the page alone, from the runs that are kept

Finished runs are kept in benchmarks/results/hash_layers.jsonl, where an interrupted command goes on.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from gossamer.sparse_nn import (
    SparseTransformerConfig,
    balanced_table,
    clustered_table,
    dispersed_table,
    load_balance,
    random_table,
)

from environment import environment_line
from language_model import BATCH, CONTEXT, VOCAB_SIZE, load_data, run_seeds, train
from reproduction import Runs, mean_and_spread, plot, write_page

SEEDS, NUM_STEPS, NUM_EXPERTS, WIDTH = (0, 1, 2), 400, 16, 64
RUNS = Runs("hash_layers")
DENSE = SparseTransformerConfig(
    vocab_size=VOCAB_SIZE, d_model=WIDTH, num_layers=2, num_heads=4, num_kv_heads=4, d_ff=4 * WIDTH, max_len=CONTEXT,
    activation="relu", num_experts=NUM_EXPERTS,
)  # fmt: skip
HASHED = dataclasses.replace(DENSE, expert_layers=(1,))
MODELS = {
    "dense": ("dense", DENSE),
    "balanced": ("balanced", HASHED),
    "random": ("random", HASHED),
    "dispersed": ("dispersed", HASHED),
    "clustered": ("clustered", HASHED),
    "previous_token": ("previous token", dataclasses.replace(HASHED, hash="previous_token")),
    "bigram": ("bigram", dataclasses.replace(HASHED, hash="bigram")),
    "position": ("position", dataclasses.replace(HASHED, hash="position")),
    "oracle_future": ("future token (oracle, leaks)", dataclasses.replace(HASHED, hash="oracle_future")),
    "multi_hash": ("MultiHash, 4 segments", dataclasses.replace(HASHED, num_hashes=4)),
    "switch": ("Switch", dataclasses.replace(HASHED, router="top_k", capacity_factor=1.25, balance_weight=0.01)),
}
PAPER = {
    "dense": 24.96, "balanced": 23.23, "random": 23.27, "dispersed": 23.22, "clustered": 23.99,
    "previous_token": 24.22, "bigram": 24.28, "position": 25.14, "oracle_future": 1.97, "switch": 23.73,
}  # fmt: skip


def measure(seed: int, done: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The runs of one seed; the dense twin comes first, for the clustered tables are made of its embedding."""
    embedding = None
    for name, (_, config) in MODELS.items():
        if name in done and (name != "dense" or {"clustered", "dispersed"} <= set(done)):
            continue
        table = make_table(name, embedding, seed)
        model, loss, seconds = train(
            dataclasses.replace(config, seed=seed), seed=seed, num_steps=NUM_STEPS, table=table
        )
        if name == "dense":
            embedding = model.embedding.weight.detach()
        if name in done:
            continue
        load = None if table is None else load_balance(table, load_data().validation, NUM_EXPERTS).max_over_mean
        yield {"model": name, "seed": seed, "loss": loss, "parameters": model.num_parameters(),
               "active": model.num_parameters(active=True), "load": load, "seconds": round(seconds, 1)}  # fmt: skip


def make_table(name: str, embedding: Tensor | None, seed: int) -> Tensor | None:
    """The hash table of a model; contextual hashes use the balanced one, MultiHash draws its own."""
    counts = load_data().token_counts
    if name in ("dense", "multi_hash", "switch"):
        return None
    if name == "random":
        return random_table(VOCAB_SIZE, NUM_EXPERTS, seed=seed)
    if name == "clustered":
        return clustered_table(embedding, NUM_EXPERTS, seed=seed)
    if name == "dispersed":
        return dispersed_table(embedding, counts, NUM_EXPERTS, seed=seed)
    return balanced_table(counts, NUM_EXPERTS, seed=seed)


def mean_losses(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {name: statistics.mean(run["loss"] for run in runs if run["model"] == name) for name in MODELS}


def relations(losses: dict[str, float]) -> dict[str, float]:
    """The statements of the paper, each as a gap in nats that is positive where the statement holds."""
    good = max(losses[name] for name in ("balanced", "random", "dispersed"))
    context = min(losses[name] for name in ("previous_token", "bigram"))
    return {
        "worst of balanced, random and dispersed below clustered": losses["clustered"] - good,
        "clustered below the better of previous token and bigram": context - losses["clustered"],
        "position no better than dense": losses["position"] - losses["dense"],
        "oracle below all others, by 0.5 nats": min(v for k, v in losses.items() if k != "oracle_future")
        - losses["oracle_future"] - 0.5,
        "balanced below dense": losses["dense"] - losses["balanced"],
        "balanced below Switch": losses["switch"] - losses["balanced"],
        "MultiHash below random": losses["random"] - losses["multi_hash"],
    }  # fmt: skip


def report(runs: list[dict[str, Any]]) -> None:
    """Write the page and the plot."""
    rows = []
    for name, (title, _) in MODELS.items():
        found = [run for run in runs if run["model"] == name]
        loads = [run["load"] for run in found if run["load"] is not None]
        contextual = name in ("previous_token", "bigram", "position", "oracle_future")
        rows.append(
            f"| {title} | {mean_and_spread([math.exp(run['loss']) for run in found], 2)} | "
            f"{mean_and_spread([run['loss'] for run in found], 4)} | {found[0]['parameters'] / 1e6:.2f} | "
            f"{mean_and_spread(loads, 2) if loads and not contextual else ''} | {PAPER.get(name, '')} |"
        )
    by_seed = [relations(mean_losses([run for run in runs if run["seed"] == seed])) for seed in SEEDS]
    checks = [
        f"| {name} | {gap:+.3f} | {', '.join(f'{seed[name]:+.3f}' for seed in by_seed)} | "
        f"{'yes' if gap > 0 else 'no'} |"
        for name, gap in relations(mean_losses(runs)).items()
    ]
    text = TEXT.format(
        rows="\n".join(rows), checks="\n".join(checks), seeds=len(SEEDS), steps=NUM_STEPS, batch=BATCH, context=CONTEXT,
        tokens=NUM_STEPS * BATCH * CONTEXT // 1000, stream=len(load_data().train) // 1000, vocab=VOCAB_SIZE,
        experts=NUM_EXPERTS, width=WIDTH, inner=4 * WIDTH, active=runs[0]["active"] / 1e6,
        minutes=sum(run["seconds"] for run in runs) / 60, environment=environment_line(),
    )  # fmt: skip
    draw(runs)
    print(f"written: {write_page('hash_layers', text)}")


TEXT = """# Hash layers on real text

Which hash of the token id makes the best experts? The study of hash functions of Hash Layers
([arXiv 2106.04426](https://arxiv.org/abs/2106.04426)), small: a decoder of 2 layers of width {width} (feed-forward
{inner}, {active:.2f} M parameters per token), whose last layer has {experts} experts of the full width.

Validation perplexity and loss in nats per token: mean and standard deviation over {seeds} seeds. The last column is the
test perplexity of the paper (64 experts, 751 M parameters, other data: only the order can be compared).

| experts by | perplexity | loss | million parameters | load, max/mean | paper |
|---|---|---|---|---|---|
{rows}

![validation perplexity by hash, one point per seed](hash_layers.png)

The statements of the paper, as the gap in nats between the two sides, of the means and seed by seed (0, 1, 2):

| statement | gap | by seed | holds |
|---|---|---|---|
{checks}

Differences between balanced, random and dispersed, 0.06 perplexity in the paper, are not resolved here.

Text: the language reference of Python by topics and the docstrings of its standard library, as the running Python ships
them; a tenth of the documents is for validation; {vocab} byte-pair tokens. Every run sees the same {tokens} k tokens of
{stream} k ({steps} steps of {batch} windows of {context}; AdamW 3e-3, warm-up, cosine), so that all comparisons are at
equal computation and far from overfitting. Clustered and dispersed tables are made of the embedding of the dense run of
the same seed; contextual hashes look up the balanced table. Switch has capacity factor 1.25 in training, none in
evaluation, and balance weight 0.01.

What is reduced against the paper: everything but the method. 2 layers instead of 8, width {width} instead of 1024,
{experts} experts instead of 64, thousandths of the data. At this size an expert sees little text: a router that looks
away from the token has less to gain from its experts than it loses by splitting the training among them.

`python benchmarks/reproduce_hash_layers.py` writes this page ({minutes:.0f} minutes of one thread). Last run:
{environment}.
"""


def draw(runs: list[dict[str, Any]]) -> None:
    """Perplexity of every run but the oracle's, best hash on top."""
    losses = mean_losses(runs)
    names = sorted((name for name in MODELS if name != "oracle_future"), key=lambda name: -losses[name])
    with plot("hash_layers", figsize=(7, 4)) as (_, axis):
        for place, name in enumerate(names):
            values = [math.exp(run["loss"]) for run in runs if run["model"] == name]
            axis.plot(values, [place] * len(values), "o", color="C0", alpha=0.5)
            axis.plot(math.exp(losses[name]), place, "|", color="black", markersize=16)
        axis.axvline(math.exp(losses["dense"]), color="black", linestyle=":", linewidth=1)
        axis.set_yticks(range(len(names)), [MODELS[name][0] for name in names])
        axis.set(xlabel="validation perplexity (dotted: dense; the oracle lies far to the left)")
        axis.grid(alpha=0.3, axis="x")


if __name__ == "__main__":
    run_seeds(__doc__, RUNS, SEEDS, list(MODELS), measure, report)
