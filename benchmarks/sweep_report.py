"""The page of ``make bench``: a table of all operators, three plots and the CSV behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import harness
from environment import environment_line
from reproduction import PAGES, RESULTS, plot, write_page
from sweep import Point, exponent

__all__ = ["write"]

NAME = "operators"

INTRODUCTION = """# Operators

Every operator over a decade or more of sizes, one thread. `make bench` measures this page anew, `make bench-full` with
more and larger sizes; `python benchmarks/sweep.py NAME` measures one operator.

- **Share of the floor**: the least time, max(bytes / bandwidth, FLOPs / peak), over the time taken. Bytes and FLOPs
  count every array once (benchmarks/cost.py), bandwidth and peak are measured in the same process. Data that a cache
  holds can beat the floor, which takes all bytes from memory; random reads of single numbers cannot reach it.
- **Stock, rival**: time of the plain way in torch, and of the fastest other way that runs here, over ours, in turns.
- **Growth**: the exponent b of time = a * size^b over all sizes of the operator, by least squares.
"""


def write(points: Sequence[Point]) -> list[Path]:
    """Write the page, its plots and the CSV; returns their paths."""
    one = [p for p in points if p.threads == 1]
    draw_shares(one)
    draw_ratios(largest(one))
    draw_growth(one)
    parts = [INTRODUCTION, *table(points), "", *pictures(), f"Measured on: {environment_line()}.", ""]
    page, table_file = write_page(NAME, "\n".join(parts)), RESULTS / f"{NAME}.csv"
    harness.save_csv(points, table_file)
    return [page, *(PAGES / f"{NAME}_{plot}.png" for plot in PLOTS), table_file]


PLOTS = {
    "roofline": "FLOP/s of each operator at its largest size over FLOPs per byte, under the two limits of the machine",
    "ratios": "time of the stock path and of the strongest rival over ours, at the largest size",
    "growth": "seconds over size, every operator",
}


def pictures() -> list[str]:
    return [f"![{words}]({NAME}_{plot}.png)\n" for plot, words in PLOTS.items()]


def by_operator(points: Sequence[Point]) -> dict[str, list[Point]]:
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.operator, []).append(point)
    return groups


def largest(points: Sequence[Point]) -> list[Point]:
    return [max(group, key=lambda p: p.size) for group in by_operator(points).values()]


def table(points: Sequence[Point]) -> Iterator[str]:
    """One line per operator: its largest size, and what all sizes say together."""
    yield "| operator | size | time (middle half) | of the floor | stock | strongest rival | growth | two threads |"
    yield "|---|---|---|---|---|---|---|---|"
    for operator, group in by_operator(points).items():
        one, two = ([p for p in group if p.threads == n] for n in (1, 2))
        last = max(one, key=lambda p: p.size)
        cells = [
            f"`{operator}`",
            f"{last.axis} {last.size}",
            f"{milliseconds(last.seconds)} ({milliseconds(last.low)} .. {milliseconds(last.high)})",
            f"{last.floor_share:.0%}",
            "-" if last.stock_ratio is None else f"{last.stock_ratio:.1f}x",
            "-" if last.rival in ("", "stock") else f"{last.rival_ratio:.1f}x, {last.rival}",
            f"{last.axis}^{exponent(one):.2f}, {last.axis} {one[0].size} .. {last.size}",
            f"{last.seconds / two[0].seconds:.2f}x" if two else "-",
        ]
        yield f"| {' | '.join(cells)} |"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def draw_shares(points: Sequence[Point]) -> None:
    """A roofline: operators without FLOPs stand at the left edge by their bytes alone."""
    bandwidth, peak = harness.bandwidth(), harness.peak_flops()
    with plot(f"{NAME}_roofline", figsize=(8, 5)) as (_, axes):
        intensities = [2.0**e for e in range(-5, 11)]
        axes.plot(
            intensities, [min(bandwidth * x, peak) / 1e9 for x in intensities], color="black", label="limit, fp32"
        )
        for point in largest(points):
            if point.flops and point.intensity >= intensities[0]:
                axes.scatter(point.intensity, point.flops / point.seconds / 1e9, s=18)
                axes.annotate(point.operator, (point.intensity, point.flops / point.seconds / 1e9), fontsize=7)
        axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="GFLOP/s")
        axes.legend()


def draw_ratios(points: Sequence[Point]) -> None:
    shown = [p for p in points if p.rival_ratio is not None]
    with plot(f"{NAME}_ratios", figsize=(8, 0.28 * len(shown) + 1)) as (_, axes):
        places = range(len(shown))
        axes.barh([y + 0.2 for y in places], [p.stock_ratio or math.nan for p in shown], 0.38, label="stock path")
        axes.barh([y - 0.2 for y in places], [p.rival_ratio for p in shown], 0.38, label="strongest way that runs here")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_yticks(list(places), [p.operator for p in shown], fontsize=8)
        axes.set(xscale="log", xlabel="time over ours")
        axes.invert_yaxis()
        axes.legend(fontsize=8)


def draw_growth(points: Sequence[Point]) -> None:
    with plot(f"{NAME}_growth", figsize=(8, 6)) as (_, axes):
        for number, (operator, group) in enumerate(by_operator(points).items()):
            style = ("-", "--", ":")[number // 10 % 3]
            label = f"{operator} ({group[0].axis}, {exponent(group):.2f})"
            axes.plot(
                [p.size / group[0].size for p in group], [p.seconds for p in group], style, marker=".", label=label
            )
        axes.set(xscale="log", yscale="log", xlabel="size over the smallest size", ylabel="seconds")
        axes.legend(fontsize=6, ncols=2)
