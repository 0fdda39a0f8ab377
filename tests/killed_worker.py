"""Kill workers of training scripts, and see how the others end and how the run goes on."""

import random
import subprocess
import time
from dataclasses import dataclass

import psutil

MOMENTS = ("start", "training", "between epochs", "checkpoint")
START_SECONDS = 8.0  # that a worker may take to start, of which "start" picks a moment
MANY = 1_000_000  # epochs, more than any run reaches


@dataclass(frozen=True)
class Kill:
    """How a job ended of which one worker was killed: seconds until all its processes were gone."""

    moment: str
    rank: int
    seconds: float
    log: str

    @property
    def named(self):
        """Whether what the job printed names the worker."""
        return f"worker {self.rank} was the first to end" in self.log


def log_of_a_killed_worker(command, folder, *, epochs):
    """Start a script whose run is folder/run, kill worker 1 after some epochs, and return what the job printed.

    The job must end by itself, with a message and without a traceback.
    """
    job = _start(command, folder)
    _wait_for(lambda: _num_lines(folder / "run") >= epochs, job, folder)
    workers_of(job)[1].kill()
    assert job.wait(timeout=120) != 0
    printed = (folder / "log.txt").read_text()
    assert "worker 0: lost the connection to another worker" in printed
    assert "Traceback" not in printed
    return printed


def kill_at_moments(command, folder, moments, *, num_workers, seed):
    """Start a script again and again in folder/run, each time killing a random worker at such a moment.

    Args:
        command: that starts the run anew, without --epochs; it is resumed after the first kill.
        folder: --runs of the command, whose --name is run.
        moments: of MOMENTS, one per kill; where exactly is drawn.
        num_workers: of the command.
        seed: of the moments and workers.

    Returns:
        One Kill per moment.
    """
    chance, kills = random.Random(seed), []
    for moment in moments:
        again = ["--resume"] if (folder / "run").exists() else []
        job = _start([*command, *again, "--epochs", str(MANY)], folder)
        rank = chance.randrange(num_workers)
        _wait_for(lambda rank=rank, job=job: rank in workers_of(job), job, folder)
        workers = _wait_until(moment, job, folder, chance, num_workers)
        begin = time.monotonic()
        workers[rank].kill()
        code = job.wait(timeout=120)
        psutil.wait_procs(workers.values(), timeout=120)
        kills.append(Kill(moment, rank, time.monotonic() - begin, (folder / "log.txt").read_text()))
        assert code != 0, kills[-1]
        assert not any(process.is_running() for process in workers.values()), kills[-1]
    return kills


def workers_of(job):
    """Worker processes of a running job by rank."""
    found = {}
    for process in psutil.Process(job.pid).children(recursive=True):
        try:
            rank = process.environ().get("RANK")
        except psutil.Error:  # it ended, or has not begun
            continue
        if rank is not None:
            found.setdefault(int(rank), process)
    return found


def _start(command, folder):
    with open(folder / "log.txt", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def _wait_until(moment, job, folder, chance, num_workers):
    """Wait for a moment of this kind; the workers that are there."""
    run = folder / "run"
    if moment == "start":
        time.sleep(chance.uniform(0.0, START_SECONDS))
        return workers_of(job)
    _wait_for(lambda: len(workers_of(job)) == num_workers, job, folder)
    workers, begun = workers_of(job), time.time()
    _wait_for(lambda: _num_lines(run) > 0 and (run / "metrics.jsonl").stat().st_mtime > begun, job, folder)
    time.sleep(chance.uniform(0.0, 2.0))
    if moment == "between epochs":
        lines = _num_lines(run)
        _wait_for(lambda: _num_lines(run) != lines, job, folder, pause=0.0)
    elif moment == "checkpoint":
        _wait_for(lambda: any((run / "checkpoints").glob(".epoch_*.partial")), job, folder, pause=0.0)
        time.sleep(chance.uniform(0.0, 0.03))
    return workers


def _wait_for(condition, job, folder, *, pause=0.02):
    deadline = time.monotonic() + 240
    while not condition():
        assert job.poll() is None, (folder / "log.txt").read_text()
        assert time.monotonic() < deadline, "the job did not get going"
        time.sleep(pause)


def _num_lines(run):
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
