"""Every way to use some workers, measured and simulated: every worker runs it, worker 0 writes what it saw.

python benchmarks/scale_job.py SPEC.json        (under the deepspeed launcher)
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

from gossamer import distributed
from gossamer.distributed import Calibration, Cluster, Link, ScaleJob, simulate_scale
from gossamer.distributed.layout import spread
from gossamer.graph import CSR, halo

from pipeline_job import Spec, build, load, write_result

ROUNDS = 5


def job_of(spec: Spec, structure: CSR, model: nn.Module, num_chunks: int, calibration: Calibration) -> ScaleJob:
    """The run on paper, with the halo of the cut that the engine makes."""

    def ratio(num_ways: int) -> float:
        way, _ = spread(structure, num_ways, num_chunks)
        return halo(structure, way).shape[1] / structure.num_nodes

    return ScaleJob(
        structure.num_nodes, structure.num_edges, spec.num_layers, spec.hidden, calibration, ratio,
        num_states=2, num_weights=sum(p.numel() for p in model.parameters()), num_features=spec.hidden,
    )  # fmt: skip


def measure(spec: Spec) -> list[dict[str, Any]]:
    """Bytes and the median epoch of every number of ways, in turns, beside what the simulator says."""
    distributed.init_distributed("cpu")
    structure, data, num_classes = load(spec)
    calibration = distributed.calibrate(structure, spec.hidden)
    num_workers = torch.distributed.get_world_size()
    link = Link(1 / calibration.byte, calibration.latency)
    cluster = Cluster(num_workers, link, link, overlap=False, max_busy=calibration.num_cores)
    engines = {}
    for num_ways in (ways for ways in (1, 2, 4) if num_workers % ways == 0):
        model = build(spec, data["features"].shape[1], num_classes)
        section = {"num_ways": num_ways, "backend": "torch"}
        engine = distributed.initialize(model, structure, **data, config={"gossamer": section})
        job = job_of(spec, structure, model, engine.num_chunks, calibration)
        paper = simulate_scale(job, cluster, num_workers, num_ways=num_ways, num_chunks=engine.num_chunks)
        engines[num_ways] = (engine, paper)
    seconds: dict[int, list[float]] = {num_ways: [] for num_ways in engines}
    for _ in range(1 + ROUNDS):  # the first round allocates
        for num_ways, (engine, _) in engines.items():
            seconds[num_ways].append(engine.train_epoch().seconds)
    return [
        {
            "kind": paper.kind,
            "counters": engine.counters.as_dict(),
            "seconds": statistics.median(seconds[num_ways][1:]),
            "predicted_bytes": [paper.layer_bytes, paper.graph_bytes, paper.sync_bytes],
            "predicted_seconds": paper.seconds,
        }
        for num_ways, (engine, paper) in engines.items()
    ]


if __name__ == "__main__":
    write_result(measure)
