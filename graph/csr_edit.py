"""Graphs with edges merged, mirrored or added: the bodies of the methods of the same name of CSR."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer.graph.csr import CSR, _count_rows, _select
from gossamer.graph.order import _stable_order

_REDUCTIONS = ("sum", "mean", "max", "min")


def coalesce(graph: CSR, reduce: str) -> CSR:
    _check_reduction("CSR.coalesce", reduce)
    target = graph._rows.to(graph.col.dtype)
    return _merged(graph.col, target, graph.num_nodes, graph.weight, graph.time, reduce)


def to_symmetric(graph: CSR, reduce: str) -> CSR:
    _check_reduction("CSR.to_symmetric", reduce)
    source, target = graph.col, graph._rows.to(graph.col.dtype)
    others = (source != target).nonzero().flatten()
    mirror = lambda values, reverse: torch.cat([values, reverse.index_select(0, others)])  # noqa: E731
    weight, time = (None if value is None else mirror(value, value) for value in (graph.weight, graph.time))
    return _merged(mirror(source, target), mirror(target, source), graph.num_nodes, weight, time, reduce)


def _check_reduction(function: str, reduce: str) -> None:
    if reduce not in _REDUCTIONS:
        raise ValueError(f"{function}: reduce must be sum, mean, max or min, got {reduce!r}")


def _merged(
    source: Tensor, target: Tensor, num_nodes: int, weight: Tensor | None, time: Tensor | None, reduce: str
) -> CSR:
    """The graph of the edges with each pair of nodes once, columns ascending in each row."""
    by_source = _stable_order(source, num_nodes)[1]
    order = by_source.index_select(0, _stable_order(target.index_select(0, by_source), num_nodes)[1])
    source, target = source.index_select(0, order), target.index_select(0, order)
    is_first = torch.ones_like(source, dtype=torch.bool)
    is_first[1:] = (source[1:] != source[:-1]) | (target[1:] != target[:-1])
    first = is_first.nonzero().flatten()
    lengths = torch.diff(first, append=first.new_tensor([source.numel()]))
    weight, time = _select(weight, order), _select(time, order)
    if weight is not None and weight.numel():  # segment_reduce refuses to reduce nothing
        weight = torch.segment_reduce(weight, reduce, lengths=lengths)
    rowptr = _count_rows(target.index_select(0, first), num_nodes)
    return CSR._trusted(rowptr, source.index_select(0, first), num_nodes, weight, _earliest(time, lengths))


def _earliest(time: Tensor | None, lengths: Tensor) -> Tensor | None:
    if time is None:
        return None
    merged = torch.arange(lengths.numel(), device=time.device).repeat_interleave(lengths)
    return time.new_empty(lengths.numel()).scatter_reduce(0, merged, time, "amin", include_self=False)


def add_self_loops(graph: CSR, weight: float) -> CSR:
    if not math.isfinite(weight):
        raise ValueError(f"CSR.add_self_loops: weight must be finite, got {weight}")
    missing = torch.ones(graph.num_nodes, dtype=torch.bool, device=graph.device)
    missing[graph._rows[graph.col == graph._rows]] = False
    nodes = missing.nonzero().flatten()
    rowptr = graph.rowptr.clone()
    rowptr[1:] += missing.cumsum(0)
    loops = rowptr[nodes + 1] - 1  # the last place of the row
    is_old = torch.ones(int(rowptr[-1]), dtype=torch.bool, device=graph.device)
    is_old[loops] = False

    def with_loops(values: Tensor | None, of_loops: Tensor | float) -> Tensor | None:
        if values is None:
            return None
        out = values.new_empty(is_old.numel()).masked_scatter(is_old, values)
        return out.index_put((loops,), torch.as_tensor(of_loops, dtype=values.dtype, device=values.device))

    col = with_loops(graph.col, nodes)
    assert col is not None
    earliest = int(graph.time.min()) if graph.time is not None and graph.num_edges else 0
    time = None if graph.time is None else with_loops(graph.time, earliest)
    edge_ids = torch.arange(graph.num_edges, device=graph.device) if graph.edge_ids is None else graph.edge_ids
    return CSR._trusted(rowptr, col, graph.num_nodes, with_loops(graph.weight, weight), time, with_loops(edge_ids, -1))
