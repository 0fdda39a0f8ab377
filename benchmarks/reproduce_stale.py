"""Stale training against full-graph training, what every technique and remedy does, and the case that fails.

    python benchmarks/reproduce_stale.py             # all runs, about 15 minutes on one core
    python benchmarks/reproduce_stale.py --page      # only the page, from the runs that are there

Writes docs/reproductions/stale_training.md with its plot. Finished runs are kept (benchmarks/results/
stale_training.jsonl): an interrupted command goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from environment import environment_line
from reproduction import mean_and_spread, plot, write_page
from stale_training import (
    COMPARED,
    EXPERIMENTS,
    FAILING,
    RUNS,
    VARIANTS,
    accuracy,
    complete,
    first_epoch_within,
    seeds_of,
)

REAL = ("cora", "citeseer", "squirrel")
FULL = COMPARED[0]
Found = dict[tuple[str, str], list[dict[str, Any]]]


def finished() -> Found:
    """The runs that are there, by data set and variant, in the order of the seeds."""
    runs = {(run["dataset"], run["variant"], run["seed"]): run for run in RUNS.read()}
    found: Found = {}
    for (name, variant, seed), run in sorted(runs.items()):
        if seed in seeds_of(name, variant):
            found.setdefault((name, variant), []).append(run)
    return found


def differences(found: Found, name: str, variant: str) -> list[float]:
    """Test accuracy minus that of the full graph, in points, by seed."""
    full = {run["seed"]: run for run in found.get((name, FULL), [])}
    runs = found.get((name, variant), [])
    return [accuracy(run) - accuracy(full[run["seed"]]) for run in runs if run["seed"] in full]


def compared_row(found: Found, name: str, variant: str) -> str:
    runs = found.get((name, variant), [])
    if not runs:
        return ""
    full = {run["seed"]: run for run in found.get((name, FULL), [])}
    epochs = [first_epoch_within(run, full[run["seed"]]) for run in runs if run["seed"] in full]
    return (
        f"| {EXPERIMENTS[name].title} | {variant} | {mean_and_spread([accuracy(run) for run in runs])} "
        f"| {_cell(differences(found, name, variant), 2)} | {_cell(epochs, 1)} | {len(runs)} |"
    )


def _cell(values: list[float], digits: int) -> str:
    return mean_and_spread(values, digits) if values else "-"


def ablation_row(found: Found, variant: str) -> str:
    runs = [run for run in found.get(("cora", variant), []) if run["seed"] in seeds_of("cora", "exact start")]
    if not runs:
        return ""
    ages = statistics.mean(age for run in runs for age in run["mean_ages"])
    return (
        f"| {variant} | {mean_and_spread([accuracy(run) for run in runs])} "
        f"| {_cell(differences(found, 'cora', variant)[: len(runs)], 2)} "
        f"| {ages:.1f} | {runs[0]['history_bytes'] / 2**20:.2f} | {len(runs)} |"
    )


def failing_row(found: Found, variant: str) -> str:
    runs = found.get(("blocks", variant), [])
    if not runs:
        return ""
    evaluated = [
        mean_and_spread([100 * e["accuracy"]["val"] for run in runs for e in run["evaluations"] if e["epoch"] == epoch])
        for epoch in (20, 40, 60)
    ]
    training = mean_and_spread([run["losses"][19] for run in runs], 2)
    return f"| {variant} | {' | '.join(evaluated)} | {training} | {len(runs)} |"


def missing(found: Found) -> str:
    """How many runs have not been made, as a paragraph; empty if none."""
    wanted = sum(len(seeds_of(name, variant)) for name in EXPERIMENTS for variant in VARIANTS)
    made = sum(len(runs) for runs in found.values())
    if made == wanted:
        return ""
    return (
        f"{made} of {wanted} runs have been made so far, too few to compare means: the columns of seeds say how\n"
        "many stand behind each row, and rows without any are left out. The command goes on with the others.\n\n"
    )


def report(found: Found) -> None:
    """Write the page and its plot."""
    draw(found)
    tables = {
        "compared": [compared_row(found, name, variant) for name in REAL for variant in COMPARED],
        "ablation": [ablation_row(found, variant) for variant in VARIANTS],
        "failing": [failing_row(found, variant) for variant in FAILING],
    }
    rows = {name: "\n".join(filter(None, table)) for name, table in tables.items()}
    text = PAGE.format(**rows, missing=missing(found), environment=environment_line())
    print(f"written: {write_page('stale_training', text)}")


PAGE = """# Stale training: techniques, remedies, and where it falls behind

The pipeline reads historical rows and drops gradients ([arXiv 2308.10087](https://arxiv.org/abs/2308.10087)). Here it
is compared with training on the full graph, from the same weights with the same dropout. "As published": 8 chunks,
order shuffled, history refreshed every 23 epochs and zero before, cross-chunk gradients doubled. "Remedied":
`history_start: exact`, `refresh_distance: 0.1`, `cross_chunk_gradient: compensated`
([what they do](../pipelines.md#stale-rows-and-lost-gradients)).

Test accuracy at the best validation accuracy, mean and standard deviation over the seeds; the difference is paired by
seed; the target is the full graph's best validation accuracy minus one point (61 where a run does not reach it).

| data | training | test accuracy, % | minus full graph | epochs to target | seeds |
|---|---|---|---|---|---|
{compared}

8-layer GCNII, width 32, dropout 0.5, Adam lr 0.02, 60 epochs, validation every 3; weight decay 5e-4 and row-scaled
features on Cora and CiteSeer (public split); splits 0 to 4 on squirrel.

In none of the three does staleness cost accuracy. As published, the target is reached in about as many epochs as on the
full graph; with the remedies it takes 1.2 times as many on Cora, more than the 1.1 that was aimed at. No remedy alone
explains that: over the first three seeds an exact start takes 36 epochs, refresh by distance 39, compensated gradients
40, and the full graph 37, where validation is every 3 epochs.

## Every technique and remedy alone

On Cora, at most 3 seeds, each row changes one thing of "as published" (or what it says):

| training | test accuracy, % | minus full graph | mean age of history, epochs | history, MiB | seeds |
|---|---|---|---|---|---|
{ablation}

## Where the published method falls behind

The paper's logs hold one case in which the pipeline does not train and the full graph does: a 32-layer GCNII on
ogbn-arxiv (9 and 19 % against 68 %). That graph is not available here. What follows is a block model of 800 nodes and 8
classes that METIS cannot cut, so that most messages cross chunks, with noisy features, a 32-layer GCNII of width 16, no
dropout, Adam lr 0.05 and 8 chunks. Accuracy in exact inference, validation nodes, in percent (chance is 12.5), and the
loss of the pipelined forward:

| training | epoch 20 | epoch 40 | epoch 60 | pipelined loss, epoch 20 | seeds |
|---|---|---|---|---|---|
{failing}

Where history is empty and then frozen, the loss that is trained falls as fast as that of the full graph, but the
network learns to classify with messages that are missing: exact inference lags far behind the loss and jumps with each
snapshot (after epochs 23 and 46). It is not the outright failure of the logs: most of the accuracy comes in the end.
An exact start alone does not help: that history is of untrained weights and stays for 23 epochs. Fresh rows (refresh by
distance) help from the beginning; compensated gradients start slowly and end best; all remedies together stay some
points below the full graph, with a large spread over the seeds.

![validation accuracy](stale_training.png)

## Not reproduced

{missing}Runs with the paper's 32 and more layers, 5000 epochs and width 1000 on squirrel, Flickr and Reddit (days on
two CPU cores; [32 layers on Cora](gnnpipe_cora.md) and [squirrel](gnnpipe_squirrel.md) at width 64); the late collapse
with stale gradients that its logs show after thousands of epochs; ogbn-arxiv, and a graph on which the published method
does not train at all.

`python benchmarks/reproduce_stale.py` writes this page. Last run: {environment}.
"""


def draw(found: Found) -> None:
    """Validation accuracy over the epochs, mean over the seeds that all have, one panel per data set."""
    names = (*REAL, "blocks")
    with plot("stale_training", ncols=len(names), figsize=(14, 3.6)) as (_, axes):
        for axis, name in zip(axes, names):
            shown = [variant for variant in (FAILING if name == "blocks" else COMPARED) if (name, variant) in found]
            seeds = set.intersection(*[{run["seed"] for run in found[name, variant]} for variant in shown] or [set()])
            for i, variant in enumerate(shown):
                runs = [run for run in found[name, variant] if run["seed"] in seeds]
                if runs:
                    epochs = [e["epoch"] for e in runs[0]["evaluations"]]
                    curves = [[100 * e["accuracy"]["val"] for e in run["evaluations"]] for run in runs]
                    axis.plot(
                        epochs, [statistics.mean(values) for values in zip(*curves)], color=f"C{i}", label=variant
                    )
            axis.set(title=EXPERIMENTS[name].title, xlabel="epoch", ylabel="validation accuracy, %")
            axis.grid(alpha=0.3)
            if seeds:
                axis.legend(fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write the page from the runs that are there")
    if not parser.parse_args().page:
        for name in EXPERIMENTS:
            for variant in VARIANTS:
                complete(name, variant)
    report(finished())


if __name__ == "__main__":
    main()
