"""The latest events of nodes before a time, as padded sequences for the temporal model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.csr import CSR
from gossamer.graph.sampling import neighbor_sample

__all__ = ["EventSequences", "event_sequences"]


class EventSequences(NamedTuple):
    """Sequences in the order of time, filled up behind.

    Args:
        node: [num_seeds, max_events], int64, the other end of each event; -1 behind the last.
        time: [num_seeds, max_events], int64; 0 behind the last.
        num_events: [num_seeds], int64.
    """

    node: Tensor
    time: Tensor
    num_events: Tensor


@typed
def event_sequences(graph: CSR, seeds: Tensor, seed_time: Tensor, max_events: int) -> EventSequences:
    """The latest max_events in-edges of every seed that are not later than its time.

    Events of equal time are in the order of the graph's row. Give the time before an example's own to keep the example
    and what happened together with it out.

    Args:
        graph: with edge times, on the CPU.
        seeds: [num_seeds], int64 or int32.
        seed_time: [num_seeds], int64.
        max_events: at least 1.

    Raises:
        ValueError: if the graph has no times, or an argument is out of its range.
    """
    if max_events < 1:
        raise ValueError(f"event_sequences: max_events must be at least 1, got {max_events}")
    if graph.time is None:
        raise ValueError("event_sequences: graph must have edge times, got None")
    view = _numbered_by_position(graph)
    out = neighbor_sample(view, seeds, [max_events], seed=0, seed_time=seed_time, temporal="last")
    time, source = graph.time[out.edge], out.node[out.row]
    order = out.edge.argsort()
    for key in (time, out.col):  # by seed, then time, then place in the row
        order = order[key[order].argsort(stable=True)]
    row = out.col[order]
    num_events = row.bincount(minlength=len(seeds))
    place = torch.arange(len(row)) - (num_events.cumsum(0) - num_events)[row]
    node = torch.full((len(seeds), max_events), -1, dtype=torch.int64).index_put((row, place), source[order])
    when = torch.zeros(len(seeds), max_events, dtype=torch.int64).index_put((row, place), time[order])
    return EventSequences(node, when, num_events)


def _numbered_by_position(graph: CSR) -> CSR:
    """The graph without edge ids, so that a sampled edge is its position; kept, as sampling prepares it once."""
    if "_numbered_by_position" not in graph.__dict__:
        view = CSR._trusted(graph.rowptr, graph.col, graph.num_nodes, None, graph.time)
        graph.__dict__["_numbered_by_position"] = view
    return graph.__dict__["_numbered_by_position"]
