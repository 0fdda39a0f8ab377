"""What a training run leaves behind: runs/<name>/ with configuration, metrics, plot and checkpoints."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Replace a file by its new content, whole or not at all."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


class Recorder:
    """Metrics as JSON lines, one per epoch; a resumed run drops the lines that the checkpoint does not know."""

    def __init__(self, folder: Path, *, first_epoch: int) -> None:
        self.folder = folder
        self._path = folder / "metrics.jsonl"
        kept = [line for line in self.read() if line["epoch"] < first_epoch]
        write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def read(self) -> list[dict[str, Any]]:
        """All lines so far; one that a killed run left half written is none."""
        if not self._path.exists():
            return []
        with self._path.open() as file:
            return [json.loads(line) for line in file if line.endswith("\n")]

    def add(self, **values: Any) -> None:
        """Append one line."""
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def plot(self, title: str, *, metric: str = "accuracy", training: str = "training") -> Path:
        """Draw loss, metric and epoch time over the epochs into plot.png; ``training`` labels what has no split."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        lines = self.read()
        figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), constrained_layout=True)
        _curve(axes[0], lines, ["loss", "val_loss"], "loss", training)
        axes[0].set_yscale("log")
        _curve(axes[1], lines, [metric, f"val_{metric}", f"test_{metric}"], metric.replace("_", " "), training)
        _curve(axes[2], lines, ["seconds"], "seconds per epoch", training)
        axes[2].set_ylim(bottom=0)
        figure.suptitle(title)
        path = self.folder / "plot.png"
        partial = self.folder / ".plot.partial.png"
        figure.savefig(partial, dpi=120)
        plt.close(figure)
        os.replace(partial, path)
        return path


def _curve(axis: Any, lines: list[dict[str, Any]], names: list[str], label: str, training: str) -> None:
    for name in names:
        points = [(line["epoch"], line[name]) for line in lines if name in line]
        if points:
            shown = name.split("_")[0] if name.startswith(("val_", "test_")) else training
            axis.plot(*zip(*points), label=shown, linewidth=1.4)
    axis.set(xlabel="epoch", ylabel=label)
    axis.grid(alpha=0.3)
    if len(names) > 1:
        axis.legend()


class Monitor:
    """Worker 0's view of a run: progress bar, metrics, the best epoch, plot and status.

    Args:
        folder: of the run.
        title: of the plot.
        epochs: of the whole run.
        first_epoch: of this part of it.
        metric: name behind val_ and test_ in the lines.
        higher: whether more of the metric is better.
        training: label of the training curves.
        steps_per_epoch: where the bar counts the steps that ``advance`` tells of; None for a bar of epochs.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        *,
        epochs: int,
        first_epoch: int,
        metric: str = "accuracy",
        higher: bool = True,
        training: str = "training",
        steps_per_epoch: int | None = None,
    ) -> None:
        from tqdm import tqdm

        self._recorder = Recorder(folder, first_epoch=first_epoch)
        self._title, self._metric, self._training = title, metric, training
        self._sign = 1 if higher else -1
        self._best: dict[str, float] = {}
        for line in self._recorder.read():  # a resumed run knows the best of its earlier part
            self._remember(line)
        print(f"{title} -> {folder}", flush=True)
        interval = 0.5 if sys.stderr.isatty() else 5.0
        self._counts_steps, each = steps_per_epoch is not None, steps_per_epoch or 1
        unit = "step" if self._counts_steps else "epoch"
        self._bar = tqdm(total=epochs * each, initial=first_epoch * each, unit=unit, mininterval=interval)
        self._shown: dict[str, str] = {}

    def advance(self, **shown: str) -> None:
        """One step, shown beside what the last epoch left on the bar."""
        self._bar.set_postfix(**self._shown | shown, refresh=False)
        self._bar.update()

    def show(self, line: dict[str, Any], **shown: str) -> None:
        """Record one epoch; ``shown`` stands on the progress bar beside the best validation metric."""
        line = line | {"time": round(time.time(), 3)}
        self._remember(line)
        self._recorder.add(**line)
        self._shown = shown | {"val": f"{self._best.get(self._val, float('nan')):.3f}"}
        if not self._counts_steps:
            self.advance()

    @property
    def _val(self) -> str:
        return f"val_{self._metric}"

    def _remember(self, line: dict[str, Any]) -> None:
        if self._val not in line:
            return
        if not self._best or self._sign * line[self._val] > self._sign * self._best[self._val]:
            self._best = {key: line[key] for key in ("epoch", self._val, f"test_{self._metric}") if key in line}

    def finish(self, state: str) -> None:
        """Write plot and status."""
        self._bar.close()
        self._recorder.plot(self._title, metric=self._metric, training=self._training)
        if self._best:
            scores = ", ".join(f"{key} {value:.4f}" for key, value in self._best.items() if key != "epoch")
            print(f"best validation at epoch {self._best['epoch']}: {scores}", flush=True)
        status = {"state": state, "best": self._best}
        write_whole(self._recorder.folder / "status.json", json.dumps(status, indent=1) + "\n")


def new_run(root: Path, name: str | None, default: str) -> Path:
    """A new folder for a run: ``name``, or ``default`` with the first free number behind it."""
    if name is not None:
        folder = root / name
        if folder.exists():
            raise ValueError(f"new_run: name must be new (or use --resume), got the existing run {name!r}")
        folder.mkdir(parents=True)
        return folder
    number = 1
    while (folder := root / (default if number == 1 else f"{default}-{number}")).exists():
        number += 1
    folder.mkdir(parents=True)
    return folder
