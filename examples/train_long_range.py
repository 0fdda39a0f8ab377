"""Train DRew, SPN or a plain network on tasks of long range, data parallel over graphs with DeepSpeed.

    python examples/train_long_range.py                                # DRew on rings of 10 nodes, two workers
    python examples/train_long_range.py --experiment gcn_ring_transfer --size 30
    python examples/train_long_range.py --experiment drew_gcn_proteins --data-root DIR --workers 1
    python examples/train_long_range.py --resume --epochs 400          # go on with the newest run
    python examples/train_long_range.py --list                         # all experiments

An experiment is a named configuration (long_range_configs.py); every field of it has an option. The width of the
states follows from the budget of parameters. The script starts the deepspeed launcher itself. Everything about a run
is left in runs/NAME; --resume takes all settings but the number of epochs from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from gossamer import distributed
from gossamer.distributed.backend import make_optimizer

from data_parallel import Trainer
from job import StopFlag, add_run_options, open_run, read_config, read_settings, run
from long_range_configs import CONFIGS, MODELS, LongRangeConfig
from long_range_data import DATASETS, Task, load_task
from long_range_models import LongRangeModel, build_model
from recorder import Monitor

HERE = Path(__file__).resolve().parent
DEFAULT = "drew_gcn_ring_transfer"
CHOICES = {"dataset": DATASETS, "model": MODELS, "schedule": ("plateau", "cosine")}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=CONFIGS, default=DEFAULT, metavar="NAME", help="default: %(default)s")
    parser.add_argument("--list", action="store_true", help="name all experiments and stop")
    parser.add_argument("--data-root", default=None, help="folder that holds the data sets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", default=str(HERE / "long_range.json"), help="DeepSpeed configuration (JSON)")
    parser.add_argument("--save-every", type=int, default=10, metavar="EPOCHS")
    fields = parser.add_argument_group("fields of the experiment", "see long_range_configs.py for their meaning")
    for field in dataclasses.fields(LongRangeConfig):
        fields.add_argument(f"--{field.name.replace('_', '-')}", default=None, **_option(field))
    add_run_options(parser)
    return parser.parse_args(arguments)


def _option(field: dataclasses.Field[Any]) -> dict[str, Any]:
    """How the command line reads a field."""
    if field.name in CHOICES:
        return {"choices": CHOICES[field.name], "metavar": field.name.upper()}
    if field.type == "bool":
        return {"action": argparse.BooleanOptionalAction}
    kinds = {"int": int, "int | None": int, "float": float, "str": str, "float | str": _delay}
    return {"type": kinds[str(field.type)]}


def _delay(text: str) -> float | str:
    """A number, or inf as text: JSON has no infinity."""
    value = float(text)
    return "inf" if value == float("inf") else value


def main() -> int:
    arguments = parse()
    if arguments.list:
        print("\n".join(f"{name:32} {config.layers or 'N/2'} layers" for name, config in CONFIGS.items()))
        return 0
    return run(__file__, arguments, prepare, train)


def prepare(arguments: argparse.Namespace) -> Path:
    """Check what can be checked before any worker starts, and make or find the run's folder."""
    return open_run(
        arguments,
        default_epochs=CONFIGS[arguments.experiment].epochs,
        complete=complete,
        check=check,
        default_name=lambda new: f"{new.experiment}-{new.size}" if new.dataset == "ring-transfer" else new.experiment,
    )


def complete(arguments: argparse.Namespace) -> None:
    """Fill what the command line leaves open from the experiment, and write the optimizer into DeepSpeed's part."""
    for name, value in dataclasses.asdict(CONFIGS[arguments.experiment]).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.layers == 0 and arguments.dataset == "ring-transfer":
        arguments.layers = arguments.size // 2
    arguments.configuration = read_config(arguments.config) | {
        "optimizer": {
            "type": arguments.optimizer,
            "params": {"lr": arguments.lr, "weight_decay": arguments.weight_decay},
        }
    }


def config_of(arguments: argparse.Namespace) -> LongRangeConfig:
    return LongRangeConfig(
        **{field.name: getattr(arguments, field.name) for field in dataclasses.fields(LongRangeConfig)}
    )


def check(arguments: argparse.Namespace) -> None:
    """Raise ValueError or FileNotFoundError for a run that could not start; fetches what must be fetched."""
    least = {"workers": 1, "save_every": 1, "epochs": 1, "batch_size": 1, "budget": 1, "positional": 0, "seed": 0}
    for name, bound in least.items():
        if getattr(arguments, name) < bound:
            raise ValueError(f"train_long_range: {name} must be at least {bound}, got {getattr(arguments, name)}")
    task = load(arguments, positional=False)
    num_graphs = len(task.graphs.splits["train"])
    if arguments.workers > min(num_graphs, arguments.batch_size):
        most = min(num_graphs, arguments.batch_size)
        raise ValueError(f"train_long_range: workers must be at most {most}, got {arguments.workers}")
    make_optimizer(build(arguments, task), arguments.configuration)


def load(arguments: argparse.Namespace, *, positional: bool = True) -> Task:
    """The task, with its positional encoding where the experiment has one."""
    task = load_task(
        arguments.dataset, root=arguments.data_root, seed=arguments.seed, size=arguments.size, target=arguments.target
    )
    if positional and arguments.positional:
        return dataclasses.replace(task, graphs=task.graphs.with_laplacian(arguments.positional))
    return task


def build(arguments: argparse.Namespace, task: Task) -> LongRangeModel:
    """The model, with the same initial weights on every worker."""
    torch.manual_seed(arguments.seed)
    return build_model(config_of(arguments), task)


def train(arguments: argparse.Namespace) -> int:
    """What every worker runs."""
    folder = read_settings(arguments)
    stop = StopFlag()
    device = distributed.init_distributed(arguments.device)
    task = load(arguments)
    trainer = Trainer(
        build(arguments, task), task, config_of(arguments), arguments.configuration, seed=arguments.seed, device=device
    )
    checkpoints = folder / "checkpoints"
    trainer.load(checkpoints)
    monitor = make_monitor(folder, trainer, arguments) if trainer.rank == 0 else None
    stopped = False
    while trainer.epoch < arguments.epochs and not stopped:
        line = {"epoch": trainer.epoch, **trainer.train_epoch(), **trainer.evaluate()}
        stopped = trainer.any_worker(stop.requested)
        if monitor:
            monitor.show(line, loss=f"{line['loss']:.4f}", s=f"{line['seconds']:.2f}")
        if stopped or trainer.epoch == arguments.epochs or trainer.epoch % arguments.save_every == 0:
            trainer.save(checkpoints)
    if monitor:
        monitor.finish("interrupted, --resume goes on" if stopped else "finished")
    distributed.leave_distributed()
    return 0


def make_monitor(folder: Path, trainer: Trainer, arguments: argparse.Namespace) -> Monitor:
    stack = trainer.engine.module.stack
    parameters = sum(p.numel() for p in trainer.engine.module.parameters())
    title = (
        f"{arguments.experiment}: {arguments.layers} layers of width {stack.head.in_features}, {parameters} "
        f"parameters, {trainer.world} {'workers' if trainer.world > 1 else 'worker'}"
    )
    objective = trainer.task.objective
    return Monitor(
        folder, title, epochs=arguments.epochs, first_epoch=trainer.epoch, metric=objective.metric,
        higher=objective.higher,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
