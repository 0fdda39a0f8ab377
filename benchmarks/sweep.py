"""Every operator over a decade or more of sizes: share of the floor, the strongest rival, the stock path, growth.

    make bench                      all operators, under 20 minutes on two cores; writes page, plots and CSV
    make bench-full                 more and larger sizes, and two threads
    python benchmarks/sweep.py aggregate k_hop     some operators, to the terminal
    gossamer bench aggregate k_hop                 the same, where Gossamer is installed

A sweep is a function from a size to a ``Problem``: the call, what it costs at least, and other ways to compute it.
They take turns (see timing.py); a way that is not installed is left out with a word. Sweeps stand in sweep_*.py.
"""

from __future__ import annotations

import argparse
import importlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import harness
from cost import Cost
from timing import middle_half

__all__ = ["Point", "Problem", "Sweep", "all_sweeps", "measure", "optional", "sweep"]

SECONDS_PER_POINT = {False: 2.0, True: 6.0}  # by --full
REPEATS = 15


@dataclass
class Problem:
    """One operator at one size.

    Attributes:
        ours: the call.
        cost: its least bytes and FLOPs.
        stock: the plain way in torch (or numpy, where torch has none), None where there is none.
        rivals: other ways by name, called in turns with ours; ``optional`` leaves out what is not installed.
        dtype: whose matrix products bound the FLOPs.
        check: compares ours with the others, before any timing; raises where they differ.
    """

    ours: Callable[[], Any]
    cost: Cost
    stock: Callable[[], Any] | None = None
    rivals: dict[str, Callable[[], Any]] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    check: Callable[[], None] | None = None


@dataclass(frozen=True)
class Sweep:
    """An operator, the axis along which it grows, and the problem at each size."""

    operator: str
    axis: str
    sizes: tuple[int, ...]
    full_sizes: tuple[int, ...]
    threads: bool
    problem: Callable[[int], Problem]


@dataclass(frozen=True)
class Point:
    """What was measured of one operator at one size; ratios are of another way's time over ours."""

    operator: str
    axis: str
    size: int
    threads: int
    seconds: float
    low: float
    high: float
    bytes: int
    flops: int
    floor_share: float
    stock_ratio: float | None
    rival: str
    rival_ratio: float | None

    @property
    def intensity(self) -> float:
        """FLOPs per byte of the least traffic."""
        return self.flops / self.bytes


_SWEEPS: list[Sweep] = []


def sweep(
    operator: str, axis: str, sizes: Sequence[int], *, full: Sequence[int] = (), threads: bool = False
) -> Callable[[Callable[[int], Problem]], Callable[[int], Problem]]:
    """Register a problem.

    Args:
        operator: name of the operator.
        axis: what the size counts.
        sizes: over a decade or more.
        full: further sizes of ``make bench-full``.
        threads: the operator uses several threads: the last size is measured with two as well.
    """

    def register(problem: Callable[[int], Problem]) -> Callable[[int], Problem]:
        _SWEEPS.append(Sweep(operator, axis, tuple(sizes), tuple(full), threads, problem))
        return problem

    return register


def optional(rivals: Callable[[], dict[str, Callable[[], Any]]]) -> dict[str, Callable[[], Any]]:
    """The rivals, or none and a word on stderr where what they need is not installed."""
    try:
        return rivals()
    except (ImportError, harness.NotHere) as missing:
        print(f"{'':>14}left out: {str(missing).splitlines()[0]}", file=sys.stderr, flush=True)
        return {}


def all_sweeps() -> list[Sweep]:
    """Every sweep of benchmarks/sweep_*.py."""
    for script in sorted(Path(__file__).resolve().parent.glob("sweep_*.py")):
        importlib.import_module(script.stem)
    return list(_SWEEPS)


def measure(sweep: Sweep, size: int, threads: int, max_seconds: float) -> Point:
    """Time one problem and everything it is compared with, in turns."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    problem = sweep.problem(size)
    if problem.check is not None:
        problem.check()
    others = {**({"stock": problem.stock} if problem.stock else {}), **problem.rivals} if threads == 1 else {}
    times = harness.compare({"ours": problem.ours, **others}, repeats=REPEATS, warmup=1, max_seconds=max_seconds)
    ours = times["ours"].median
    low, high = middle_half(times["ours"].samples)
    ratios = {name: times.ratio(name, "ours") for name in others}
    best = min(ratios, key=lambda name: ratios[name], default="")
    floor = problem.cost.seconds(harness.bandwidth(), peak(problem.dtype)) if threads == 1 else math.nan
    return Point(
        sweep.operator, sweep.axis, size, threads, ours, low, high, problem.cost.bytes, problem.cost.flops,
        floor / ours, ratios.get("stock"), best, ratios.get(best),
    )  # fmt: skip


def peak(dtype: torch.dtype) -> float:
    """FLOP per second of matrix products; narrow types may be computed as float32 where that is faster."""
    return max(harness.peak_flops(dtype), harness.peak_flops() if dtype != torch.float64 else 0.0)


def points(sweep: Sweep, *, full: bool) -> Iterator[Point]:
    """All sizes with one thread, then the largest with two."""
    sizes = sweep.sizes + (sweep.full_sizes if full else ())
    budget = SECONDS_PER_POINT[full]
    for size in sizes:
        yield measure(sweep, size, 1, budget)
    if sweep.threads:
        yield measure(sweep, sizes[-1], 2, budget)


def exponent(points: Sequence[Point]) -> float:
    """Slope of log(seconds) over log(size), least squares."""
    x = [math.log(p.size) for p in points]
    y = [math.log(p.seconds) for p in points]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def line(point: Point) -> str:
    """One point for a terminal."""
    ratio = f"{point.rival_ratio:7.2f}x {point.rival}" if point.rival_ratio is not None else "        -"
    share = "     -" if math.isnan(point.floor_share) else f"{point.floor_share:6.0%}"
    size = f"{point.axis} {point.size}" + (f", {point.threads} threads" if point.threads > 1 else "")
    return f"{point.operator:<26}{size:<24}{point.seconds * 1e3:10.3f} ms {share} of the floor {ratio}"


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for an unknown operator."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*", help="only these (default: all)")
    parser.add_argument("--full", action="store_true", help="more and larger sizes")
    parser.add_argument("--list", action="store_true", help="name the operators and stop")
    parser.add_argument("--csv", type=Path, metavar="PATH", help="write the points to this file")
    parser.add_argument("--write", action="store_true", help="in a checkout: write the page, its plots and the CSV")
    options = parser.parse_args(arguments)
    sweeps = {s.operator: s for s in all_sweeps()}
    if unknown := set(options.operators) - set(sweeps):
        parser.error(f"no sweep of {' '.join(sorted(unknown))}; --list names them")
    chosen = [s for s in sweeps.values() if not options.operators or s.operator in options.operators]
    if options.list:
        print("\n".join(f"{s.operator:<26}{s.axis}: {', '.join(map(str, s.sizes))}" for s in chosen))
        return 0
    measured = measure_all(chosen, full=options.full)
    if options.csv:
        harness.save_csv(measured, options.csv)
    if options.write:
        from sweep_report import write

        print("\n".join(f"written: {path}" for path in write(measured)))
    return 0


def measure_all(sweeps: Sequence[Sweep], *, full: bool) -> list[Point]:
    """Every point of the sweeps, printed as it comes."""
    print(harness.environment_line(), flush=True)
    start, measured = time.perf_counter(), []
    for number, each in enumerate(sweeps, 1):
        for point in points(each, full=full):
            measured.append(point)
            print(f"[{number:>2}/{len(sweeps)}] {line(point)}", flush=True)
    print(f"{len(measured)} points in {time.perf_counter() - start:.0f} s")
    return measured


if __name__ == "__main__":
    # As a module of its own name, so that sweep_*.py register with the same list.
    import sweep as itself

    sys.exit(itself.main())
