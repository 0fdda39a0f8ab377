"""The frame of every benchmark: goals with bars, run one by one, each measured now.

A benchmark script registers goals and ends with ``harness.main()``::

    @harness.goal("Aggregation", "SpMM fp32 F=64 against torch.sparse.mm", at_least=4.0, unit="x")
    def forward_f64() -> harness.Figure:
        times = harness.compare({"ours": ours, "torch": theirs})
        return times.figure("torch", "ours")

``python benchmarks/bench_x.py`` runs all goals of a script, ``python benchmarks/bench_x.py forward`` those whose
name contains "forward"; ``benchmarks/scoreboard.py`` runs every script.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from environment import environment, environment_line
from timing import Comparison, Figure, Timing, bandwidth, compare, peak_flops, seconds

__all__ = [
    "Comparison", "Figure", "Goal", "NotHere", "Row", "Timing", "bandwidth", "compare", "environment",
    "environment_line", "goal", "main", "peak_flops", "save_csv", "save_text", "seconds",
]  # fmt: skip

HELD, SHORT, MEASURED, NOT_HERE, FAILED = "held", "short", "measured", "not run here", "failed"


class NotHere(Exception):
    """Raised by a goal that cannot be measured on this machine; the message says what is missing."""


@dataclass(frozen=True)
class Goal:
    """One claim about speed, size or exactness, the bar it is held against, and the function that measures it."""

    name: str
    capability: str
    claim: str
    at_least: float | None
    at_most: float | None
    unit: str
    threads: int
    slow: bool
    gpu: bool
    measure: Callable[[], Figure]

    def bar(self) -> str:
        bounds = ((">=", self.at_least), ("<=", self.at_most))
        return " and ".join(f"{sign} {format_value(bound, self.unit)}" for sign, bound in bounds if bound is not None)

    def verdict(self, value: float) -> str:
        if self.at_least is None and self.at_most is None:
            return MEASURED
        above = self.at_least is None or value >= self.at_least
        below = self.at_most is None or value <= self.at_most
        return HELD if above and below else SHORT  # a NaN is short


@dataclass(frozen=True)
class Row:
    """One line of a report; ``value`` is None where nothing was measured."""

    capability: str
    name: str
    claim: str
    bar: str
    value: float | None
    unit: str
    verdict: str
    detail: str
    seconds: float

    def figure(self) -> str:
        return "-" if self.value is None else format_value(self.value, self.unit)


_GOALS: list[Goal] = []


def goal(
    capability: str,
    claim: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    unit: str = "x",
    threads: int = 1,
    slow: bool = False,
    gpu: bool = False,
) -> Callable[[Callable[[], Figure]], Callable[[], Figure]]:
    """Register a function as a goal.

    Args:
        capability: heading under which reports show the goal.
        claim: what is measured, against what, at which size.
        at_least: the figure must not be below this.
        at_most: the figure must not be above this; with neither bound the figure is only recorded.
        unit: of the figure and its bounds.
        threads: number of torch threads while the goal runs.
        slow: takes minutes; runs only with ``--slow``.
        gpu: needs a CUDA device.
    """

    def register(measure: Callable[[], Figure]) -> Callable[[], Figure]:
        _GOALS.append(Goal(measure.__name__, capability, claim, at_least, at_most, unit, threads, slow, gpu, measure))
        return measure

    return register


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the goals of the calling script; exit code 1 if one of them crashed."""
    options = _parse(arguments)
    goals = _selected(options)
    if options.rows_to is not None:
        _stream(goals, options)
        return
    rows = []
    for row in _rows(goals, options):
        rows.append(row)
        print(format_row(row), flush=True)
    print(environment_line())
    if options.csv:
        save_csv(rows, Path(options.csv))
    sys.exit(any(row.verdict == FAILED for row in rows))


def run_goal(goal: Goal, *, slow: bool) -> Row:
    """Measure one goal; a crash becomes a failed row, with its traceback on stderr."""
    start = time.perf_counter()
    value, detail = None, ""
    try:
        _check_runnable(goal, slow)
        torch.set_num_threads(goal.threads)
        os.environ["OMP_NUM_THREADS"] = str(goal.threads)  # for the processes that a goal starts
        figure = goal.measure()
        value, detail = float(figure.value), figure.detail
        verdict = goal.verdict(value)
    except NotHere as missing:
        verdict, detail = NOT_HERE, str(missing)
    except Exception as error:
        traceback.print_exc()
        verdict, detail = FAILED, f"{type(error).__name__}: {error}".splitlines()[0]
    elapsed = time.perf_counter() - start
    return Row(goal.capability, goal.name, goal.claim, goal.bar(), value, goal.unit, verdict, detail, elapsed)


def format_row(row: Row) -> str:
    """One row in two lines for a terminal."""
    bar = f" ({row.bar})" if row.bar else ""
    return f"{row.verdict:>12}  {row.figure():>10}{bar}  {row.capability}: {row.claim}  [{row.name}]" + (
        f"\n{'':>26}{row.detail}" if row.detail else ""
    )


def format_value(value: float, unit: str) -> str:
    """Four significant digits and the unit."""
    if math.isnan(value):
        return "nan"
    number = f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    return f"{number}{unit}" if unit in ("x", "%") else f"{number} {unit}".strip()


def save_csv(rows: Sequence[Any], path: Path) -> None:
    """Rows of one dataclass as CSV, after one comment line with the environment."""
    text = io.StringIO()
    text.write(f"# {environment_line()}\n")
    writer = csv.DictWriter(text, list(type(rows[0]).__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    save_text(text.getvalue(), path)


def save_text(text: str, path: Path) -> None:
    """A file, written whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the goals of this script.")
    parser.add_argument("names", nargs="*", help="run only goals whose name contains one of these")
    parser.add_argument("--slow", action="store_true", help="also run the goals that take minutes")
    parser.add_argument("--gpu-only", action="store_true", help="only the goals that need a GPU")
    parser.add_argument("--list", action="store_true", help="name the goals and stop")
    parser.add_argument("--csv", metavar="PATH", help="write the rows to this file")
    parser.add_argument("--rows-to", type=int, metavar="FD", help=argparse.SUPPRESS)  # for scoreboard.py
    return parser.parse_args(arguments)


def _selected(options: argparse.Namespace) -> list[Goal]:
    exact = {goal.name for goal in _GOALS} & set(options.names)  # a full name means that goal alone
    goals = [
        goal
        for goal in _GOALS
        if (not options.names or goal.name in exact or any(n in goal.name for n in options.names if n not in exact))
        and (goal.gpu or not options.gpu_only)
    ]
    if options.list:
        print("\n".join(f"{goal.name:<32} {goal.capability}: {goal.claim} {goal.bar()}" for goal in goals))
        sys.exit()
    if not goals and options.rows_to is None and options.names:
        sys.exit(f"no goal matches {' '.join(options.names)}; there are {', '.join(g.name for g in _GOALS)}")
    return goals


def _rows(goals: Sequence[Goal], options: argparse.Namespace) -> Iterator[Row]:
    for goal in goals:
        yield run_goal(goal, slow=options.slow)


def _stream(goals: Sequence[Goal], options: argparse.Namespace) -> None:
    """Tell scoreboard.py the plan, then every row as soon as it is there, as JSON lines."""
    with os.fdopen(options.rows_to, "w", buffering=1) as pipe:
        plan = [{"name": g.name, "capability": g.capability, "claim": g.claim, "bar": g.bar()} for g in goals]
        pipe.write(json.dumps({"plan": plan, "environment": environment()}) + "\n")
        for row in _rows(goals, options):
            pipe.write(json.dumps(asdict(row)) + "\n")


def _check_runnable(goal: Goal, slow: bool) -> None:
    if goal.slow and not slow:
        raise NotHere("slow: use --slow")
    if goal.gpu and not torch.cuda.is_available():
        raise NotHere("needs a GPU")
