"""Run a script with several local workers under the ``deepspeed`` launcher, and end it in an orderly way."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gossamer._arguments import typed

if TYPE_CHECKING:
    import psutil

__all__ = ["free_port", "is_worker", "launch", "require_port"]


_POLL_SECONDS = 0.2


def is_worker() -> bool:
    """True in a process that a launcher has started as one of several workers."""
    return "RANK" in os.environ


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def require_port(port: int) -> int:
    """The port itself, if it can be listened on.

    Raises:
        ValueError: if another process uses it.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"launch: port must be in [1, 65535], got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise ValueError(f"launch: port must be free, got {port} ({error})") from error
    return port


@typed
def launch(script: str, arguments: Sequence[str], *, num_workers: int, port: int | None = None) -> int:
    """Start ``script`` as ``num_workers`` local workers and wait for them.

    Ctrl-C and SIGTERM reach worker 0 as one SIGTERM, so that the workers can agree to stop, save and leave; a second
    signal ends them at once.

    Args:
        script: path of a Python file; its workers find RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
        arguments: command line of the script.
        num_workers: at least 1.
        port: TCP port for the rendezvous; None takes a free one.

    Returns:
        The exit code: 0, that of a failed worker, or 128 + signal number.

    Raises:
        ValueError: if the port is in use, num_workers is below 1 or deepspeed is not installed.
    """
    if num_workers < 1:
        raise ValueError(f"launch: num_workers must be at least 1, got {num_workers}")
    port = free_port() if port is None else require_port(port)
    command = [
        *_launcher(), "--num_accelerators", str(num_workers), "--master_addr", "127.0.0.1", "--master_port", str(port),
        "--no_local_rank", "--log_level", "error", script, *arguments,
    ]  # fmt: skip
    return _Job(command, _environment(), num_workers).wait()


def _launcher() -> list[str]:
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError("launch: deepspeed must be installed (pip install 'gossamer[deepspeed]'), got no such package")
    path = os.path.join(sysconfig.get_path("scripts"), "deepspeed")
    found = path if os.path.exists(path) else shutil.which("deepspeed")
    return [sys.executable, found] if found else [sys.executable, "-m", "deepspeed.launcher.runner"]


def _environment() -> dict[str, str]:
    """One thread per worker unless the user says otherwise, and DeepSpeed told where there is no GPU."""
    import torch

    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if not torch.cuda.is_available():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return environment


class _Job:
    """A running launcher, in a session of its own so that the terminal's Ctrl-C reaches only this process."""

    def __init__(self, command: list[str], environment: dict[str, str], num_workers: int) -> None:
        self._num_workers = num_workers
        self._workers: dict[int, psutil.Process] = {}
        self._signal: int | None = None
        self._process = subprocess.Popen(command, env=environment, start_new_session=True)

    def wait(self) -> int:
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            first = self._watch()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._kill()
        code = self._process.returncode
        if self._signal is not None:
            return 128 + self._signal
        if code != 0 and first is not None:
            print(f"worker {first} was the first to end; the job ended with it", file=sys.stderr)
        return 128 - code if code < 0 else code

    def _watch(self) -> int | None:
        """Wait for the launcher; returns the worker that ended first, where it was seen."""
        first = None
        while self._process.poll() is None:
            if first is None:
                ended = [rank for rank, worker in self._find_workers().items() if not _alive(worker)]
                first = ended[0] if len(ended) == 1 else None
            time.sleep(_POLL_SECONDS)
        return first

    def _find_workers(self) -> dict[int, psutil.Process]:
        """Worker processes by rank, looked for until all are found."""
        if len(self._workers) == self._num_workers:
            return self._workers
        import psutil  # comes with deepspeed

        try:
            children = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.Error:
            return self._workers
        for process in children:
            try:
                rank = process.environ().get("RANK")
            except psutil.Error:
                continue
            if rank is not None:
                self._workers.setdefault(int(rank), process)
        return self._workers

    def _stop(self, number: int, frame: object) -> None:
        if self._signal is not None:
            self._kill()
            return
        self._signal = number
        print("\nstopping after this epoch (once more ends at once)", file=sys.stderr, flush=True)
        worker = self._find_workers().get(0)
        if worker is None or not _alive(worker):
            self._kill()
        else:
            worker.terminate()

    def _kill(self) -> None:
        """End whatever is left of the job."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def _alive(process: psutil.Process) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
