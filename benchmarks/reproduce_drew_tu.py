"""DRew against GCN on TU sets at equal parameters and equal time: writes docs/reproductions/drew_tu.md with its plot.

    python benchmarks/reproduce_drew_tu.py             # all runs, about 8 minutes on one core
    python benchmarks/reproduce_drew_tu.py --page      # only the page, from the runs that are there

The TU files are looked for as by examples/train_long_range.py. Finished runs are kept as JSON lines in
benchmarks/results/drew_tu.jsonl; an interrupted command goes on there.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from environment import environment_line
from reproduction import Runs, mean_and_spread, plot, write_page

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
from long_range_configs import CONFIGS, LongRangeConfig
from long_range_data import Task, load_task
from long_range_models import build_model

RUNS = Runs("drew_tu")
DATASETS, SEEDS = ("enzymes", "proteins"), (0, 1, 2, 3, 4)
MODELS = {"gcn": "GCN", "drew-1": "DRew, nu = 1", "drew-inf": "DRew, nu = infinity"}
LAYERS, BUDGET, SECONDS, LR = 6, 30_000, 12.0, 2e-3


def configuration(name: str, dataset: str) -> LongRangeConfig:
    config = replace(CONFIGS[f"gcn_{dataset}"], layers=LAYERS, budget=BUDGET, lr=LR)
    if name == "gcn":
        return config
    return replace(config, model="drew_gcn", delay=float(name.removeprefix("drew-")))


def train(name: str, dataset: str, seed: int, seconds: float = SECONDS) -> dict[str, Any]:
    """Adam with a cosine schedule over ``seconds`` of processor time in training steps; evaluation is not counted.

    The rate follows the time that is used, so that every model has a whole schedule. Reported is the test accuracy
    at the epoch of best validation accuracy (of several, lowest validation loss).
    """
    config = configuration(name, dataset)
    task = load_task(dataset, seed=seed)
    torch.manual_seed(seed)
    model = build_model(config, task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    used, epochs, best = 0.0, 0, ((-1.0, 0.0), 0.0)
    while used < seconds:
        used = _train_epoch(model, task, optimizer, config, (seed << 32) + epochs, used, seconds)
        epochs += 1
        (val, loss), (test, _) = (_evaluate(model, task, split) for split in ("val", "test"))
        best = max(best, ((val, -loss), test))
    return {
        "model": name,
        "dataset": dataset,
        "seed": seed,
        "limit": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": epochs,
        "val": best[0][0],
        "accuracy": best[1],
        "final": test,
    }


def _train_epoch(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    config: LongRangeConfig,
    seed: int,
    used: float,
    seconds: float,
) -> float:
    """The time that is used after one more epoch, or after the limit within it."""
    model.train()
    ids = task.graphs.splits["train"]
    order = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))]
    for part in order.tensor_split(math.ceil(len(ids) / config.batch_size)):
        start = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * min(used / seconds, 1)))
        optimizer.zero_grad()
        batch = task.graphs.batch(part)
        (task.objective.loss(model(batch), batch.y) / len(part)).backward()
        optimizer.step()
        used += time.process_time() - start
        if used >= seconds:
            break
    return used


@torch.no_grad()
def _evaluate(model: nn.Module, task: Task, split: str) -> tuple[float, float]:
    """Accuracy and loss."""
    model.eval()
    ids: Tensor = task.graphs.splits[split]
    outputs = torch.cat([model(task.graphs.batch(part)) for part in ids.split(128)])
    y = task.graphs.targets(ids)
    return task.objective.score(outputs, y), float(task.objective.loss(outputs, y)) / len(y)


def missing_runs(runs: list[dict[str, Any]]) -> Iterator[tuple[str, str, int]]:
    done = {(run["model"], run["dataset"], run["seed"]) for run in runs if run["limit"] == SECONDS}
    for seed in SEEDS:
        for dataset in DATASETS:
            yield from ((name, dataset, seed) for name in MODELS if (name, dataset, seed) not in done)


def measure() -> list[dict[str, Any]]:
    """Every run, those that are there already included."""
    torch.set_num_threads(1)
    for name, dataset, seed in list(missing_runs(RUNS.read())):
        run = train(name, dataset, seed)
        RUNS.add(run)
        print(f"{dataset}, {name}, seed {seed}: {run['accuracy']:.1%} after {run['epochs']} epochs", flush=True)
    return RUNS.read()


def chosen(runs: list[dict[str, Any]], name: str, dataset: str) -> list[dict[str, Any]]:
    found = [r for r in runs if (r["model"], r["dataset"], r["limit"]) == (name, dataset, SECONDS)]
    return sorted(found, key=lambda run: run["seed"])


def accuracies(runs: list[dict[str, Any]], name: str, dataset: str) -> list[float]:
    """Test accuracy in percent by seed."""
    return [100 * run["accuracy"] for run in chosen(runs, name, dataset)]


def paired_gain(runs: list[dict[str, Any]], name: str, dataset: str) -> list[float]:
    """Points of accuracy over the GCN of the same seed and split."""
    return [a - b for a, b in zip(accuracies(runs, name, dataset), accuracies(runs, "gcn", dataset))]


def _beyond_two_errors(runs: list[dict[str, Any]]) -> Iterator[str]:
    for dataset in DATASETS:
        for name in list(MODELS)[1:]:
            gains = paired_gain(runs, name, dataset)
            if abs(statistics.mean(gains)) > 2 * statistics.stdev(gains) / math.sqrt(len(gains)):
                yield f"{MODELS[name]} on {dataset.upper()}"


def _page(runs: list[dict[str, Any]]) -> str:
    rows = []
    for dataset in DATASETS:
        for name, title in MODELS.items():
            found, values = chosen(runs, name, dataset), accuracies(runs, name, dataset)
            gain = "" if name == "gcn" else mean_and_spread(paired_gain(runs, name, dataset))
            epochs = statistics.median(run["epochs"] for run in found)
            seeds = ", ".join(f"{value:.1f}" for value in values)
            rows.append(
                f"| {dataset.upper()} | {title} | {found[0]['parameters']} | {epochs:.0f} | {mean_and_spread(values)} "
                f"| {seeds} | {gain} |"
            )
    return TEXT.format(
        rows="\n".join(rows), beyond="; ".join(_beyond_two_errors(runs)) or "none",
        layers=LAYERS, seconds=SECONDS, lr=LR, num_seeds=len(SEEDS),
        environment=environment_line(),
    )  # fmt: skip


TEXT = """# DRew against GCN on TU sets

Does looking further pay where the parameters and the time are the same? {layers} layers in the same frame (residual,
batch norm, rows of length 1, a mean over the nodes, one linear head), widths by the budget rule of
[DRew](https://arxiv.org/abs/2305.08018), and {seconds:.0f} seconds of processor time of training for every run: the
cheaper model trains for more epochs. GCN is DRew with one hop.

Test accuracy in percent: mean and standard deviation over {num_seeds} seeds, then the run of every seed. A seed draws
the split (8 : 1 : 1, stratified), the weights and the order; the last column is the difference to the GCN of the same
seed.

| data | model | parameters | epochs | test accuracy | by seed | over GCN |
|---|---|---|---|---|---|---|
{rows}

![test accuracy by model and seed](drew_tu.png)

The test accuracy is that of the epoch of best validation accuracy. AdamW, rate {lr} for every model (not tuned), cosine
schedule over the time, batches of 32. How many epochs fit into the time depends on the machine, so that a second run
gives other numbers.

What differs from the paper: it has no TU sets, and 500 000 parameters and 300 epochs where these runs have 30 000 and a
fraction of a minute. The test splits are small (60 and 112 graphs: one graph is 1.7 and 0.9 points), and no model is
trained to its end: tuned networks in the literature are better on both sets. Differences that are more than two
standard errors of their {num_seeds} pairs: {beyond}.

`python benchmarks/reproduce_drew_tu.py` writes this page. Last run: {environment}.
"""


def _draw(runs: list[dict[str, Any]]) -> None:
    with plot("drew_tu", ncols=len(DATASETS), figsize=(9, 3.6)) as (_, axes):
        for axis, dataset in zip(axes, DATASETS):
            for i, (name, title) in enumerate(MODELS.items()):
                values = accuracies(runs, name, dataset)
                axis.plot([i] * len(values), values, "o", color=f"C{i}", alpha=0.5)
                axis.plot([i - 0.2, i + 0.2], [statistics.mean(values)] * 2, color=f"C{i}", linewidth=3, label=title)
            axis.set(title=dataset.upper(), ylabel="test accuracy, %", xticks=range(len(MODELS)))
            axis.set_xticklabels([title.replace(", ", "\n") for title in MODELS.values()])
            axis.grid(alpha=0.3, axis="y")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write the page from the runs that are there")
    runs = RUNS.read() if parser.parse_args().page else measure()
    _draw(runs)
    print(f"written: {write_page('drew_tu', _page(runs))}")


if __name__ == "__main__":
    main()
