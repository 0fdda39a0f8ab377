"""A pipelined training run for the benchmarks: every worker runs it, worker 0 writes what it saw.

python benchmarks/pipeline_job.py SPEC.json        (alone, or under the deepspeed launcher)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from gossamer import distributed, graph
from gossamer.graph import CSR
from gossamer.graph.datasets import load_dataset

from graphs import block_graph, rmat

MODELS = {"gcnii": graph.GCNII, "gcn": graph.GCN, "graphsage": graph.GraphSAGE, "resgcn": graph.ResGCN}


@dataclass(frozen=True)
class Spec:
    """What to train; ``dataset`` is a name of load_dataset, "rmat" with ``scale`` and ``num_edges``, or "blocks"."""

    dataset: str = "rmat"
    scale: int = 14
    num_edges: int = 120_000
    split: int = 0
    row_normalize: bool = False
    model: str = "gcnii"
    num_layers: int = 32
    hidden: int = 64
    dropout: float = 0.5
    epochs: int = 3
    evaluate_every: int = 0
    seed: int = 0
    gradients: bool = False
    double: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    output: str = ""


def load(spec: Spec) -> tuple[CSR, dict[str, Any], int]:
    """Graph, node data as ``initialize`` takes it, and the number of classes."""
    if spec.dataset == "blocks":
        return _blocks(spec.seed)
    if spec.dataset != "rmat":
        data = load_dataset(spec.dataset, row_normalize=spec.row_normalize).split(spec.split)
        return data.graph, {"features": data.features, "labels": data.labels, "masks": data.masks}, data.num_classes
    structure = rmat(spec.scale, spec.num_edges)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(structure.num_nodes, spec.hidden, generator=generator)
    labels = torch.randint(0, 16, (structure.num_nodes,), generator=generator)
    train = torch.rand(structure.num_nodes, generator=generator) < 0.6
    return structure, {"features": features, "labels": labels, "masks": {"train": train, "test": ~train}}, 16


def _blocks(seed: int) -> tuple[CSR, dict[str, Any], int]:
    """A block model that cannot be cut into chunks: 8 classes of 100 nodes, 60 % of the edges go anywhere.

    The features are noisy: the classes come out in the mean over neighbours.
    """
    num_nodes, num_classes = 800, 8
    structure = block_graph(num_nodes, 12_800, num_classes, 0.6, seed)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_nodes) % num_classes
    centers = torch.randn(num_classes, 16, generator=generator)
    features = centers[labels] + 2.0 * torch.randn(num_nodes, 16, generator=generator)
    part = torch.rand(num_nodes, generator=generator)
    masks = {"train": part < 0.5, "val": (part >= 0.5) & (part < 0.75), "test": part >= 0.75}
    return structure, {"features": features, "labels": labels, "masks": masks}, num_classes


def build(spec: Spec, num_features: int, num_classes: int) -> torch.nn.Module:
    """The model, equal on every worker."""
    torch.manual_seed(spec.seed)
    return MODELS[spec.model](
        num_features, spec.hidden, num_classes, spec.num_layers, dropout=spec.dropout, seed=spec.seed
    )


def run(spec: Spec) -> dict[str, Any]:
    """Train and return losses, seconds, bytes and evaluations."""
    device = distributed.init_distributed("cpu")
    structure, data, num_classes = load(spec)
    model = build(spec, data["features"].shape[1], num_classes)
    if spec.double:
        model, data["features"] = model.double(), data["features"].double()
    engine = distributed.initialize(model, structure, **data, config=spec.config, device=device)
    gradients = watch_gradients(engine) if spec.gradients else {}
    reports, evaluations = [], []
    before = start_of_peak()
    for _ in range(spec.epochs):
        reports.append(engine.train_epoch())
        if spec.evaluate_every and engine.epoch % spec.evaluate_every == 0:
            evaluations.append(asdict(engine.evaluate()) | {"epoch": engine.epoch})
    peak = of_all_workers(peak_memory())
    if spec.gradients:
        torch.save(gradients, f"{spec.output}.{engine.rank}.pt")
    return {
        "losses": [report.loss for report in reports],
        "seconds": [report.seconds for report in reports],
        "counters": engine.counters.as_dict(),
        "mean_ages": [report.staleness.mean_age for report in reports],
        "history_bytes": engine.history_bytes,
        "evaluations": evaluations,
        "peak_bytes": peak,
        "grown_bytes": [after - start for after, start in zip(peak, of_all_workers(before))],
        "num_nodes": structure.num_nodes,
        "num_edges": structure.num_edges,
        "backend": type(engine._worker.backend).__name__,
    }


def start_of_peak() -> int:
    """Resident bytes now; ``peak_memory`` counts from here on (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status("VmRSS")


def peak_memory() -> int:
    """The most bytes of this process that were resident since ``start_of_peak``."""
    return _status("VmHWM")


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def of_all_workers(value: int) -> list[int]:
    """One value per rank."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [0] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def watch_gradients(engine: distributed.PipelineEngine) -> dict[str, torch.Tensor]:
    """A dictionary that holds this stage's gradients of the last epoch, by parameter name.

    Where several ways share the stage they are the sum, and the backend must be torch.
    """
    backend, seen = engine._worker.backend, {}
    step = backend.step

    def look(*_: Any) -> None:
        seen.update({name: p.grad.clone() for name, p in engine.module.named_parameters() if p.grad is not None})

    def look_and_step() -> None:
        look()
        step()

    if engine.num_ways > 1:
        backend._optimizer.register_step_pre_hook(look)
    else:
        backend.step = look_and_step
    return seen


def largest_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """max over parameters of |found - expected| / |expected|."""
    if found.keys() != expected.keys():
        raise RuntimeError(f"gradients of other parameters: {sorted(found.keys() ^ expected.keys())}")
    return max(float((found[name] - value).norm() / value.norm()) for name, value in expected.items())


def run_job(script: str, argument: str, output: str, num_workers: int) -> Any:
    """The JSON that a script next to this one writes under the launcher."""
    path = str(Path(__file__).with_name(script))
    if (code := distributed.launch(path, [argument], num_workers=num_workers)) != 0:
        raise RuntimeError(f"{num_workers} workers ended with exit code {code}")
    return json.loads(Path(output).read_text())


def launched_job(script: str, spec: Spec, num_workers: int) -> Any:
    """As ``run_job``, for a script that takes a spec and writes to its ``output``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "spec.json")
        path.write_text(json.dumps(asdict(replace(spec, output=f"{folder}/result.json"))))
        return run_job(script, str(path), f"{folder}/result.json", num_workers)


def launched(spec: Spec, num_workers: int) -> dict[str, Any]:
    """Run a spec in processes of its own, through the deepspeed launcher where there are several."""
    with tempfile.TemporaryDirectory() as folder:
        spec = replace(spec, output=os.path.join(folder, "result.json"))
        path = os.path.join(folder, "spec.json")
        with open(path, "w") as file:
            json.dump(asdict(spec), file)
        if num_workers == 1:
            subprocess.run([sys.executable, __file__, path], check=True)
        else:
            code = distributed.launch(__file__, [path], num_workers=num_workers)
            if code != 0:
                raise RuntimeError(f"{num_workers} workers ended with exit code {code}")
        with open(spec.output) as file:
            result = json.load(file)
        if spec.gradients:
            stages = [torch.load(f"{spec.output}.{stage}.pt") for stage in range(num_workers)]
            result["gradients"] = {name: gradient for stage in stages for name, gradient in stage.items()}
        return result


def write_result(measure: Callable[[Spec], Any]) -> None:
    """The main of a job, on every worker: measure what the spec says, with one thread; worker 0 writes it down."""
    with open(sys.argv[1]) as file:
        spec = Spec(**json.load(file))
    torch.set_num_threads(1)
    result = measure(spec)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        with open(spec.output, "w") as file:
            json.dump(result, file)
    distributed.leave_distributed()


if __name__ == "__main__":
    write_result(run)
