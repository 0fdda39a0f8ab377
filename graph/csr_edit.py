"""Graphs with edges merged, mirrored or added: the bodies of the methods of the same name of CSR."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.graph.csr import CSR

_REDUCTIONS = ("sum", "mean", "max", "min")


def coalesce(graph: CSR, reduce: str, function: str = "CSR.coalesce") -> CSR:
    if reduce not in _REDUCTIONS:
        raise ValueError(f"{function}: reduce must be sum, mean, max or min, got {reduce!r}")
    graph = graph.transpose().transpose()  # each of them sorts: columns ascend now
    row, col = graph._rows, graph.col
    is_first = torch.ones_like(col, dtype=torch.bool)
    is_first[1:] = (col[1:] != col[:-1]) | (row[1:] != row[:-1])
    first = is_first.nonzero().flatten()
    lengths = torch.diff(first, append=first.new_tensor([graph.num_edges]))
    rowptr = torch.zeros_like(graph.rowptr)
    rowptr[1:] = row[first].bincount(minlength=graph.num_nodes).cumsum(0)
    weight = graph.weight
    if weight is not None and graph.num_edges:  # segment_reduce refuses to reduce nothing
        weight = torch.segment_reduce(weight, reduce, lengths=lengths)
    return CSR._trusted(rowptr, col[first], graph.num_nodes, weight, _earliest(graph.time, lengths), None)


def _earliest(time: Tensor | None, lengths: Tensor) -> Tensor | None:
    if time is None:
        return None
    merged = torch.arange(lengths.numel(), device=time.device).repeat_interleave(lengths)
    return time.new_empty(lengths.numel()).scatter_reduce(0, merged, time, "amin", include_self=False)


def to_symmetric(graph: CSR, reduce: str) -> CSR:
    edges = graph.to_edge_index()
    others = (edges[0] != edges[1]).nonzero().flatten()
    both = torch.cat([edges, edges.flip(0)[:, others]], dim=1)
    weight, time = (
        None if value is None else torch.cat([value, value[others]]) for value in (graph.weight, graph.time)
    )
    mirrored = CSR.from_edge_index(both, graph.num_nodes, weight=weight, time=time)
    return coalesce(mirrored, reduce, "CSR.to_symmetric")


def add_self_loops(graph: CSR, weight: float) -> CSR:
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
