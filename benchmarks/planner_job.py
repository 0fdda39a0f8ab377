"""Every plan measured in turns, for several depths: every worker runs it, worker 0 writes what it saw.

python benchmarks/planner_job.py SPEC.json        (under the deepspeed launcher)
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch

from gossamer import distributed
from gossamer.distributed import gnnpipe, simulate
from gossamer.distributed.planner import Candidate
from gossamer.distributed.schedule import Costs, Kind

from pipeline_job import Spec, build, load, write_result

DEPTHS = (2, 4, 8, 16, 32, 64)
ROUNDS = 3  # of all plans; then of those that may still be the best
FINAL_ROUNDS = 9
MARGIN = 1.25
FORWARD = (Kind.RECEIVE_ACTIVATION, Kind.FORWARD, Kind.SEND_ACTIVATION)


def cpu_seconds(engine: distributed.PipelineEngine) -> list[dict[str, float]]:
    """CPU seconds of one epoch on every worker: per chunk forward and backward with their transfers, the rest, all."""
    thread, process = time.thread_time(), time.process_time()
    engine.train_epoch()
    own = {"rest": time.thread_time() - thread, "process": time.process_time() - process}
    spent = defaultdict(float, own)
    for event in engine._events:
        name = "step" if event.action.kind is Kind.STEP else "forward" if event.action.kind in FORWARD else "backward"
        spent[name] += event.end - event.start
        spent["rest"] -= event.end - event.start
    return engine._channel.gather(dict(spent))


def epoch_seconds(plan: Candidate, rounds: list[list[dict[str, float]]], num_cores: int) -> float:
    """What an epoch takes on idle cores, from CPU time: the schedule with the measured costs of every stage.

    A stage takes as long as the slowest of its ways; what the workers compute in all needs the cores there are. The
    least of the rounds counts: other work on the machine only adds to it.
    """
    num_chunks = plan.num_chunks
    least = [{name: min(r[rank][name] for r in rounds) for name in rounds[0][rank]} for rank in range(len(rounds[0]))]
    ways = [least[s * plan.num_ways : (s + 1) * plan.num_ways] for s in range(plan.num_stages)]
    costs = {
        name: tuple(max(one[name] for one in stage) / num_chunks for stage in ways) for name in ("forward", "backward")
    }
    step = max(one["step"] for one in least)
    timeline = simulate(
        gnnpipe(plan.num_stages, num_chunks), Costs(costs["forward"], costs["backward"], 0.0, step=step)
    )
    alone = timeline.makespan + max(one["rest"] for one in least)
    return max(alone, sum(one["process"] for one in least) / min(num_cores, len(least)))


def likely(
    engines: dict[Candidate, distributed.PipelineEngine],
    rounds: dict[Candidate, list[list[dict[str, float]]]],
    num_cores: int,
) -> dict[Candidate, distributed.PipelineEngine]:
    """Those near the best so far of all that are allowed, which more rounds may change; the same on every worker."""
    seconds = {c: epoch_seconds(c, rounds[c], num_cores) for c in engines}
    best = min(value for c, value in seconds.items() if not c.refused)
    return {c: engine for c, engine in engines.items() if seconds[c] < MARGIN * best}


def measure(spec: Spec, calibration: distributed.Calibration) -> dict[str, Any]:
    """An epoch of every candidate for one depth, in turns, and what the planner takes."""
    structure, data, num_classes = load(spec)
    num_workers = torch.distributed.get_world_size()
    arguments = {"num_states": 2, "calibration": calibration}
    plan = distributed.plan_parallelism(structure, spec.num_layers, spec.hidden, num_workers, **arguments)
    engines: dict[Candidate, distributed.PipelineEngine] = {}
    for c in plan.candidates:
        model = build(spec, data["features"].shape[1], num_classes)
        section = {"num_ways": c.num_ways, "num_chunks": c.num_chunks, "backend": "torch"}
        engines[c] = distributed.initialize(model, structure, **data, config={"gossamer": section})
        engines[c].train_epoch()  # allocates
        engines[c].clock = time.thread_time
    rounds: dict[Candidate, list[list[dict[str, float]]]] = {c: [] for c in engines}
    wall: dict[Candidate, list[float]] = {c: [] for c in engines}
    for number in range(ROUNDS + FINAL_ROUNDS):
        if number == ROUNDS:
            engines = likely(engines, rounds, calibration.num_cores)
        for c, engine in engines.items():
            start = time.perf_counter()
            rounds[c].append(cpu_seconds(engine))
            wall[c].append(time.perf_counter() - start)
    kinds = [
        {
            "kind": c.kind, "ways": c.num_ways, "chunks": c.num_chunks, "allowed": not c.refused,
            "chosen": c is plan.chosen, "predicted": c.seconds, "wall": statistics.median(wall[c]),
            "measured": epoch_seconds(c, rounds[c], calibration.num_cores),
        }
        for c in plan.candidates
    ]  # fmt: skip
    return {"num_layers": spec.num_layers, "break_even": plan.break_even, "kinds": kinds}


def measure_depths(spec: Spec) -> list[dict[str, Any]]:
    distributed.init_distributed("cpu")
    calibration = distributed.calibrate(load(spec)[0], spec.hidden)
    return [measure(replace(spec, num_layers=depth), calibration) for depth in DEPTHS]


if __name__ == "__main__":
    write_result(measure_depths)
