"""All edges between the nodes of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gossamer.graph.sampling_index import RawSample, Relation, SamplingIndex

__all__ = ["induced_edges"]


def induced_edges(
    index: SamplingIndex, sample: RawSample, seed_time: Sequence[Tensor] | None, window: int | None
) -> RawSample:
    """The sample with every edge between its nodes, in disjoint samples between nodes of one tree.

    With times, an edge must lie in the past of the seed of its tree, and in its window. There are no edge counts per
    hop any more: ``num_edges`` is empty.
    """
    limit = None if seed_time is None else torch.cat(list(seed_time))
    edges = []
    for relation in index.relations:
        row, col, position = _induced(index, relation, sample)
        batch = sample.batch[relation.target_type]
        if limit is not None and batch is not None and relation.time is not None:
            keep = _visible(relation.time[position], limit[batch[col]], window)
            row, col, position = row[keep], col[keep], position[keep]
        edge = position if relation.edge_ids is None else relation.edge_ids[position].long()
        edges.append((row, col, edge))
    return replace(sample, edges=edges, num_edges=[])


def _induced(index: SamplingIndex, relation: Relation, sample: RawSample) -> tuple[Tensor, Tensor, Tensor]:
    """(row, col, position) of the edges of one relation between sampled nodes."""
    sources, targets = sample.node[relation.source_type], sample.node[relation.target_type]
    begin, degree = relation.rowptr[targets], relation.rowptr[targets + 1] - relation.rowptr[targets]
    col = torch.arange(len(targets)).repeat_interleave(degree)
    position = torch.arange(len(col)) + (begin - degree.cumsum(0) + degree)[col]
    wanted = relation.col[position].long()
    source_batch, target_batch = sample.batch[relation.source_type], sample.batch[relation.target_type]
    if source_batch is not None and target_batch is not None:  # a node counts only within its tree
        num_nodes = index.num_nodes[relation.source_type]
        sources, wanted = sources + source_batch * num_nodes, wanted + target_batch[col] * num_nodes
    row, found = _find(sources, wanted)
    return row[found], col[found], position[found]


def _find(keys: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The first place of each wanted value in keys, and whether it is there."""
    if keys.numel() == 0:
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    ordered, order = keys.sort(stable=True)
    place = torch.searchsorted(ordered, wanted).clamp(max=keys.numel() - 1)
    return order[place], ordered[place] == wanted


def _visible(time: Tensor, limit: Tensor, window: int | None) -> Tensor:
    if window is None:
        return time <= limit
    earliest = torch.iinfo(torch.int64).min
    return (time <= limit) & (time >= limit.clamp(min=earliest + window) - window)
