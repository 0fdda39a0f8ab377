"""GNNPipe: exactness, bytes on the wire and speed of the pipelined engine."""

from __future__ import annotations

import copy
import statistics
from dataclasses import replace

import reproduce_gnnpipe
import torch
import torch.nn.functional as F
<<<<<<< HEAD
from pipeline_job import Spec, build, launched, load
=======
>>>>>>> 05f437f (Enumeration tests: every operator has a test, a fake kernel, a true status and a benchmark; public names are documented)

from gossamer import distributed

import harness
from pipeline_job import Spec, build, load

CAPABILITY = "Pipelined training (GNNPipe)"
SMALL = Spec(scale=11, num_edges=24_000, num_layers=8, hidden=32, epochs=6)
LARGE = Spec(scale=16, num_edges=1_000_000, num_layers=32, hidden=64, epochs=3)


def largest_difference(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b))


@harness.goal(CAPABILITY, "1 chunk against full-graph training: loss difference over 50 epochs", at_most=1e-6, unit="")
def one_chunk_is_full_graph() -> harness.Figure:
    spec = replace(SMALL, dropout=0.0, num_layers=32)
    structure, data, num_classes = load(spec)
    model = build(spec, data["features"].shape[1], num_classes)
    engine = distributed.initialize(copy.deepcopy(model), structure, **data, config={"gossamer": {"num_chunks": 1}})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train, labels = data["masks"]["train"], data["labels"]
    differences = []
    for _ in range(50):
        loss = F.cross_entropy(model(structure, data["features"])[train], labels[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        differences.append(abs(engine.train_epoch().loss - loss.item()))
    return harness.Figure(max(differences), f"32-layer GCNII, {structure.num_nodes} nodes, fp32")


def emulation(num_workers: int) -> harness.Figure:
    spec = replace(SMALL, config={"gossamer": {"num_chunks": 8, "refresh_period": 2}})
    alone, together = launched(spec, 1), launched(spec, num_workers)
    return harness.Figure(
        largest_difference(alone["losses"], together["losses"]),
        f"{together['backend']}, gloo, 8-layer GCNII, dropout 0.5",
    )


@harness.goal(CAPABILITY, "2 processes against the one-process emulation: loss difference", at_most=1e-5, unit="")
def two_processes_are_one() -> harness.Figure:
    return emulation(2)


@harness.goal(CAPABILITY, "4 processes against the one-process emulation: loss difference", at_most=1e-5, unit="")
def four_processes_are_one() -> harness.Figure:
    return emulation(4)


@harness.goal(CAPABILITY, "bytes on the wire / (2 x 2 (S-1) N F 4), GCNII, S = 4", at_least=1.0, at_most=1.0, unit="")
def bytes_gcnii() -> harness.Figure:
    return bytes_against_formula("gcnii", states=2)


@harness.goal(CAPABILITY, "bytes on the wire / (2 (S-1) N F 4), GraphSAGE, S = 4", at_least=1.0, at_most=1.0, unit="")
def bytes_graphsage() -> harness.Figure:
    return bytes_against_formula("graphsage", states=1)


def bytes_against_formula(model: str, *, states: int) -> harness.Figure:
    spec = replace(SMALL, model=model, epochs=1)
    result = launched(spec, 4)
    expected = states * 2 * 3 * result["num_nodes"] * spec.hidden * 4
    return harness.Figure(result["counters"]["total"] / expected, f"{result['counters']['total']} of {expected} bytes")


@harness.goal(CAPABILITY, "2 processes x 1 thread against 1 process x 1 thread, time per epoch", at_least=1.5)
def two_processes_speed() -> harness.Figure:
    """The faster of chunked and full-graph training alone, interleaved with the pipeline."""
    times: dict[str, list[float]] = {"pipeline": [], "alone, 8 chunks": [], "alone, full graph": []}
    for _ in range(2):
        for name, workers, chunks in [("pipeline", 2, 8), ("alone, 8 chunks", 1, 8), ("alone, full graph", 1, 1)]:
            result = launched(replace(LARGE, config={"gossamer": {"num_chunks": chunks}}), workers)
            times[name] += result["seconds"][1:]  # the first epoch allocates
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min(value for name, value in medians.items() if name != "pipeline")
    detail = ", ".join(f"{name} {min(values):.3g}..{max(values):.3g} s" for name, values in times.items())
    size = f"{result['num_nodes']} nodes, {result['num_edges']} edges, 32-layer GCNII F=64"
    return harness.Figure(best / medians["pipeline"], f"{detail}; {size}")


@harness.goal(
    CAPABILITY,
    "Cora, 32-layer GCNII, 5 seeds: full-graph minus pipelined accuracy",
    at_most=1.0,
    unit="points",
    slow=True,
)
def cora_accuracy() -> harness.Figure:
    return harness.Figure(*reproduce_gnnpipe.gap("cora"))


@harness.goal(CAPABILITY, "squirrel, 3 splits: full-graph minus pipelined accuracy", unit="points", slow=True)
def squirrel_accuracy() -> harness.Figure:
    return harness.Figure(*reproduce_gnnpipe.gap("squirrel"))


if __name__ == "__main__":
    harness.main()
