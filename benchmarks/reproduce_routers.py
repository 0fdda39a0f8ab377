"""Routers on words of real text: writes docs/reproductions/routers.md with its plot.

    python benchmarks/reproduce_routers.py             # all runs, about 10 minutes on one quiet core
    python benchmarks/reproduce_routers.py --page      # only the page, from the runs that are there

Three tables: the weights of the importance and load losses in the shape of Table 6 of Shazeer et al. 2017, balance
without a loss after Wang et al. 2024, and all routers at equal compute. Finished runs are kept as JSON lines in
benchmarks/results/routers.jsonl; an interrupted command goes on there.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer import sparse_nn
from gossamer.sparse_nn import MoE, Router, TopKRouter

from environment import environment_line
from reproduction import Runs, mean_and_spread, plot, write_page

RUNS = Runs("routers")
VOCAB, D_MODEL, CONTEXT, RATE = 2048, 64, 6, 3e-3
NUM_STEPS, BATCH, SEEDS = 300, 512, (0, 1)
BLOCK, TEST_EVERY = 512, 10  # every tenth block of the text is for the test


@lru_cache
def text() -> tuple[Tensor, Tensor]:
    """Windows [num, CONTEXT + 1] of word ids to train and to test on: the topics of Python's own help."""
    words = re.findall(r"\w+|[^\w\s]+", "\n".join(topics[name] for name in sorted(topics)))
    common = [word for word, _ in Counter(words).most_common(VOCAB - 1)]
    number = {word: i for i, word in enumerate(common)}
    ids = torch.tensor([number.get(word, VOCAB - 1) for word in words])
    windows = ids.unfold(0, CONTEXT + 1, 1)
    block = torch.arange(len(windows)) // BLOCK
    whole = torch.arange(len(windows)) % BLOCK < BLOCK - CONTEXT  # no window reaches into the next block
    test = block % TEST_EVERY == 0
    return windows[whole & ~test], windows[whole & test]


class LanguageModel(nn.Module):
    """The next word from the last CONTEXT words: embeddings, one dense layer, one sparse layer, tied output."""

    def __init__(self, d_ff: int, num_experts: int, router: Router | None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, D_MODEL)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.mix = nn.Linear(CONTEXT * D_MODEL, D_MODEL)
        self.norm, self.last_norm = nn.LayerNorm(D_MODEL), nn.LayerNorm(D_MODEL)
        self.experts = MoE(D_MODEL, d_ff, num_experts, router or TopKRouter(D_MODEL, 1), activation="relu")

    def forward(self, context: Tensor) -> Tensor:
        x = F.relu(self.mix(self.embedding(context).flatten(1)))
        x = x + self.experts(self.norm(x), context[:, -1])
        return self.last_norm(x) @ self.embedding.weight.T


def zeroed(router: TopKRouter) -> TopKRouter:
    """Equal experts at the start, as Shazeer et al. have it."""
    nn.init.zeros_(router.weight)
    return router


def noisy(importance: float, load: float, num_experts: int = 32, k: int = 4) -> Callable[[], Router]:
    return lambda: zeroed(
        TopKRouter(D_MODEL, num_experts, k, noisy=True, normalize=k > 1, balance_weight=importance, load_weight=load)
    )


def sigmoid(**options: Any) -> Callable[[], Router]:
    return lambda: TopKRouter(D_MODEL, 32, 4, score="sigmoid", normalize=True, **options)


def hashed(table: Callable[[], Tensor]) -> Callable[[], Router]:
    return lambda: sparse_nn.HashRouter(table(), 16)


def counts() -> Tensor:
    return text()[0][:, CONTEXT - 1].bincount(minlength=VOCAB)


LOSSES = {f"({i}, {j})": noisy(i, j) for i, j in ((0, 0), (0.2, 0), (0, 0.2), (0.1, 0.1), (0.01, 0.01), (1.0, 1.0))}
BIASES = {
    "no balancing": sigmoid(),
    "loss, 0.001": sigmoid(balance_weight=0.001),
    "loss, 0.01": sigmoid(balance_weight=0.01),
    "loss, 0.1": sigmoid(balance_weight=0.1),
    "bias, 0.001": sigmoid(bias_rate=0.001),
    "bias, 0.01": sigmoid(bias_rate=0.01),
    "bias, 0.03": sigmoid(bias_rate=0.03),
}
ROUTERS: dict[str, Callable[[], Router | None]] = {
    "dense twin": lambda: None,  # its loads mean nothing
    "hash, random": hashed(lambda: sparse_nn.random_table(VOCAB, 16, seed=0)),
    "hash, balanced": hashed(lambda: sparse_nn.balanced_table(counts(), 16, seed=0)),
    "top-1, no loss": lambda: TopKRouter(D_MODEL, 16),
    "noisy top-1": noisy(0.1, 0.1, 16, 1),
    "Switch": lambda: TopKRouter(D_MODEL, 16, capacity_factor=1.25, balance_weight=0.01),
    "top-1, bias": lambda: TopKRouter(D_MODEL, 16, score="sigmoid", bias_rate=0.001),
    "Expert Choice": lambda: sparse_nn.ExpertChoiceRouter(D_MODEL, 16, capacity_factor=1.0),
    "BASE": lambda: sparse_nn.BalancedAssignmentRouter(D_MODEL, 16),
    "Sinkhorn": lambda: sparse_nn.SinkhornRouter(D_MODEL, 16),
    "THOR": lambda: sparse_nn.RandomRouter(16, seed=0),
}
# width and number of experts, and the routers, of every table
TABLES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "losses": (64, 32, LOSSES),
    "bias": (64, 32, BIASES),
    "routers": (128, 16, ROUTERS),
}


def train(table: str, name: str, seed: int, num_steps: int = NUM_STEPS) -> dict[str, Any]:
    """Adam 3e-3 with a cosine schedule, which the rate of the bias follows; batches depend on the seed alone."""
    d_ff, num_experts, routers = TABLES[table]
    torch.manual_seed(seed)
    router = routers[name]()
    model = LanguageModel(d_ff, num_experts if router is not None else 1, router)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    windows, generator = text()[0], torch.Generator().manual_seed(seed)
    rate = getattr(router, "bias_rate", None) or 0.0
    start = time.perf_counter()
    for _ in range(num_steps):
        batch = windows[torch.randint(len(windows), (BATCH,), generator=generator)]
        loss = F.cross_entropy(model(batch[:, :-1]), batch[:, -1]) + model.experts.routing.aux_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if isinstance(router, TopKRouter) and router.bias_rate is not None:
            router.update_bias()
            router.bias_rate = rate * schedule.get_last_lr()[0] / RATE
    run = {"table": table, "name": name, "seed": seed, "steps": num_steps, "seconds": time.perf_counter() - start}
    return run | evaluate(model, num_experts)


@torch.no_grad()
def evaluate(model: LanguageModel, num_experts: int) -> dict[str, float]:
    """Perplexity on the test blocks; and how evenly the experts are used, before any route is dropped, by as many words
    of the text that was trained on: the test blocks are few, and their topics are not those of the others."""
    model.eval()
    loss, importance, load = 0.0, torch.zeros(num_experts), torch.zeros(num_experts)
    windows, seen = text()[1], text()[0]
    for batch in windows.split(BATCH):
        loss += F.cross_entropy(model(batch[:, :-1]), batch[:, -1], reduction="sum").item()
    for batch in seen[:: len(seen) // len(windows)].split(BATCH):
        model(batch[:, :-1])
        routing = model.experts.routing
        chosen = routing.expert_ids.flatten().long()
        kept = chosen >= 0
        importance.scatter_add_(0, chosen[kept], routing.gates.flatten()[kept])
        load += chosen[kept].bincount(minlength=num_experts)
    return {
        "perplexity": math.exp(loss / len(windows)),
        "cv_importance": (importance.std(correction=0) / importance.mean()).item(),
        "cv_load": (load.std(correction=0) / load.mean()).item(),
        "most": (load.max() / load.mean()).item(),
    }


def missing_runs(runs: list[dict[str, Any]]) -> Iterator[tuple[str, str, int]]:
    done = {(run["table"], run["name"], run["seed"]) for run in runs if run["steps"] == NUM_STEPS}
    for seed in SEEDS:
        for table, (_, _, routers) in TABLES.items():
            yield from ((table, name, seed) for name in routers if (table, name, seed) not in done)


def measure() -> list[dict[str, Any]]:
    """Every run, those that are there already included."""
    torch.set_num_threads(1)
    for table, name, seed in list(missing_runs(RUNS.read())):
        run = train(table, name, seed)
        RUNS.add(run)
        print(
            f"{table}: {name}, seed {seed}: perplexity {run['perplexity']:.2f}, most over mean load {run['most']:.2f}, "
            f"{run['seconds']:.0f} s", flush=True,
        )  # fmt: skip
    return RUNS.read()


def values(runs: list[dict[str, Any]], table: str, name: str, key: str) -> list[float]:
    """One figure of a setting by seed."""
    chosen = [run for run in runs if (run["table"], run["name"], run["steps"]) == (table, name, NUM_STEPS)]
    return [run[key] for run in sorted(chosen, key=lambda run: run["seed"])]


def violation(runs: list[dict[str, Any]], name: str) -> list[float]:
    """MaxVio of one setting of the table of balance by seed."""
    return [most - 1 for most in values(runs, "bias", name, "most")]


def settings_run(runs: list[dict[str, Any]], table: str) -> list[str]:
    """Names of the settings that have finished runs."""
    return [name for name in TABLES[table][2] if values(runs, table, name, "seed")]


def rows(runs: list[dict[str, Any]], table: str, columns: dict[str, int]) -> str:
    """Lines of a table: the name of a setting, then its figures with so many digits."""
    lines = []
    for name in settings_run(runs, table):
        cells = [
            mean_and_spread(violation(runs, name) if key == "violation" else values(runs, table, name, key), digits)
            for key, digits in columns.items()
        ]
        num_seeds = len(values(runs, table, name, "perplexity"))
        lines.append(f"| {name} | {num_seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(runs: list[dict[str, Any]]) -> None:
    """Perplexity over the load of the fullest expert, a point per run and a colour per setting."""
    with plot("routers", figsize=(13, 4.2), ncols=3) as (_, axes):
        titles = ("importance and load losses", "balance without a loss", "all routers, one expert per word")
        for axis, table, title in zip(axes, TABLES, titles):
            for i, name in enumerate(settings_run(runs, table)):
                points = values(runs, table, name, "most"), values(runs, table, name, "perplexity")
                axis.plot(*points, "os^Dv"[i % 5], color=f"C{i}" if i < 10 else "black", label=name, markersize=5)
            axis.set(title=title, xlabel="load of the fullest expert over the mean", ylabel="test perplexity")
            axis.set_xscale("log")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)


def report(runs: list[dict[str, Any]]) -> None:
    """Write the page and its plot."""
    draw(runs)
    balance = {"perplexity": 1, "cv_importance": 2, "cv_load": 2, "most": 2}
    page = TEXT.format(
        losses=rows(runs, "losses", balance),
        bias=rows(runs, "bias", {"perplexity": 1, "violation": 3, "cv_load": 3}),
        routers=rows(runs, "routers", {"perplexity": 1, "cv_load": 2, "most": 2}),
        steps=NUM_STEPS,
        batch=BATCH,
        train=len(text()[0]),
        test=len(text()[1]),
        environment=environment_line(),
    )
    print(f"wrote {write_page('routers', page)}")


TEXT = """# Routers and their balance

A small language model on real text: the help topics that ship with Python, {train} words to train and {test} in other
blocks of the text to test (2048 different words; the rarer ones are one). The next word is predicted from the last
six: embeddings, one dense layer, one sparse layer, output tied to the embeddings; width 64. {steps} steps of {batch}
words, Adam 0.003 with a cosine schedule; mean and standard deviation over the seeds, whose number each
row tells.

![Perplexity over balance](routers.png)

## The losses of Shazeer et al.

Noisy top-k gating, 32 experts of width 64, 4 per word, in the shape of
[Table 6](https://arxiv.org/abs/1701.06538). CV: standard deviation over mean, over the experts.

| (importance, load) | seeds | test perplexity | CV(importance) | CV(load) | max / mean load |
|---|---|---|---|---|---|
{losses}

Published (256 experts, 10^9 words): (0, 0) 39.8, 3.04, 3.01, 17.80; (0.2, 0) 35.6, 0.06, 0.17, 1.47; (0, 0.2) 35.7,
0.22, 0.04, 1.15; (0.1, 0.1) 35.6, 0.06, 0.05, 1.14; (0.01, 0.01) 35.7, 0.48, 0.11, 1.37; (1, 1) 35.7, 0.03, 0.02, 1.07.

## Balance without a loss

The same layer with sigmoid scores: a bias that is used for choosing alone moves by the given rate towards less loaded
experts after every step ([Wang et al. 2024](https://arxiv.org/abs/2408.15664)), against the load balance loss with the
given weight. MaxVio: load of the fullest expert over the mean, less 1. The rate follows the schedule of the learning
rate down to 0.

| balancing | seeds | test perplexity | MaxVio | CV(load) |
|---|---|---|---|---|
{bias}

Published (1B parameters, 10^11 tokens, rate 0.001): perplexity 9.50 and MaxVio 0.04 without a loss, 9.56 and 0.72
with it. A run of {steps} steps needs a larger rate than the published one, which moves a bias by {steps} times 0.001
at most.

## All routers at equal compute

One expert of width 128 per word, of 16; the dense twin has that one alone, and its load says nothing.

| router | seeds | test perplexity | CV(load) | max / mean load |
|---|---|---|---|---|
{routers}

Expert Choice looks at the whole batch, later words included: its perplexity is no fair comparison, and its words get 0
to 16 experts, one on average. BASE and Sinkhorn balance in training alone; their loads here are those of free choice.
THOR draws one expert for every batch in training and one for every word here, without its consistency loss. Switch
drops what is beyond 1.25 times the mean load, here too.

What was reduced: model, text and steps, to minutes on one core. That balance follows the weights of the losses is
repeated here; that it also lowers the perplexity is not: with so few words to learn from, gating without a loss is
ahead, and the fixed hash tables are ahead of every learned router.

Balance is counted on words of the text that was trained on, without noise, before any route is dropped.

`python benchmarks/reproduce_routers.py` writes this page (about 10 minutes on one quiet core). Last run:

```
{environment}
```
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train language models with every router and write the page.")
    parser.add_argument("--page", action="store_true", help="only write the page, from the runs that are there")
    report(RUNS.read() if parser.parse_args().page else measure())


if __name__ == "__main__":
    main()
