"""What the scripts that write docs/reproductions share: runs kept as JSON lines, pages and plots written whole."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PAGES = Path(__file__).resolve().parent.parent / "docs" / "reproductions"
RESULTS = Path(__file__).resolve().parent / "results"


class Runs:
    """Finished runs of one experiment, in benchmarks/results/NAME.jsonl: an interrupted command goes on there."""

    def __init__(self, name: str) -> None:
        self.path = RESULTS / f"{name}.jsonl"

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def add(self, run: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(run) + "\n")


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and, of several values, standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.{digits}f}"


def write_page(name: str, text: str, *, folder: Path = PAGES) -> Path:
    """Write docs/reproductions/NAME.md (or into another folder), whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{name}.md"
    partial = page.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, page)
    return page


@contextmanager
def plot(name: str, *, folder: Path = PAGES, **options: Any) -> Iterator[tuple[Any, Any]]:
    """Figure and axes of docs/reproductions/NAME.png, drawn in the block; ``options`` are those of plt.subplots."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(constrained_layout=True, **options)
    yield figure, axes
    path = folder / f"{name}.png"
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=110)
    plt.close(figure)
    os.replace(partial, path)
