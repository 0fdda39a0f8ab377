"""Test accuracy on RingTransfer over the size of the ring: writes docs/reproductions/ring_transfer.md with its plot.

    python benchmarks/reproduce_ring_transfer.py             # all runs, about 25 minutes on one core
    python benchmarks/reproduce_ring_transfer.py --page      # only the page, from the runs that are there

Finished runs are kept as JSON lines in benchmarks/results/ring_transfer.jsonl; an interrupted command goes on there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from environment import environment_line
from reproduction import Runs, mean_and_spread, plot, write_page

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
from ring_transfer import NUM_CLASSES, RingTransfer, build_model

RUNS = Runs("ring_transfer")
MODELS = {"gcn": "GCN", "spn": "SPN, 10 hops", "drew-1": "DRew, nu = 1", "drew-inf": "DRew, nu = infinity"}
SIZES, SEEDS, NUM_STEPS = (10, 20, 30, 40, 50, 60, 70), (0, 1, 2), 200


def train(name: str, size: int, seed: int, num_steps: int = NUM_STEPS) -> dict[str, Any]:
    """Adam 0.01, weight decay 5e-4, cosine schedule; every step sees one ring of every class."""
    torch.manual_seed(seed)
    model, labels = build_model(name, size), torch.arange(NUM_CLASSES)
    task = RingTransfer(size, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    start = time.perf_counter()
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(task.logits(model, labels), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
    return {
        "model": name,
        "size": size,
        "seed": seed,
        "steps": num_steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": float(loss.detach()),
        "accuracy": accuracy(task, model),
        "seconds": time.perf_counter() - start,
    }


@torch.no_grad()
def accuracy(task: RingTransfer, model: torch.nn.Module) -> float:
    """Share of the classes that are read right, with the running statistics of the batch norms."""
    labels = torch.arange(NUM_CLASSES)
    model.eval()
    return float((task.logits(model, labels).argmax(1) == labels).float().mean())


def missing_runs(runs: list[dict[str, Any]]) -> Iterator[tuple[str, int, int]]:
    """(model, size, seed) of every run that is not there, small rings first."""
    done = {(run["model"], run["size"], run["seed"]) for run in runs if run["steps"] == NUM_STEPS}
    for seed in SEEDS:
        for size in SIZES:
            yield from ((name, size, seed) for name in MODELS if (name, size, seed) not in done)


def measure() -> list[dict[str, Any]]:
    """Every run, those that are there already included."""
    torch.set_num_threads(1)
    for name, size, seed in list(missing_runs(RUNS.read())):
        run = train(name, size, seed)
        RUNS.add(run)
        print(f"{name}, {size} nodes, seed {seed}: {run['accuracy']:.0%} in {run['seconds']:.0f} s", flush=True)
    return RUNS.read()


def accuracies(runs: list[dict[str, Any]], name: str, size: int) -> list[float]:
    """Test accuracy in percent by seed."""
    chosen = [run for run in runs if run["model"] == name and run["size"] == size and run["steps"] == NUM_STEPS]
    return [100 * run["accuracy"] for run in sorted(chosen, key=lambda run: run["seed"])]


def report(runs: list[dict[str, Any]]) -> None:
    """Write the page and its plot."""
    sizes = [size for size in SIZES if all(accuracies(runs, name, size) for name in MODELS)]
    draw(runs, sizes)
    rows = [
        f"| {size} | " + " | ".join(_cell(accuracies(runs, name, size)) for name in MODELS) + " |" for size in sizes
    ]
    parameters = [
        statistics.mean(run["parameters"] for run in runs if run["model"] == name and run["size"] == sizes[-1]) / 1e6
        for name in MODELS
    ]
    text = TEXT.format(
        header=" | ".join(MODELS.values()),
        line="|".join("---" for _ in MODELS),
        rows="\n".join(rows),
        parameters=", ".join(f"{name} {count:.3f}" for name, count in zip(MODELS.values(), parameters)),
        losses=", ".join(
            f"{title} {max(run['loss'] for run in runs if run['model'] == name):.2f}" for name, title in MODELS.items()
        ),
        largest=sizes[-1],
        steps=NUM_STEPS,
        environment=environment_line(),
    )
    print(f"written: {write_page('ring_transfer', text)}")


def _cell(values: list[float]) -> str:
    """Mean and standard deviation, then every run."""
    return f"{mean_and_spread(values, 0)} ({', '.join(f'{value:.0f}' for value in values)})"


TEXT = """# RingTransfer

Node n/2 of a ring of n nodes holds one of 5 classes, and the class is read at node 0 after n/2 layers
([arXiv 2305.08018](https://arxiv.org/abs/2305.08018)). The curve of the paper: a GCN falls to chance, which is 20 %,
while DRew with delay nu = 1 carries the class half way around every ring.

Test accuracy in percent: mean and standard deviation, then the run of every seed (0, 1, 2).

| nodes | {header} |
|---|{line}|
{rows}

![test accuracy over the size of the ring](ring_transfer.png)

Every model has the parameters of a GCN of width 256 with as many layers (on {largest} nodes, in millions:
{parameters}), and is trained alike: one linear layer before, Adam 0.01, weight decay 5e-4,
cosine schedule, cross-entropy at node 0. All models share DRew's frame: residual, batch norm and rows of length 1. The
GCN is DRew with one hop; SPN reads hops 1 to 10 in every layer.

What differs from the paper: {steps} steps, each on one ring of every class, instead of 2500 steps on 32 rings drawn
from 2000. There are no more than 5 different rings of a size, so that training and test rings are the same, here as in
the paper: the task asks whether the signal gets through, not whether it generalises. Accuracy is taken in evaluation
mode, with the running statistics of the batch norms. The largest final training loss on any ring (chance is 1.61):
{losses}. Where it is low and the accuracy is not, the model has learned the training batch, and its
running statistics have not settled within the steps.

`python benchmarks/reproduce_ring_transfer.py` writes this page. Last run: {environment}.
"""


def draw(runs: list[dict[str, Any]], sizes: list[int]) -> None:
    """Mean test accuracy over the size of the ring, with the range of the seeds."""
    with plot("ring_transfer", figsize=(7, 4)) as (_, axis):
        for i, (name, title) in enumerate(MODELS.items()):
            found = [accuracies(runs, name, size) for size in sizes]
            means = [statistics.mean(values) for values in found]
            axis.plot(sizes, means, color=f"C{i}", marker="osv^"[i], markersize=9 - 1.5 * i, label=title)
            axis.fill_between(
                sizes, [min(values) for values in found], [max(values) for values in found], color=f"C{i}", alpha=0.15
            )
        axis.axhline(100 / NUM_CLASSES, color="black", linestyle=":", linewidth=1, label="chance")
        axis.set(xlabel="nodes of the ring", ylabel="test accuracy, %", ylim=(0, 105), title="RingTransfer")
        axis.grid(alpha=0.3)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write the page from the runs that are there")
    options = parser.parse_args()
    report(RUNS.read() if options.page else measure())


if __name__ == "__main__":
    main()
