"""Timing by interleaved repeats, and the two floors (bytes per second, FLOP per second) of this machine."""

from __future__ import annotations

import gc
import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

__all__ = ["Comparison", "Figure", "Timing", "bandwidth", "compare", "peak_flops", "seconds"]

MIN_SAMPLE = 2e-4  # seconds: shorter functions are called several times per sample
MIN_REPEATS = 5


@dataclass(frozen=True)
class Figure:
    """What a goal measured: the number that is held against its bar, and a line that explains it."""

    value: float
    detail: str = ""


@dataclass
class Timing:
    """Seconds per call of one function, one entry per repeat."""

    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def minimum(self) -> float:
        return min(self.samples)

    @property
    def maximum(self) -> float:
        return max(self.samples)

    def __str__(self) -> str:
        return f"{format_seconds(self.median)} ({format_seconds(self.minimum)} .. {format_seconds(self.maximum)})"


class Comparison(Mapping[str, Timing]):
    """Timings of several functions that took turns; repeat i of one is paired with repeat i of another."""

    def __init__(self, timings: dict[str, Timing]) -> None:
        self.timings = timings

    def __getitem__(self, name: str) -> Timing:
        return self.timings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.timings)

    def __len__(self) -> int:
        return len(self.timings)

    def ratios(self, numerator: str, denominator: str) -> list[float]:
        """Time of one function over the time of another, per repeat."""
        return [a / b for a, b in zip(self[numerator].samples, self[denominator].samples)]

    def ratio(self, numerator: str, denominator: str) -> float:
        """Median of the pairwise ratios; ``ratio("peer", "ours")`` is how many times faster ours is."""
        return statistics.median(self.ratios(numerator, denominator))

    def figure(self, numerator: str, denominator: str, detail: str = "") -> Figure:
        """The ratio as a figure whose detail carries both times and the middle half of the ratios."""
        low, high = middle_half(self.ratios(numerator, denominator))
        times = ", ".join(f"{name} {format_seconds(self[name].median)}" for name in (denominator, numerator))
        text = f"{times}, ratio {low:.2f} .. {high:.2f}"
        return Figure(self.ratio(numerator, denominator), f"{detail}; {text}" if detail else text)


def compare(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 20,
    warmup: int = 2,
    max_seconds: float = 60.0,
    wall: bool = False,
) -> Comparison:
    """Time functions in turns, so that a disturbance of the machine hits all of them alike.

    Args:
        functions: callables without arguments, by name.
        repeats: samples per function; fewer (at least 5) where they would take longer than ``max_seconds``.
        warmup: untimed calls of each function before.
        max_seconds: budget for all samples together.
        wall: always the wall clock (see ``seconds``).

    Returns:
        A mapping from name to ``Timing`` (``median``, ``minimum``, ``maximum``) with ``ratio(a, b)``.
    """
    calls = {}
    for name, function in functions.items():
        for _ in range(warmup):
            function()
        calls[name] = max(1, math.ceil(MIN_SAMPLE / seconds(function, wall=wall)))
    timings = {name: Timing() for name in functions}
    deadline = time.perf_counter() + max_seconds
    for repeat in range(repeats):
        if repeat >= MIN_REPEATS and time.perf_counter() > deadline:
            break
        for name, function in functions.items():
            timings[name].samples.append(seconds(function, calls[name], wall=wall))
    return Comparison(timings)


def seconds(function: Callable[[], Any], calls: int = 1, *, wall: bool = False) -> float:
    """Seconds per call, without the time in which the system ran somebody else.

    That is the CPU time of the process where one thread worked and never waited; with several threads, a GPU, or
    a wait (for a file, a lock, another process) it is the wall clock. ``wall`` asks for the wall clock always:
    for functions that wait by yielding the processor.
    """
    gc_was_on = gc.isenabled()
    gc.disable()
    try:
        waits, wall_start, cpu_start = _voluntary_waits(), time.perf_counter(), time.process_time()
        for _ in range(calls):
            function()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        cpu, elapsed = time.process_time() - cpu_start, time.perf_counter() - wall_start
    finally:
        if gc_was_on:
            gc.enable()
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_initialized() and _voluntary_waits() == waits
    return max((cpu if alone and not wall else elapsed) / calls, 1e-9)


@lru_cache
def _bandwidth(device: str, num_threads: int) -> float:
    size = 1 << (24 if device == "cpu" else 28)  # elements: 64 MiB and 1 GiB of float32, well beyond the caches
    a, b, c = (torch.ones(size, device=device) for _ in range(3))
    moves = {
        "copy": (2, lambda: c.copy_(a)),
        "add": (3, lambda: torch.add(a, b, out=c)),
        "sum": (1, lambda: a.sum()),
    }
    return max(4 * size * arrays / _best(function) for arrays, function in moves.values())


def bandwidth(device: str = "cpu") -> float:
    """Bytes per second that this process can move: the best of a copy, an addition and a sum of large arrays."""
    return _bandwidth(device, torch.get_num_threads())


@lru_cache
def _peak_flops(dtype: torch.dtype, device: str, num_threads: int) -> float:
    size = 1024 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / _best(lambda: a @ b)


def peak_flops(dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """FLOP per second of the best of several large matrix products in ``dtype``, measured in this process.

    A processor without arithmetic in a narrow type widens it: the peak is then that of float32, if that is higher.
    """
    types = {dtype, torch.float32} if dtype.itemsize < 4 else {dtype}
    return max(_peak_flops(each, device, torch.get_num_threads()) for each in types)


def format_seconds(value: float) -> str:
    """Three significant digits in s, ms or us."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def middle_half(values: list[float]) -> tuple[float, float]:
    """First and third quartile."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _best(function: Callable[[], Any], repeats: int = 10) -> float:
    first = seconds(function)
    return min(seconds(function) for _ in range(repeats if first < 0.5 else 1))


def _voluntary_waits() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
