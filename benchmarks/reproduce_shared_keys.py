"""What sharing keys and values costs in quality at equal parameters (Shazeer 2019, Table 3), on real text.

    python benchmarks/reproduce_shared_keys.py              # all runs, then docs/reproductions/shared_keys.md and .png
    python benchmarks/reproduce_shared_keys.py --seeds 1    # one seed, kept; several such commands may run at once
    python benchmarks/reproduce_shared_keys.py --page       # the page alone, from the runs that are kept

Finished runs are kept in benchmarks/results/shared_keys.jsonl, where an interrupted command goes on.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from gossamer.sparse_nn import SparseTransformerConfig, matched_d_ff

from environment import environment_line
from language_model import BATCH, CONTEXT, VOCAB_SIZE, load_data, run_seeds, train
from reproduction import Runs, mean_and_spread, plot, write_page

SEEDS, NUM_STEPS, WIDTH, D_FF, NUM_LAYERS = (0, 1, 2), 400, 64, 256, 2
RUNS = Runs("shared_keys")
MULTI_HEAD = (8, 8, 8)
# Query heads, key/value heads, dimension of a head.
ATTENTION = {
    "MHA": MULTI_HEAD,
    "GQA-4": (8, 4, 8),
    "GQA-2": (8, 2, 8),
    "MQA": (8, 1, 8),
    "1 head of 8": (1, 1, 8),
    "2 heads of 4": (2, 2, 4),
    "4 heads of 2": (4, 4, 2),
}
PAPER = {"MHA": 29.9, "MQA": 30.2, "1 head of 8": 31.2, "2 heads of 4": 31.1, "4 heads of 2": 31.0}


def config(name: str) -> SparseTransformerConfig:
    """The model with this attention, its feed-forward layers as wide as the parameters allow."""
    heads, kv_heads, head_dim = ATTENTION[name]
    d_ff = matched_d_ff(D_FF, MULTI_HEAD, ATTENTION[name], num_attention=NUM_LAYERS, num_feed_forward=NUM_LAYERS)
    return SparseTransformerConfig(
        vocab_size=VOCAB_SIZE, d_model=WIDTH, num_layers=NUM_LAYERS, num_heads=heads, num_kv_heads=kv_heads,
        head_dim=head_dim, d_ff=d_ff, max_len=CONTEXT, activation="relu", positions="learned",
    )  # fmt: skip


def measure(seed: int, done: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The runs of one seed."""
    for name in ATTENTION:
        if name not in done:
            model, loss, seconds = train(config(name), seed=seed, num_steps=NUM_STEPS)
            yield {"model": name, "seed": seed, "loss": loss, "parameters": model.num_parameters(),
                   "seconds": round(seconds, 1)}  # fmt: skip


def gaps(runs: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Loss above that of multi-head attention with the same seed, by attention."""
    loss = {(run["model"], run["seed"]): run["loss"] for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    return {name: [loss[name, seed] - loss["MHA", seed] for seed in seeds] for name in ATTENTION}


def report(runs: list[dict[str, Any]]) -> None:
    """Write the page and the plot."""
    rows = []
    for name, (heads, kv_heads, head_dim) in ATTENTION.items():
        found = [run for run in runs if run["model"] == name]
        gap = mean_and_spread(gaps(runs)[name], 4) if name != "MHA" else ""
        rows.append(
            f"| {name} | {heads} | {kv_heads} | {head_dim} | {config(name).d_ff} | {found[0]['parameters']} | "
            f"{2 * kv_heads * head_dim} | {mean_and_spread([run['loss'] for run in found], 4)} | {gap} | "
            f"{PAPER.get(name, '')} |"
        )
    text = TEXT.format(
        rows="\n".join(rows), seeds=len(SEEDS), layers=NUM_LAYERS, width=WIDTH, steps=NUM_STEPS, batch=BATCH,
        context=CONTEXT, tokens=NUM_STEPS * BATCH * CONTEXT // 1000, stream=len(load_data().train) // 1000,
        vocab=VOCAB_SIZE, minutes=sum(run["seconds"] for run in runs) / 60, environment=environment_line(),
    )  # fmt: skip
    draw(runs)
    print(f"written: {write_page('shared_keys', text)}")


TEXT = """# Shared keys and values at equal parameters

The quality table of Fast Transformer Decoding ([arXiv 1911.02150](https://arxiv.org/abs/1911.02150), Table 3), small: a
decoder of {layers} layers of width {width} with learned positions. What an attention saves in key and value
projections its feed-forward layers get back, by the paper's rule (`matched_d_ff`): all have the same
number of parameters.

Validation loss in nats per token: mean and standard deviation over {seeds} seeds; the gap to multi-head attention is
taken seed by seed. The cache is in numbers per token and layer. The last column is the perplexity of the paper, whose
alternatives with fewer or smaller heads have the same proportions (8 heads of 128 there).

| attention | heads | key/value heads | head size | d_ff | parameters | cache | loss | gap to MHA | paper |
|---|---|---|---|---|---|---|---|---|---|
{rows}

![loss above multi-head attention, seed by seed](shared_keys.png)

Text and training are those of [hash layers](hash_layers.md): {tokens} k of {stream} k tokens, {steps} steps of
{batch} windows of {context}, {vocab} byte-pair tokens. The paper trained 192 M parameters on 9 billion tokens; its gap
between multi-head and multi-query attention is 0.010 nats, far below the spread between seeds here, where the wider
feed-forward layers more than make up for it. What the paper concludes is seen here too: one shared key/value head costs
less than fewer or smaller heads.

`python benchmarks/reproduce_shared_keys.py` writes this page ({minutes:.0f} minutes of one thread). Last run:
{environment}.
"""


def draw(runs: list[dict[str, Any]]) -> None:
    """The gap of every seed, and the mean."""
    found = gaps(runs)
    with plot("shared_keys", figsize=(7, 3.6)) as (_, axis):
        for place, name in enumerate(found):
            axis.plot([place] * len(found[name]), found[name], "o", color="C0", alpha=0.5)
            axis.plot(place, statistics.mean(found[name]), "_", color="black", markersize=18)
        axis.axhline(0, color="black", linestyle=":", linewidth=1)
        axis.set_xticks(range(len(found)), found, fontsize=8)
        axis.set(ylabel="loss above MHA, nats", title="equal parameters")
        axis.grid(alpha=0.3, axis="y")


if __name__ == "__main__":
    run_seeds(__doc__, RUNS, SEEDS, list(ATTENTION), measure, report)
