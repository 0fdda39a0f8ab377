"""The frame of a training script: it starts itself under the deepspeed launcher and keeps a folder per run."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gossamer import distributed
from gossamer.distributed.channel import first_line, lost_connection
from gossamer.distributed.launcher import is_worker, launch, require_port

from recorder import new_run, write_whole

__all__ = ["StopFlag", "add_run_options", "open_run", "read_config", "read_settings", "run"]


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of every training script: workers, device, folder of the run."""
    run = parser.add_argument_group("run")
    run.add_argument("--workers", type=int, default=2, help="local workers")
    run.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    run.add_argument("--port", type=int, default=None, help="TCP port for the rendezvous (default: a free one)")
    run.add_argument("--runs", default="runs", help="folder of all runs")
    run.add_argument("--name", default=None, help="folder of this run (default: from data set and model)")
    run.add_argument("--resume", action="store_true", help="go on with --name, or with the newest run")


def run(
    script: str,
    arguments: argparse.Namespace,
    prepare: Callable[[argparse.Namespace], Path],
    train: Callable[[argparse.Namespace], int],
) -> int:
    """Prepare a run and start ``script`` again as its workers; in a worker, train.

    Args:
        script: path of the calling script.
        arguments: its command line, with add_run_options.
        prepare: checks what can be checked before any worker starts, and returns the run's folder.
        train: what every worker runs; it gets the settings that ``prepare`` left in the folder.

    Returns:
        The exit code.
    """
    if is_worker():
        rank = int(os.environ["RANK"])
        try:
            with naming_lost_worker(rank), naming_lack_of_memory(rank):
                return train(arguments)
        except (distributed.WorkerLost, MemoryError, OSError) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            time.sleep(2.0)  # so that the launcher sees the worker that died before it sees this one leave
            return 1
    try:
        folder = prepare(arguments)
        where = ["--runs", str(folder.parent), "--name", folder.name]
        code = launch(script, where, num_workers=arguments.workers, port=arguments.port)
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return _conclude(folder, code)


@contextmanager
def naming_lost_worker(rank: int) -> Iterator[None]:
    """Turn the error of a broken connection into one that says what to do."""
    try:
        yield
    except distributed.WorkerLost:
        raise
    except RuntimeError as error:
        reason = lost_connection(error)
        if reason is None:
            raise
        raise distributed.WorkerLost(
            f"worker {rank}: lost the connection to another worker; it died or left the job. "
            f"Resume from the last checkpoint. ({reason})"
        ) from error


@contextmanager
def naming_lack_of_memory(rank: int) -> Iterator[None]:
    """Turn torch's error, and Python's, into one that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = first_line(error)
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in reason:
            raise
        raise MemoryError(
            f"worker {rank}: the memory of this machine does not suffice. Use more workers, a smaller model or batch, "
            f"or recomputation where the script has it; then resume from the last checkpoint. ({reason})"
        ) from error


def open_run(
    arguments: argparse.Namespace,
    *,
    default_epochs: int,
    complete: Callable[[argparse.Namespace], None],
    check: Callable[[argparse.Namespace], None],
    default_name: Callable[[argparse.Namespace], str],
) -> Path:
    """The folder of a new run, or of the one to resume, with all settings in its config.json and in ``arguments``.

    Args:
        arguments: the command line; --resume takes everything but the number of epochs from the run.
        default_epochs: where neither the command line nor ``complete`` says how many.
        complete: adds what a new run keeps besides the command line.
        check: raises for settings that could not start, before anything is written.
        default_name: folder of a new run without --name.
    """
    root = Path(arguments.runs)
    if arguments.resume:
        folder = root / arguments.name if arguments.name else _newest(root)
        saved = json.loads((folder / "config.json").read_text())
        kept = {"port": arguments.port, "resume": True, "runs": arguments.runs}
        epochs = saved["epochs"] if arguments.epochs is None else arguments.epochs
        arguments.__dict__.update(saved | kept | {"epochs": epochs})
    else:
        complete(arguments)
        arguments.epochs = default_epochs if arguments.epochs is None else arguments.epochs
    if arguments.port is not None:
        require_port(arguments.port)
    check(arguments)
    if not arguments.resume:
        folder = new_run(root, arguments.name, default_name(arguments))
    settings = {key: value for key, value in vars(arguments).items() if key not in ("resume", "port")}
    write_whole(folder / "config.json", json.dumps(settings, indent=1) + "\n")
    (folder / "status.json").unlink(missing_ok=True)
    return folder


def read_settings(arguments: argparse.Namespace) -> Path:
    """In a worker: the run's folder, with its settings put into ``arguments``."""
    folder = Path(arguments.runs) / arguments.name
    arguments.__dict__.update(json.loads((folder / "config.json").read_text()))
    return folder


def read_config(path: str) -> dict[str, Any]:
    """A DeepSpeed configuration from a JSON file."""
    try:
        config = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"read_config: config must be JSON, got {error} in {path}") from error
    if not isinstance(config, dict):
        raise ValueError(f"read_config: config must be a JSON object, got {type(config).__name__} in {path}")
    return config


class StopFlag:
    """Set by Ctrl-C or SIGTERM; the workers agree on it at the end of an epoch."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._request)

    def _request(self, number: int, frame: object) -> None:
        self.requested = True


def _newest(root: Path) -> Path:
    runs = sorted(root.glob("*/config.json"), key=os.path.getmtime)
    if not runs:
        raise ValueError(f"open_run: resume must find a run, got none under {root}")
    return runs[-1].parent


def _conclude(folder: Path, code: int) -> int:
    """The launcher may exit with 0 though a worker was killed: believe only what worker 0 wrote."""
    status = folder / "status.json"
    if status.exists():
        print(f"{json.loads(status.read_text())['state']}: see {folder}")
        return code
    print(f"failed: a worker ended early (exit code {code}); {folder} holds what was saved", file=sys.stderr)
    return code or 1
