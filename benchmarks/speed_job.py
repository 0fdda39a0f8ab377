"""Epochs of a pipeline of two workers and of one process, in turns: both workers run it, worker 0 writes what it saw.

python benchmarks/speed_job.py SPEC.json        (under the deepspeed launcher)
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from gossamer import distributed
from gossamer.graph import CSR

from pipeline_job import Spec, build, load, write_result

ROUNDS = 2

Problem = tuple[CSR, dict[str, Any], int]  # what ``load`` returns


def engine_of(spec: Spec, problem: Problem, num_chunks: int) -> distributed.PipelineEngine:
    """Of one process before ``init_distributed`` and of both workers after it."""
    structure, data, num_classes = problem
    model = build(spec, data["features"].shape[1], num_classes)
    return distributed.initialize(model, structure, **data, config={"gossamer": {"num_chunks": num_chunks}})


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of a call that both workers begin together."""
    dist.barrier()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turns(pipeline: distributed.PipelineEngine, alone: dict[str, distributed.PipelineEngine]) -> dict[str, Any]:
    """Seconds of every way to train, without the first round, which allocates, and traces of the pipeline.

    "twice" is what one process takes while the other does the same work by itself.
    """
    rank, both = dist.get_rank(), alone["chunks"]
    found: dict[str, list[Any]] = defaultdict(list)
    for _ in range(1 + ROUNDS):
        found["pipeline"].append(seconds(pipeline.train_epoch))
        found["traces"].append(traced(pipeline))
        for name, engine in alone.items():
            found[name].append(seconds(engine.train_epoch if rank == 0 else int))
        found["twice"].append(seconds(both.train_epoch))
    return {name: values[1:] for name, values in found.items()}


def traced(engine: distributed.PipelineEngine) -> dict[str, float]:
    """Bubble of the last epoch, and what share of its transfers the workers did not wait for.

    All transfers take as long as messages of the same size that the two workers exchange with nothing else to do.
    """
    timeline = engine.timeline()
    num_messages = 2 * (engine.num_stages - 1) * engine.num_chunks
    message = torch.zeros(engine.counters.layer_level // num_messages, dtype=torch.uint8)
    alone = []
    for _ in range(10):
        start = time.perf_counter()
        ping(message)
        alone.append((time.perf_counter() - start) / 2)
    busy = [value / timeline.makespan for value in timeline.busy]
    hidden = 1 - timeline.exposed / (num_messages * min(alone[1:]))
    return {"bubble": timeline.bubble, "hidden": hidden, "first": busy[0], "last": busy[1]}


def ping(message: torch.Tensor) -> None:
    """To the other worker, and back."""
    rank = dist.get_rank()
    first, second = dist.send, dist.recv
    for transfer in (first, second) if rank == 0 else (second, first):
        transfer(message, 1 - rank)


def measure(spec: Spec) -> dict[str, Any]:
    """The engines of one process are made before the workers know of each other."""
    num_chunks, problem = spec.config["gossamer"]["num_chunks"], load(spec)
    alone = {"chunks": engine_of(spec, problem, num_chunks), "whole": engine_of(spec, problem, 1)}
    distributed.init_distributed("cpu")
    return in_turns(engine_of(spec, problem, num_chunks), alone)


if __name__ == "__main__":
    write_result(measure)
