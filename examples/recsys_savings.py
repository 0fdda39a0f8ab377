"""What each technique of LiGNN saves, measured on this machine: one on at a time, then all."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recsys_trainer import EpochReport, Trainer, over_workers

__all__ = ["Setting", "as_dict", "measure", "table"]


@dataclass(frozen=True)
class Setting:
    """What is switched on.

    Args:
        fanouts: neighbours per node, with the share of the training that used them.
        slice_size: events per query for their member.
        producers: processes that make batches ahead, through the shared-memory queue.
        num_batches: mini-batches per exchange of gradients.
    """

    fanouts: tuple[tuple[int, float], ...]
    slice_size: int = 1
    producers: int = 0
    num_batches: int = 1


@dataclass(frozen=True)
class Cost:
    """Per 1000 examples of all workers: seconds, queries, edges, bytes of gradients."""

    seconds: float
    queries: float
    edges: float
    num_bytes: float


def measure(
    trainer: Trainer,
    history: Sequence[int],
    chosen: Setting,
    *,
    set_num_batches: Callable[[int], None],
    dense_bytes: int,
    num_batches: int = 8,
    rounds: int = 3,
) -> list[tuple[str, Cost]]:
    """Train on with each technique alone, and with all, in turns; the weights of the run are changed by it.

    Args:
        trainer: of this worker; all workers call this together.
        history: fan-out of every epoch of the run.
        chosen: the techniques as the run used them.
        set_num_batches: tells the engine.
        dense_bytes: what the engine exchanges at a time.
        num_batches: mini-batches per measurement.
        rounds: measurements of every setting; the median counts.
    """
    counts = Counter(history)
    used = tuple((fanout, number / len(history)) for fanout, number in sorted(counts.items()))
    nothing = Setting(((max(counts), 1.0),))
    settings = {
        "none": nothing,
        "grouping and slicing": replace(nothing, slice_size=chosen.slice_size),
        "shared-memory queue": replace(nothing, producers=chosen.producers),
        "local gradient aggregation": replace(nothing, num_batches=chosen.num_batches),
        "adaptive fan-out": replace(nothing, fanouts=used),
        "all": replace(chosen, fanouts=used),
    }
    found: dict[str, list[Cost]] = {name: [] for name in settings}
    for _ in range(rounds):
        for name, setting in settings.items():
            trainer.aggregate_every(setting.num_batches)
            set_num_batches(setting.num_batches)
            found[name].append(_cost(trainer, setting, num_batches, dense_bytes))
    return [(name, min(costs, key=_distance_to_median(costs))) for name, costs in found.items()]


def _distance_to_median(costs: Sequence[Cost]) -> Callable[[Cost], float]:
    median = statistics.median(cost.seconds for cost in costs)
    return lambda cost: abs(cost.seconds - median)


def _cost(trainer: Trainer, setting: Setting, num_batches: int, dense_bytes: int) -> Cost:
    """The mean over the fan-outs, weighted by their share."""
    total = [0.0] * 4
    for fanout, share in setting.fanouts:
        with trainer.loader("train", fanout, setting.slice_size, setting.producers) as loader:
            trainer.epoch(loader, setting.num_batches)  # starts the producers
            reports: list[EpochReport] = over_workers(trainer.epoch(loader, num_batches))
        thousands = sum(report.num_examples for report in reports) / 1000
        exchanges = num_batches // setting.num_batches
        values = (
            max(report.seconds for report in reports),
            2 * sum(report.num_slices for report in reports),  # one for the member, one for the items
            sum(report.num_edges for report in reports),
            sum(report.num_bytes + exchanges * dense_bytes for report in reports),
        )
        total = [a + share * value / thousands for a, value in zip(total, values)]
    return Cost(*total)


def table(costs: list[tuple[str, Cost]]) -> str:
    """As Markdown: per 1000 examples, with the share of each that is saved against none."""
    lines = ["| per 1000 examples | seconds | queries | edges sampled | MB exchanged |", "|---|---|---|---|---|"]
    base = costs[0][1]
    for name, cost in costs:
        lines.append(
            f"| {name} | {_cell(cost.seconds, base.seconds, '.3f')} | {_cell(cost.queries, base.queries, '.0f')} | "
            f"{_cell(cost.edges, base.edges, ',.0f')} | {_cell(cost.num_bytes / 1e6, base.num_bytes / 1e6, '.2f')} |"
        )
    return "\n".join(lines)


def _cell(value: float, base: float, form: str) -> str:
    saved = 1 - value / base if base else 0.0
    return f"{value:{form}} ({saved:+.0%} saved)" if abs(saved) >= 0.005 else f"{value:{form}}"


def as_dict(costs: list[tuple[str, Cost]]) -> dict[str, Any]:
    """For the metrics."""
    return {name: vars(cost) for name, cost in costs}
