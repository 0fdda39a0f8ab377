"""Batches of the recommender: slices of one member's events each, with their items, negatives and sequences.

A slice is up to g events of one member that follow each other. It costs one query for its member and one for its items,
positive and negative, all at the time just before its first event, so that nothing later is ever seen.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.graph import SampleLoader, event_sequences, group_and_slice, neighbor_sample
from gossamer.graph.loader_source import SampledBatch
from gossamer.graph.sampling import SampledSubgraph

from recsys_data import Task

__all__ = ["Slices", "cut_slices", "item_neighborhood", "make_loader", "num_edges"]


@dataclass(frozen=True)
class Slices:
    """Examples in slices of one member.

    Args:
        example: [num_slices, g], int64, numbers of events; -1 behind the last of a slice.
        member: [num_slices], int64.
        before: [num_slices], int64, the time just before the first event.
    """

    example: Tensor
    member: Tensor
    before: Tensor


def cut_slices(task: Task, examples: Tensor, slice_size: int) -> Slices:
    """Group the examples by member, in the order of time, and cut."""
    order, offsets = group_and_slice(task.member[examples], slice_size)
    sizes = offsets.diff()
    row = torch.arange(len(sizes)).repeat_interleave(sizes)
    table = torch.full((len(sizes), slice_size), -1, dtype=torch.int64)
    table[row, torch.arange(len(order)) - offsets[row]] = examples[order]
    return Slices(table, task.member[table[:, 0]], task.time[table[:, 0]] - 1)


@dataclass
class Companions:
    """The transform of the loader: what a batch of members needs besides their neighbourhoods.

    Events get one negative each, the item of another event, so that popular items are as common among the negatives
    as among the positives. Negatives of an evaluation are the same in every epoch.
    """

    task: Task
    slices: Slices
    max_events: int
    seed: int
    training: bool

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        at = batch["seed_index"]
        table = self.slices.example[at]
        row, place = (table >= 0).nonzero(as_tuple=True)
        example = table[row, place]
        draw = _mix(self.seed, int(batch["epoch"]) if self.training else 0, int(at[0]) if len(at) else 0)
        positive, negative = self.task.item[example], self._negatives(example, draw)
        before = self.slices.before[at]
        items = neighbor_sample(
            self.task.graph, torch.cat([positive, negative]), batch["fanouts"].tolist(), seed=draw,
            seed_time=before[row].repeat(2),
        )  # fmt: skip
        events = event_sequences(self.task.events, self.slices.member[at], before, self.max_events)
        return {
            "row": row,
            "positive": positive,
            "example": example,
            "event": events.node,
            "age": (before[:, None] - events.time).clamp(min=0),
            "num_events": events.num_events,
            **{f"item_{name}": getattr(items, name) for name in ("node", "row", "col")},
            "item_hops": torch.tensor([items.num_sampled_nodes, [0, *items.num_sampled_edges]]),
        }

    def _negatives(self, example: Tensor, draw: int) -> Tensor:
        g = torch.Generator().manual_seed(draw)
        history = self.task.bounds[1]  # items of the training events and before
        return self.task.item[torch.randint(history, example.shape, generator=g)]


def make_loader(
    task: Task,
    slices: Slices,
    fanouts: list[int],
    *,
    batch_size: int,
    max_events: int,
    seed: int,
    training: bool,
    **options: Any,
) -> SampleLoader:
    """A loader over slices; ``options`` are workers, rank and world size of SampleLoader."""
    companions = Companions(task, slices, max_events, seed, training)
    return SampleLoader(
        task.graph, slices.member, fanouts, batch_size=batch_size, seed=seed, shuffle=training,
        seed_time=slices.before, transform=companions, **options,
    )  # fmt: skip


def item_neighborhood(batch: SampledBatch) -> SampledSubgraph:
    """The neighbourhood of the items that the transform sampled: positives, then negatives."""
    names = ("node", "row", "col")
    node, row, col = (batch.features[f"item_{name}"] for name in names)
    num_nodes, num_edges = batch.features["item_hops"].tolist()
    return SampledSubgraph(node, row, col, torch.empty(0, dtype=torch.int64), None, num_nodes, num_edges[1:])


def num_edges(batch: SampledBatch) -> int:
    """Edges sampled for a batch, of members and items."""
    return batch.subgraph.row.numel() + batch.features["item_row"].numel()


def _mix(*numbers: int) -> int:
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
