"""Runs of stale (pipelined) against exact (full-graph) training, kept in benchmarks/results/stale_training.jsonl.

    python benchmarks/stale_training.py DATASET VARIANT [--seed N]     # one part of benchmarks/reproduce_stale.py

One process emulates the pipeline, except where rows are compressed between two workers: its numbers are those of any
number of workers (tests/test_distributed_pipeline.py).
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, replace
from typing import Any

from pipeline_job import Spec, launched, run
from reproduction import Runs

RUNS = Runs("stale_training")
SEEDS = range(5)
REMEDIES = {"history_start": "exact", "refresh_distance": 0.1, "cross_chunk_gradient": "compensated"}
VARIANTS: dict[str, dict[str, Any]] = {
    "full graph": {"num_chunks": 1},
    "stale, as published": {},
    "stale, remedied": REMEDIES,
    "no shuffle (technique 1 off)": {"shuffle": False},
    "refreshed every epoch (technique 2 off)": {"refresh_period": 1},
    "stale gradients (technique 3 off)": {"cross_chunk_gradient": "stale"},
    "all three off": {"shuffle": False, "refresh_period": 1, "cross_chunk_gradient": "stale"},
    "gradients dropped, not doubled": {"cross_chunk_gradient": "detached"},
    "positional gradients": {"cross_chunk_gradient": "positional"},
    "compensated gradients": {"cross_chunk_gradient": "compensated"},
    "exact start": {"history_start": "exact"},
    "refresh by distance 0.1": {"refresh_distance": 0.1},
    "bfloat16 history": {"history_dtype": "bfloat16"},
    "int8 history": {"history_dtype": "int8"},
    "boundaries of 8 bits, 2 workers": {"boundary_bits": 8},
    "boundaries of 4 bits, 2 workers": {"boundary_bits": 4},
}
COMPARED = tuple(VARIANTS)[:3]  # on the real data sets with all seeds
FAILING = (*COMPARED, "exact start", "refresh by distance 0.1", "compensated gradients")  # on the generated graph
ABLATION_SEEDS = range(3)  # of everything on Cora


@dataclass(frozen=True)
class Experiment:
    """A data set and how a model is trained on it; seed i takes split i where there are several."""

    title: str
    spec: Spec
    num_splits: int = 1


def _spec(dataset: str, weight_decay: float, *, row_normalize: bool) -> Spec:
    adam = {"optimizer": {"type": "Adam", "params": {"lr": 0.02, "weight_decay": weight_decay}}}
    return Spec(
        dataset=dataset, row_normalize=row_normalize, num_layers=8, hidden=32, dropout=0.5, epochs=60, evaluate_every=3,
        config=adam,
    )  # fmt: skip


EXPERIMENTS = {
    "cora": Experiment("Cora", _spec("cora", 5e-4, row_normalize=True)),
    "citeseer": Experiment("CiteSeer", _spec("citeseer", 5e-4, row_normalize=True)),
    "squirrel": Experiment("squirrel", _spec("squirrel", 0.0, row_normalize=False), num_splits=10),
    "blocks": Experiment(
        "a graph that no chunk contains",
        Spec(
            dataset="blocks",
            num_layers=32,
            hidden=16,
            dropout=0.0,
            epochs=60,
            evaluate_every=10,
            config={"optimizer": {"type": "Adam", "params": {"lr": 0.05}}},
        ),
    ),
}


def seeds_of(name: str, variant: str) -> range:
    """The seeds that are run."""
    if name == "blocks":
        return ABLATION_SEEDS if variant in FAILING else range(0)
    if variant in COMPARED:
        return SEEDS
    return ABLATION_SEEDS if name == "cora" else range(0)


def spec_of(name: str, variant: str, seed: int) -> Spec:
    """What one run trains."""
    experiment = EXPERIMENTS[name]
    section = {"num_chunks": 8} | VARIANTS[variant] | {"seed": seed}
    config = experiment.spec.config | {"gossamer": section}
    return replace(experiment.spec, seed=seed, split=seed % experiment.num_splits, config=config)


def train(name: str, variant: str, seed: int) -> dict[str, Any]:
    """One run: losses, evaluations, mean ages and memory of the history."""
    spec = spec_of(name, variant, seed)
    result = launched(spec, 2) if "boundary_bits" in VARIANTS[variant] else run(spec)
    kept = {key: result[key] for key in ("losses", "evaluations", "mean_ages", "history_bytes", "seconds")}
    return {"dataset": name, "variant": variant, "seed": seed} | kept


def complete(name: str, variant: str, seeds: range | None = None) -> list[dict[str, Any]]:
    """The runs of a variant, those that are missing trained now, in the order of the seeds."""
    done = {run["seed"]: run for run in RUNS.read() if (run["dataset"], run["variant"]) == (name, variant)}
    seeds = seeds_of(name, variant) if seeds is None else seeds
    for seed in seeds:
        if seed not in done:
            done[seed] = train(name, variant, seed)
            RUNS.add(done[seed])
            print(name, variant, seed, best(done[seed])["accuracy"], flush=True)
    return [done[seed] for seed in seeds]


def best(run: dict[str, Any]) -> dict[str, Any]:
    """The evaluation with the best validation accuracy; the earliest of equals."""
    return max(run["evaluations"], key=lambda evaluation: evaluation["accuracy"]["val"])


def accuracy(run: dict[str, Any]) -> float:
    """Test accuracy at the best validation accuracy, in percent."""
    return 100 * best(run)["accuracy"]["test"]


def first_epoch_within(run: dict[str, Any], full: dict[str, Any]) -> int:
    """The first evaluated epoch within a point of the best validation accuracy of ``full``; one more than all epochs
    if there is none."""
    target = best(full)["accuracy"]["val"] - 0.01
    reached = [e["epoch"] for e in run["evaluations"] if e["accuracy"]["val"] >= target]
    return reached[0] if reached else len(run["losses"]) + 1


def epochs_to_target(name: str, variant: str) -> float:
    """Mean over the seeds of ``first_epoch_within`` the full graph's run of the same seed."""
    pairs = zip(complete(name, variant), complete(name, "full graph"))
    return statistics.mean(first_epoch_within(*pair) for pair in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=EXPERIMENTS)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--seed", type=int, help="only this one")
    chosen = parser.parse_args()
    complete(chosen.dataset, chosen.variant, None if chosen.seed is None else range(chosen.seed, chosen.seed + 1))


if __name__ == "__main__":
    main()
