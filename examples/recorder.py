"""What a training run leaves behind: runs/<name>/ with configuration, metrics, plot and checkpoints."""

from __future__ import annotations

import json
import os
import tempfile
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

    def plot(self, title: str, *, metric: str = "accuracy", training: str = "training (pipelined)") -> Path:
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
