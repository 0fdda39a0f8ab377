"""The exact mode of the pipelined engine: chunks wait for the chunks that they read, and nothing is stale."""

from __future__ import annotations

from dataclasses import replace

import torch

from gossamer import distributed
from gossamer.graph import CSR

import harness
from pipeline_job import Spec, largest_error, launched, load

CAPABILITY = "Exact pipelined training"
SMALL = Spec(scale=11, num_edges=24_000, num_layers=8, hidden=32)
WORKERS = (2, 3, 4)
CHUNKS = 16


def exactness(epochs: int, *, double: bool) -> tuple[float, float, str]:
    """Largest relative errors of losses and of the last gradients against synchronous full-graph training.

    All of it is 8-layer GCNII with dropout 0.5. One process with the same chunks has the same bits, which is checked.
    """
    backend = "torch" if double else "auto"  # DeepSpeed reduces no gradients in double precision
    sections = {
        "whole": {"num_chunks": 1, "backend": backend},
        "exact": {"mode": "exact", "num_chunks": CHUNKS, "backend": backend},
    }
    specs = {
        name: replace(SMALL, epochs=epochs, double=double, gradients=True, config={"gossamer": section})
        for name, section in sections.items()
    }
    whole, same = launched(specs["whole"], 1), launched(specs["exact"], 1)
    losses = gradients = 0.0
    for num_workers in WORKERS:
        found = launched(specs["exact"], num_workers)
        if found["losses"] != same["losses"]:
            raise RuntimeError(f"{num_workers} processes have other losses than one with {CHUNKS} chunks")
        losses = max(losses, *(abs(a - b) / abs(b) for a, b in zip(found["losses"], whole["losses"])))
        gradients = max(gradients, largest_error(found["gradients"], whole["gradients"]))
    detail = f"{epochs} epochs, 2, 3 and 4 processes, {CHUNKS} chunks, bits of one process with as many; 8-layer GCNII"
    return losses, gradients, detail


@harness.goal(CAPABILITY, "loss against full-graph training on one process, 100 epochs, fp32", at_most=1e-5, unit="")
def loss_100_epochs() -> harness.Figure:
    losses, _, detail = exactness(100, double=False)
    return harness.Figure(losses, detail)


@harness.goal(CAPABILITY, "gradients against full-graph training on one process, fp32", at_most=1e-5, unit="")
def gradients_fp32() -> harness.Figure:
    _, gradients, detail = exactness(1, double=False)
    return harness.Figure(gradients, detail)


@harness.goal(CAPABILITY, "loss and gradients against full-graph training, 20 epochs, fp64", at_most=1e-10, unit="")
def exact_fp64() -> harness.Figure:
    losses, gradients, detail = exactness(20, double=True)
    return harness.Figure(max(losses, gradients), f"loss {losses:.2g}, gradients {gradients:.2g}; {detail}")


@harness.goal(CAPABILITY, "simulated share of the workers' time in use: mesh, 4 stages of 4 layers", unit="")
def overlap() -> harness.Figure:
    """What the planner says for the best number of chunks; beside it R-MAT, where every chunk reads every other."""
    cost = distributed.Calibration(1e-8, 1e-9, 2e-8, 1e-9, num_cores=64)
    found = {}
    for name, graph in (("mesh", mesh(256)), ("R-MAT", load(SMALL)[0])):
        plan = distributed.plan_parallelism(graph, 16, 64, 4, exact=True, calibration=cost)
        best = max((c for c in plan.candidates if c.kind == "pipeline"), key=lambda c: c.busy)
        found[name] = (best.busy, best.num_chunks)
    detail = ", ".join(f"{name} {busy:.3f} with {chunks} chunks" for name, (busy, chunks) in found.items())
    return harness.Figure(found["mesh"][0], f"{detail}; one stage at a time is 0.250")


def mesh(side: int) -> CSR:
    """A square of side^2 nodes, each joined with those beside, above and below it."""
    node = torch.arange(side * side).view(side, side)
    across = torch.stack([node[:, 1:].flatten(), node[:, :-1].flatten()])
    down = torch.stack([node[1:].flatten(), node[:-1].flatten()])
    edges = torch.cat([across, down], 1)
    return CSR.from_edge_index(torch.cat([edges, edges.flip(0)], 1), side * side)


if __name__ == "__main__":
    harness.main()
