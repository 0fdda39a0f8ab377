"""Every kind of plan measured in turns, for several depths: every worker runs it, worker 0 writes what it saw.

python benchmarks/planner_job.py SPEC.json        (under the deepspeed launcher)
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import replace
from typing import Any

import torch

from gossamer import distributed
from gossamer.distributed.planner import Candidate

from pipeline_job import Spec, build, load

DEPTHS = (2, 4, 8, 16, 32, 64)
ROUNDS = 3


def best_of_each_kind(plan: distributed.ParallelPlan) -> list[Candidate]:
    """The candidate with the best number of chunks for every number of ways."""
    best: dict[int, Candidate] = {}
    for candidate in plan.candidates:  # fastest first
        best.setdefault(candidate.num_ways, candidate)
    return list(best.values())


def measure(spec: Spec, calibration: distributed.Calibration) -> dict[str, Any]:
    """Median epoch of every kind of plan for one depth, in turns, and what the planner takes."""
    structure, data, num_classes = load(spec)
    num_workers = torch.distributed.get_world_size()
    arguments = {"num_states": 2, "calibration": calibration}
    plan = distributed.plan_parallelism(structure, spec.num_layers, spec.hidden, num_workers, **arguments)
    engines = {}
    for c in best_of_each_kind(plan):
        model = build(spec, data["features"].shape[1], num_classes)
        section = {"num_ways": c.num_ways, "num_chunks": c.num_chunks, "backend": "torch"}
        engines[c] = distributed.initialize(model, structure, **data, config={"gossamer": section})
    seconds: dict[Candidate, list[float]] = {c: [] for c in engines}
    for _ in range(1 + ROUNDS):  # the first round allocates
        for c, engine in engines.items():
            seconds[c].append(engine.train_epoch().seconds)
    kinds = [
        {
            "kind": c.kind, "allowed": not c.refused, "chosen": c.num_ways == plan.chosen.num_ways,
            "predicted": c.seconds, "measured": statistics.median(values[1:]),
        }
        for c, values in seconds.items()
    ]  # fmt: skip
    return {"num_layers": spec.num_layers, "break_even": plan.break_even, "kinds": kinds}


def main() -> None:
    with open(sys.argv[1]) as file:
        spec = Spec(**json.load(file))
    torch.set_num_threads(1)
    distributed.init_distributed("cpu")
    calibration = distributed.calibrate(load(spec)[0], spec.hidden)
    results = [measure(replace(spec, num_layers=depth), calibration) for depth in DEPTHS]
    if torch.distributed.get_rank() == 0:
        with open(spec.output, "w") as file:
            json.dump(results, file)
    distributed.leave_distributed()


if __name__ == "__main__":
    main()
