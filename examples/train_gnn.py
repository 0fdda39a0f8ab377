"""Train a deep GNN on a real graph with its layers pipelined over local workers (GNNPipe).

    python examples/train_gnn.py                         # digits, 32-layer GCNII, two workers
    python examples/train_gnn.py --dataset cora --data-root DIR --epochs 500
    python examples/train_gnn.py --resume --epochs 400   # go on with the newest run

The script starts the deepspeed launcher itself. Everything about a run is left in runs/NAME; --resume takes all
settings but the number of epochs from there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from gossamer import distributed, graph
from gossamer.distributed.backend import make_optimizer
from gossamer.graph.datasets import Dataset, load_dataset

from job import StopFlag, add_run_options, open_run, read_config, read_settings, run
from recorder import Monitor

MODELS = {"gcnii": graph.GCNII, "gcn": graph.GCN, "graphsage": graph.GraphSAGE, "resgcn": graph.ResGCN}
HERE = Path(__file__).resolve().parent


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data and model")
    data.add_argument("--dataset", default="digits", help="digits, cora, citeseer, squirrel, chameleon or a path")
    data.add_argument("--data-root", default=None, help="folder that holds the data sets")
    data.add_argument("--split", type=int, default=0, help="which split, where a data set has several")
    data.add_argument("--row-normalize", action="store_true", help="scale the features of a node to sum 1")
    data.add_argument("--model", choices=MODELS, default="gcnii")
    data.add_argument("--layers", type=int, default=32)
    data.add_argument("--hidden", type=int, default=64)
    data.add_argument("--dropout", type=float, default=0.5)
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int, default=None, help="in all, resumed ones included (default 200)")
    training.add_argument("--lr", type=float, default=None, help="learning rate (default: that of --config)")
    training.add_argument("--weight-decay", type=float, default=None)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--config", default=str(HERE / "gnn.json"), help="DeepSpeed configuration (JSON)")
    training.add_argument("--evaluate-every", type=int, default=10, metavar="EPOCHS")
    training.add_argument("--save-every", type=int, default=50, metavar="EPOCHS")
    pipeline = parser.add_argument_group("pipeline", "every worker (--workers) is a stage")
    pipeline.add_argument("--chunks", type=int, default=None, help="default: 4 per worker; 1 for no chunks")
    pipeline.add_argument("--refresh-period", type=int, default=None, metavar="EPOCHS")
    pipeline.add_argument("--no-shuffle", action="store_true", help="the same chunk order every epoch")
    pipeline.add_argument("--cross-chunk-gradient", choices=["rescaled", "detached", "stale"], default=None)
    pipeline.add_argument("--recompute", action="store_true", help="recompute layers in the backward pass")
    add_run_options(parser)
    return parser.parse_args(arguments)


def main() -> int:
    return run(__file__, parse(), prepare, train)


def prepare(arguments: argparse.Namespace) -> Path:
    """Check what can be checked before any worker starts, and make or find the run's folder."""
    return open_run(
        arguments,
        default_epochs=200,
        complete=lambda new: setattr(new, "configuration", configuration(new)),
        check=check_plan,
        default_name=lambda new: f"{Path(new.dataset).stem}-{new.model}-{new.layers}",
    )


def check_plan(arguments: argparse.Namespace) -> None:
    """Raise ValueError or FileNotFoundError for a run that could not start."""
    for name in ("workers", "epochs", "evaluate_every", "save_every"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"train_gnn: {name} must be at least 1, got {getattr(arguments, name)}")
    data = load(arguments)
    section, deepspeed = distributed.load_config(arguments.configuration)
    model = build(arguments, data)
    make_optimizer(model, deepspeed)
    layers = distributed.layers_of(model)
    distributed.plan_stages(layers, data.features, arguments.workers, section.stage_bounds)
    section.chunks_for(arguments.workers, data.graph.num_nodes)


def configuration(arguments: argparse.Namespace) -> dict[str, Any]:
    """The DeepSpeed configuration with the command line's choices."""
    config = read_config(arguments.config)
    parameters = config.setdefault("optimizer", {"type": "Adam", "params": {}}).setdefault("params", {})
    section = config.setdefault("gossamer", {})
    for target, key, value in [
        (parameters, "lr", arguments.lr),
        (parameters, "weight_decay", arguments.weight_decay),
        (section, "num_chunks", arguments.chunks),
        (section, "refresh_period", arguments.refresh_period),
        (section, "cross_chunk_gradient", arguments.cross_chunk_gradient),
        (section, "shuffle", False if arguments.no_shuffle else None),
        (section, "recompute", arguments.recompute or None),
        (section, "seed", arguments.seed),
    ]:
        if value is not None:
            target[key] = value
    return config


def load(arguments: argparse.Namespace) -> Dataset:
    """The data set, with the split that was asked for."""
    data = load_dataset(arguments.dataset, root=arguments.data_root, row_normalize=arguments.row_normalize)
    return data.split(arguments.split)


def build(arguments: argparse.Namespace, data: Dataset) -> torch.nn.Module:
    """The model, with the same initial weights on every worker."""
    torch.manual_seed(arguments.seed)
    return MODELS[arguments.model](
        data.features.shape[1],
        arguments.hidden,
        data.num_classes,
        arguments.layers,
        dropout=arguments.dropout,
        seed=arguments.seed,
    )


def train(arguments: argparse.Namespace) -> int:
    """What every worker runs."""
    folder = read_settings(arguments)
    stop = StopFlag()
    device = distributed.init_distributed(arguments.device)
    data = load(arguments)
    engine = distributed.initialize(
        build(arguments, data), data.graph, features=data.features, labels=data.labels,
        masks=data.masks, config=arguments.configuration, device=device,
    )  # fmt: skip
    checkpoints = folder / "checkpoints"
    if distributed.find_latest(checkpoints):
        engine.load_checkpoint(checkpoints)
    monitor = make_monitor(folder, engine, arguments) if engine.is_first else None
    stopped = False
    while engine.epoch < arguments.epochs and not stopped:
        report = engine.train_epoch()
        last = engine.epoch == arguments.epochs
        stopped = engine.any_stage(stop.requested)
        due = last or engine.epoch % arguments.evaluate_every == 0
        evaluation = engine.evaluate() if due else None
        if monitor:
            show(monitor, report, evaluation)
        if last or stopped or engine.epoch % arguments.save_every == 0:
            engine.save_checkpoint(checkpoints)
    if monitor:
        monitor.finish("interrupted, --resume goes on" if stopped else "finished")
    distributed.leave_distributed()
    return 0


def make_monitor(folder: Path, engine: distributed.PipelineEngine, arguments: argparse.Namespace) -> Monitor:
    title = (
        f"{arguments.dataset}, {arguments.layers}-layer {arguments.model}, {engine.num_stages} stages, "
        f"{engine.num_chunks} chunks"
    )
    return Monitor(folder, title, epochs=arguments.epochs, first_epoch=engine.epoch, training="training (pipelined)")


def show(monitor: Monitor, report: distributed.EpochReport, evaluation: distributed.Evaluation | None) -> None:
    """Record one epoch."""
    line = {
        "epoch": report.epoch,
        "loss": report.loss,
        "accuracy": report.accuracy,
        "seconds": round(report.seconds, 6),
        "bytes": report.counters.as_dict(),
    }
    if evaluation is not None:
        for name, value in evaluation.accuracy.items():
            line |= {f"{name}_accuracy": value, f"{name}_loss": evaluation.loss[name]}
    monitor.show(
        line,
        loss=f"{report.loss:.4f}",
        acc=f"{report.accuracy:.3f}",
        s=f"{report.seconds:.3f}",
        MB=f"{report.counters.total / 1e6:.2f}",
    )


if __name__ == "__main__":
    sys.exit(main())
