"""Train a deep GNN on a real graph with its layers pipelined over local workers (GNNPipe).

    python examples/train_gnn.py                         # digits, 32-layer GCNII, two workers
    python examples/train_gnn.py --dataset cora --data-root DIR --epochs 500
    python examples/train_gnn.py --resume --epochs 400   # go on with the newest run

The script starts the deepspeed launcher itself. Everything about a run is left in runs/NAME; --resume takes all
settings but the number of epochs from there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gossamer import distributed, graph
from gossamer.distributed.backend import make_optimizer
from gossamer.distributed.launcher import is_worker, launch, require_port
from gossamer.graph.datasets import Dataset, load_dataset

from recorder import Recorder, new_run, write_whole

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
    pipeline = parser.add_argument_group("pipeline")
    pipeline.add_argument("--workers", type=int, default=2, help="local workers, one stage each")
    pipeline.add_argument("--chunks", type=int, default=None, help="default: 4 per worker; 1 for no chunks")
    pipeline.add_argument("--refresh-period", type=int, default=None, metavar="EPOCHS")
    pipeline.add_argument("--no-shuffle", action="store_true", help="the same chunk order every epoch")
    pipeline.add_argument("--cross-chunk-gradient", choices=["rescaled", "detached", "stale"], default=None)
    pipeline.add_argument("--recompute", action="store_true", help="recompute layers in the backward pass")
    pipeline.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    pipeline.add_argument("--port", type=int, default=None, help="TCP port for the rendezvous (default: a free one)")
    run = parser.add_argument_group("run")
    run.add_argument("--runs", default="runs", help="folder of all runs")
    run.add_argument("--name", default=None, help="folder of this run (default: from data set and model)")
    run.add_argument("--resume", action="store_true", help="go on with --name, or with the newest run")
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    if is_worker():
        try:
            return train(arguments)
        except distributed.WorkerLost as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            time.sleep(2.0)  # so that the launcher sees the worker that died before it sees this one leave
            return 1
    try:
        folder = prepare(arguments)
        code = launch(__file__, _command_line(folder), num_workers=arguments.workers, port=arguments.port)
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return conclude(folder, code)


def prepare(arguments: argparse.Namespace) -> Path:
    """Check what can be checked before any worker starts, and make or find the run's folder."""
    root = Path(arguments.runs)
    if arguments.resume:
        folder = root / arguments.name if arguments.name else _newest(root)
        saved = json.loads((folder / "config.json").read_text())
        kept = {"port": arguments.port, "resume": True, "runs": arguments.runs}
        epochs = saved["epochs"] if arguments.epochs is None else arguments.epochs
        arguments.__dict__.update(saved | kept | {"epochs": epochs})
    else:
        arguments.epochs = 200 if arguments.epochs is None else arguments.epochs
        arguments.configuration = configuration(arguments)
    if arguments.port is not None:
        require_port(arguments.port)
    check_plan(arguments)
    if not arguments.resume:
        default = f"{Path(arguments.dataset).stem}-{arguments.model}-{arguments.layers}"
        folder = new_run(root, arguments.name, default)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("resume", "port")}
    write_whole(folder / "config.json", json.dumps(settings, indent=1) + "\n")
    (folder / "status.json").unlink(missing_ok=True)
    return folder


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


def _newest(root: Path) -> Path:
    runs = sorted(root.glob("*/config.json"), key=os.path.getmtime)
    if not runs:
        raise ValueError(f"train_gnn: resume must find a run, got none under {root}")
    return runs[-1].parent


def _command_line(folder: Path) -> list[str]:
    return ["--runs", str(folder.parent), "--name", folder.name]


def conclude(folder: Path, code: int) -> int:
    """The launcher may exit with 0 though a worker was killed: believe only what worker 0 wrote."""
    status = folder / "status.json"
    if status.exists():
        print(f"{json.loads(status.read_text())['state']}: see {folder}")
        return code
    print(f"failed: a worker ended early (exit code {code}); {folder} holds what was saved", file=sys.stderr)
    return code or 1


def configuration(arguments: argparse.Namespace) -> dict[str, Any]:
    """The DeepSpeed configuration with the command line's choices."""
    try:
        config = json.loads(Path(arguments.config).read_text())
    except ValueError as error:
        raise ValueError(f"train_gnn: config must be JSON, got {error} in {arguments.config}") from error
    if not isinstance(config, dict):
        raise ValueError(f"train_gnn: config must be a JSON object, got {type(config).__name__} in {arguments.config}")
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
    folder = Path(arguments.runs) / arguments.name
    arguments.__dict__.update(json.loads((folder / "config.json").read_text()))
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
    monitor = Monitor(folder, engine, arguments) if engine.is_first else None
    stopped = False
    while engine.epoch < arguments.epochs and not stopped:
        report = engine.train_epoch()
        last = engine.epoch == arguments.epochs
        stopped = engine.any_stage(stop.requested)
        due = last or engine.epoch % arguments.evaluate_every == 0
        evaluation = engine.evaluate() if due else None
        if monitor:
            monitor.show(report, evaluation)
        if last or stopped or engine.epoch % arguments.save_every == 0:
            engine.save_checkpoint(checkpoints)
    if monitor:
        monitor.finish("interrupted, --resume goes on" if stopped else "finished")
    distributed.leave_distributed()
    return 0


class StopFlag:
    """Set by Ctrl-C or SIGTERM; the workers agree on it at the end of an epoch."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._request)

    def _request(self, number: int, frame: object) -> None:
        self.requested = True


class Monitor:
    """Worker 0's view of the run: progress bar, metrics, plot."""

    def __init__(self, folder: Path, engine: distributed.PipelineEngine, arguments: argparse.Namespace) -> None:
        from tqdm import tqdm

        self._recorder = Recorder(folder, first_epoch=engine.epoch)
        self._best: dict[str, float] = {}
        for line in self._recorder.read():  # a resumed run knows the best of its earlier part
            self._remember(line)
        self._title = (
            f"{arguments.dataset}, {arguments.layers}-layer {arguments.model}, {engine.num_stages} stages, "
            f"{engine.num_chunks} chunks"
        )
        print(f"{self._title} -> {folder}", flush=True)
        self._bar = tqdm(
            total=arguments.epochs, initial=engine.epoch, unit="epoch", mininterval=0.5 if sys.stderr.isatty() else 5.0
        )

    def show(self, report: distributed.EpochReport, evaluation: distributed.Evaluation | None) -> None:
        """Record one epoch."""
        line = {
            "epoch": report.epoch,
            "loss": report.loss,
            "accuracy": report.accuracy,
            "seconds": round(report.seconds, 6),
            "bytes": report.counters.as_dict(),
            "time": round(time.time(), 3),
        }
        if evaluation is not None:
            for name, value in evaluation.accuracy.items():
                line |= {f"{name}_accuracy": value, f"{name}_loss": evaluation.loss[name]}
            self._remember(line)
        self._recorder.add(**line)
        self._bar.set_postfix(
            loss=f"{report.loss:.4f}",
            acc=f"{report.accuracy:.3f}",
            val=f"{self._best.get('val_accuracy', float('nan')):.3f}",
            s=f"{report.seconds:.3f}",
            MB=f"{report.counters.total / 1e6:.2f}",
            refresh=False,
        )
        self._bar.update()

    def _remember(self, line: dict[str, Any]) -> None:
        if line.get("val_accuracy", 0.0) > self._best.get("val_accuracy", 0.0):
            self._best = {key: line[key] for key in ("epoch", "val_accuracy", "test_accuracy") if key in line}

    def finish(self, state: str) -> None:
        """Write plot and status."""
        self._bar.close()
        self._recorder.plot(self._title)
        if self._best:
            scores = ", ".join(f"{key} {value:.4f}" for key, value in self._best.items() if key != "epoch")
            print(f"best validation at epoch {self._best['epoch']}: {scores}", flush=True)
        status = {"state": state, "best": self._best}
        write_whole(self._recorder.folder / "status.json", json.dumps(status, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
