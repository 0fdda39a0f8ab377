"""Workers of the training example killed at random moments: how the job ends, and whether the run goes on as if not."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path

import harness

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from killed_worker import Kill, kill_at_moments

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "train_gnn.py"
CAPABILITY = "Faults"
MOMENTS = ("training", "checkpoint", "training", "between epochs", "start")
LIMIT = 30.0  # seconds


def command(runs: Path, num_workers: int) -> list[str]:
    sizes = ["--layers", "6", "--hidden", "32", "--evaluate-every", "4", "--save-every", "3"]
    return [sys.executable, str(SCRIPT), "--runs", str(runs), "--name", "run", "--workers", str(num_workers), *sizes]


def losses(runs: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (runs / "run" / "metrics.jsonl").read_text().splitlines()]


def finish(job: list[str]) -> None:
    subprocess.run(job, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def interrupted_and_whole(num_workers: int, num_kills: int) -> tuple[list[Kill], bool]:
    """The kills of one run, and whether it has the losses of a run that nobody disturbed, in every bit."""
    with tempfile.TemporaryDirectory() as folder:
        hit, whole = Path(folder, "hit"), Path(folder, "whole")
        hit.mkdir()
        moments = list(islice(cycle(MOMENTS), num_kills))
        kills = kill_at_moments(command(hit, num_workers), hit, moments, num_workers=num_workers, seed=num_workers)
        newest = max(path.name for path in (hit / "run" / "checkpoints").iterdir() if path.name.startswith("epoch_"))
        epochs = str(int(newest.removeprefix("epoch_")) + 5)
        finish([*command(hit, num_workers), "--resume", "--epochs", epochs])
        finish([*command(whole, num_workers), "--epochs", epochs])
        return kills, losses(hit) == losses(whole) and len(losses(whole)) == int(epochs)


KILLED = "of 10 killed workers of {} stages: job ends within 30 s, names the worker, resumes to the bit"


def killed_workers(num_workers: int) -> harness.Figure:
    """SIGKILL at random moments: while it starts, in an epoch, between two, and while a checkpoint is written.

    The run is killed and resumed ten times; it counts only if its losses are then those of an undisturbed run.
    """
    kills, equal = interrupted_and_whole(num_workers, 10)
    fine = [kill for kill in kills if kill.seconds < LIMIT and kill.named and "Traceback" not in kill.log]
    for kill in kills:
        if kill not in fine:
            print(f"{kill.moment}, worker {kill.rank}, {kill.seconds:.1f} s:\n{kill.log}", file=sys.stderr)
    slowest = max(kill.seconds for kill in kills)
    detail = f"{len(fine)} ended as they should, the slowest in {slowest:.1f} s, losses "
    return harness.Figure(len(fine) if equal else 0, detail + ("equal" if equal else "differ"))


@harness.goal(CAPABILITY, KILLED.format(2), at_least=10, unit="", slow=True)
def killed_workers_of_2() -> harness.Figure:
    return killed_workers(2)


@harness.goal(CAPABILITY, KILLED.format(3), at_least=10, unit="", slow=True)
def killed_workers_of_3() -> harness.Figure:
    return killed_workers(3)


if __name__ == "__main__":
    harness.main()
