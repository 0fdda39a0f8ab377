"""Train a recommender as LiGNN does, on a temporal graph of members and items, with two local workers.

    python examples/train_recsys.py                                        # generated interactions
    python examples/train_recsys.py --ratings u.data --items u.item        # MovieLens
    python examples/train_recsys.py --resume --epochs 20                   # go on with the newest run

The script starts the deepspeed launcher itself. At the end it measures what each technique saves, and prints the table.
Everything about a run is left in runs/NAME; --resume takes all settings but the number of epochs from there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gossamer import distributed
from gossamer.distributed.checkpoint import find_checkpoint, write_checkpoint
from gossamer.graph import AdaptiveFanout, SampleLoader

from job import StopFlag, add_run_options, open_run, read_config, read_settings, run
from recorder import Monitor, write_whole
from recsys_data import Interactions, Task, generate, make_task, read_movielens
from recsys_savings import Setting, as_dict, measure, table
from recsys_trainer import EpochReport, Sizes, Trainer, deepspeed_engine, over_workers

HERE = Path(__file__).resolve().parent
BYTES = 4  # of a gradient


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--ratings", default=None, help="u.data or ratings.csv of MovieLens (default: generated)")
    data.add_argument("--items", default=None, help="u.item or movies.csv: genres as content")
    data.add_argument("--events", type=int, default=40_000, help="of the generated data")
    data.add_argument("--similar", type=int, default=10, help="neighbours by content of items that few have seen")
    model = parser.add_argument_group("model")
    model.add_argument("--hidden", type=int, default=32)
    model.add_argument("--dim", type=int, default=32, help="width of an embedding")
    model.add_argument("--id-dim", type=int, default=16, help="width of a row of the id table")
    model.add_argument("--history", type=int, default=20, help="events of a member that the model reads")
    model.add_argument("--future", type=int, default=5, help="events that the long-term loss foretells")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int, default=None, help="in all, resumed ones included (default 8)")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--config", default=str(HERE / "recsys.json"), help="DeepSpeed configuration (JSON)")
    lignn = parser.add_argument_group("techniques")
    lignn.add_argument("--slice", type=int, default=4, help="events of one member per query; 1 for no grouping")
    lignn.add_argument("--fanout", type=int, nargs=2, default=[2, 12], metavar=("FIRST", "FINAL"))
    lignn.add_argument("--stride", type=int, default=5, help="added to the fan-out where validation stops to gain")
    lignn.add_argument("--tolerance", type=float, default=0.003, help="gain of AUC that is none")
    lignn.add_argument("--producers", type=int, default=1, help="processes per worker that make batches; 0 for none")
    lignn.add_argument("--table-batches", type=int, default=8, help="mini-batches per row of the table; 0 for no table")
    add_run_options(parser)
    return parser.parse_args(arguments)


def main() -> int:
    return run(__file__, parse(), prepare, train)


def prepare(arguments: argparse.Namespace) -> Path:
    """Check what can be checked before any worker starts, and make or find the run's folder."""
    return open_run(
        arguments,
        default_epochs=8,
        complete=lambda new: setattr(new, "configuration", read_config(new.config)),
        check=check_plan,
        default_name=lambda new: "recsys-" + (Path(new.ratings).stem if new.ratings else "generated"),
    )


def check_plan(arguments: argparse.Namespace) -> None:
    """Raise ValueError or FileNotFoundError for a run that could not start."""
    for name in ("workers", "epochs", "slice", "stride", "future", "history", "dim", "hidden", "id_dim"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"train_recsys: {name} must be at least 1, got {getattr(arguments, name)}")
    for name in ("similar", "producers", "table_batches"):
        if getattr(arguments, name) < 0:
            raise ValueError(f"train_recsys: {name} must be at least 0, got {getattr(arguments, name)}")
    if arguments.items and not arguments.ratings:
        raise ValueError("train_recsys: items must come with ratings, got items alone")
    policy(arguments)
    task, sizes = make_task(load(arguments), num_similar=similar(arguments)), sizes_of(arguments)
    sizes.build(task, arguments.seed)
    batches = len(task.examples("val")) // sizes.batch_examples
    if batches < arguments.workers:
        raise ValueError(f"train_recsys: events must give every worker a batch of validation, got {batches} batches")


def load(arguments: argparse.Namespace) -> Interactions:
    if arguments.ratings:
        return read_movielens(arguments.ratings, arguments.items)
    if arguments.events < 1000:
        raise ValueError(f"train_recsys: events must be at least 1000, got {arguments.events}")
    return generate(num_events=arguments.events)


def similar(arguments: argparse.Namespace) -> int:
    """Densification needs content."""
    return 0 if arguments.ratings and not arguments.items else arguments.similar


def sizes_of(arguments: argparse.Namespace) -> Sizes:
    return Sizes(
        id_dim=arguments.id_dim, hidden=arguments.hidden, dim=arguments.dim, max_events=arguments.history,
        num_future=arguments.future,
        batch_examples=int(arguments.configuration.get("train_micro_batch_size_per_gpu", 256)),
    )  # fmt: skip


def policy(arguments: argparse.Namespace) -> AdaptiveFanout:
    start, final = arguments.fanout
    return AdaptiveFanout(start, arguments.stride, final, arguments.tolerance, 0.9)


class Job:
    """What one worker trains with, and what a checkpoint holds."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.rank, self.num_workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.task: Task = make_task(load(arguments), num_similar=similar(arguments))
        sizes = sizes_of(arguments)
        model, ids = sizes.build(self.task, arguments.seed)
        self.engine = deepspeed_engine(model, arguments.configuration)
        self.num_batches = self.engine.gradient_accumulation_steps()
        self.trainer = Trainer(
            self.task, sizes, self.engine, ids, num_batches=self.num_batches, seed=arguments.seed,
            rank=self.rank, world_size=self.num_workers,
        )  # fmt: skip
        self.policy = policy(arguments)
        self.history: list[int] = []  # the fan-out of every epoch
        start = self.policy.fanout
        self.batches: SampleLoader = self.trainer.loader("train", start, arguments.slice, arguments.producers)

    @property
    def epoch(self) -> int:
        return len(self.history)

    def train_epoch(self) -> tuple[EpochReport, dict[str, float]]:
        """Train, evaluate, and let the policy choose the fan-out of the next epoch."""
        fanout = self.policy.fanout
        self.batches.fanouts = [fanout] * self.trainer.sizes.hops
        report = _total(over_workers(self.trainer.epoch(self.batches)))
        val_auc, val_loss = self.trainer.evaluate(self.trainer.loader("val", fanout, 1))
        self.history.append(fanout)
        self.policy.update(val_auc)
        return report, {"val_auc": val_auc, "val_loss": val_loss, "fanout": fanout}

    def test(self) -> float:
        """AUC of the test events, with the present fan-out."""
        return self.trainer.evaluate(self.trainer.loader("test", self.policy.fanout, 1))[0]

    def savings(self) -> list[Any]:
        """The rows of the table."""
        micro = self.engine.train_micro_batch_size_per_gpu()

        def set_num_batches(count: int) -> None:
            self.engine.set_train_batch_size(count * micro * self.num_workers)

        chosen = Setting((), self.arguments.slice, self.arguments.producers, self.num_batches)
        num_batches = -(-self.arguments.table_batches // self.num_batches) * self.num_batches
        dense = sum(p.numel() for p in self.engine.module.parameters()) * BYTES if self.num_workers > 1 else 0
        return measure(
            self.trainer, self.history, chosen, set_num_batches=set_num_batches, dense_bytes=dense,
            num_batches=num_batches,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the job that reads it."""
        names = ("num_nodes", "num_edges")
        return {"epoch": self.epoch, "num_workers": self.num_workers, "seed": self.arguments.seed} | {
            name: getattr(self.task.graph, name) for name in names
        }

    def save(self, folder: Path) -> None:
        barrier = dist.barrier if dist.is_initialized() else lambda: None
        write_checkpoint(str(folder), self.describe(), self._write, is_first=self.rank == 0, barrier=barrier)

    def _write(self, path: str) -> None:
        self.engine.save_checkpoint(path, tag="deepspeed", save_latest=False)
        state = {"batches": self.batches.state_dict(), "history": self.history, "policy": asdict(self.policy)}
        torch.save(state, os.path.join(path, f"worker_{self.rank:02d}.pt"))
        if self.rank == 0:  # equal on all workers
            tables = {"ids": self.trainer.ids.state_dict(), "optimizer": self.trainer.ids_optimizer.state_dict()}
            torch.save(tables, os.path.join(path, "ids.pt"))

    def load(self, folder: Path) -> None:
        path, _ = find_checkpoint(str(folder), self.describe())
        self.engine.load_checkpoint(path, tag="deepspeed")
        state = torch.load(os.path.join(path, f"worker_{self.rank:02d}.pt"), weights_only=True)
        tables = torch.load(os.path.join(path, "ids.pt"), weights_only=True)
        self.trainer.ids.load_state_dict(tables["ids"])
        self.trainer.ids_optimizer.load_state_dict(tables["optimizer"])
        self.batches.load_state_dict(state["batches"])
        self.history, self.policy = state["history"], AdaptiveFanout(**state["policy"])


def _total(reports: list[EpochReport]) -> EpochReport:
    """Of all workers: the mean loss, the slowest time, the sum of the rest."""
    losses, *counts, seconds = zip(*(vars(report).values() for report in reports))
    return EpochReport(sum(losses) / len(losses), *(sum(count) for count in counts), max(seconds))


def train(arguments: argparse.Namespace) -> int:
    """What every worker runs."""
    folder = read_settings(arguments)
    stop = StopFlag()
    distributed.init_distributed("cpu" if arguments.device == "auto" else arguments.device)
    torch.set_num_threads(1)
    work(Job(arguments), folder, stop)
    distributed.leave_distributed()
    return 0


def work(job: Job, folder: Path, stop: StopFlag) -> None:
    """Train to the last epoch or the first signal; then measure what the techniques save."""
    arguments, checkpoints, stopped = job.arguments, folder / "checkpoints", False
    if distributed.find_latest(checkpoints):
        job.load(checkpoints)
    monitor = make_monitor(folder, job) if job.rank == 0 else None
    while job.epoch < arguments.epochs and not stopped:
        epoch = job.epoch
        trained, evaluation = job.train_epoch()
        if monitor:
            shown = {"loss": f"{trained.loss:.4f}", "fanout": str(evaluation["fanout"])}
            monitor.show({"epoch": epoch} | vars(trained) | evaluation, **shown)
        stopped = any(over_workers(stop.requested))
        job.save(checkpoints)
    test_auc = float("nan") if stopped else job.test()
    costs = job.savings() if arguments.table_batches and not stopped else []
    job.batches.close()
    if monitor:
        monitor.finish("interrupted, --resume goes on" if stopped else "finished")
        if not stopped:
            report(folder, test_auc, costs)


def make_monitor(folder: Path, job: Job) -> Monitor:
    task = job.task
    title = (
        f"{task.name}: {task.num_members} members, {task.graph.num_nodes - task.num_members} items, "
        f"{len(task.member)} events, {job.num_workers} {'workers' if job.num_workers > 1 else 'worker'}"
    )
    return Monitor(folder, title, epochs=job.arguments.epochs, first_epoch=job.epoch, metric="auc")


def report(folder: Path, test_auc: float, costs: list[Any]) -> None:
    """Print the score of the test events and the table, and keep both."""
    print(f"test AUC {test_auc:.4f}", flush=True)
    found = {"test_auc": test_auc, "savings": as_dict(costs)}
    write_whole(folder / "results.json", json.dumps(found, indent=1) + "\n")
    if costs:
        write_whole(folder / "savings.md", table(costs) + "\n")
        print(table(costs), flush=True)


if __name__ == "__main__":
    sys.exit(main())
