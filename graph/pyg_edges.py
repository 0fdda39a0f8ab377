"""The edges, times and weights of everything that PyG calls a graph, in one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.data import remote_backend_utils as remote
from torch_geometric.sampler.utils import to_csc

from gossamer.graph.csr_check import check_ids, check_rows, checked_edge_index, checked_num_nodes

__all__ = ["EdgeSet", "read_edges"]


@dataclass
class EdgeSet:
    """Edges by type; a homogeneous graph has the one node type and edge type None.

    ``csc`` holds (rowptr, col, numbers of the edges in the input); ``time`` and ``weight`` stand in its order.
    """

    node_types: list[Any]
    edge_types: list[Any]
    num_nodes: dict[Any, int]
    csc: list[tuple[Tensor, Tensor, Tensor | None]]
    time: list[Tensor | None]
    weight: list[Tensor | None]
    node_time: Any = None  # a tensor, or a dictionary of tensors by node type

    @property
    def is_hetero(self) -> bool:
        return self.edge_types != [None]

    @property
    def end_types(self) -> list[tuple[Any, Any]]:
        """Source and target node type of every edge type."""
        return [(t[0], t[-1]) if self.is_hetero else (None, None) for t in self.edge_types]


def read_edges(data: Any, time_attr: str | None, weight_attr: str | None) -> EdgeSet:
    """The edges of ``Data``, ``HeteroData`` or (FeatureStore, GraphStore) with the named times and weights."""
    if isinstance(data, Data):
        edges, node_time, edge_time = _read_data(data, time_attr)
    elif isinstance(data, HeteroData):
        edges, node_time, edge_time = _read_hetero(data, time_attr)
    elif isinstance(data, tuple) and len(data) == 2:
        edges, node_time, edge_time = _read_stores(*data, time_attr)
    else:
        raise TypeError(
            f"NeighborSampler: data must be Data, HeteroData or (FeatureStore, GraphStore), got {type(data).__name__}"
        )
    if time_attr is not None and not node_time and not edge_time:
        raise ValueError(f"NeighborSampler: time_attr must name node or edge times, got {time_attr!r}")
    _check_csc(edges)
    for node_type, time in node_time.items():
        _check_values("time_attr", time, edges.num_nodes[node_type], "node", integers=True)
    for edge_type, (_, col, _) in zip(edges.edge_types, edges.csc):
        if edge_type in edge_time:
            _check_values("time_attr", edge_time[edge_type], col.numel(), "edge", integers=True)
    if node_time:
        edges.node_time = node_time if edges.is_hetero else node_time[None]
    edges.time = [_edge_time(edges, i, node_time, edge_time) for i in range(len(edges.csc))]
    edges.weight = _weights(edges, data, weight_attr)
    return edges


Times = dict[Any, Tensor]


def _read_data(data: Data, time_attr: str | None) -> tuple[EdgeSet, Times, Times]:
    num_nodes = {None: checked_num_nodes("NeighborSampler", data.num_nodes)}
    edges = EdgeSet([None], [None], num_nodes, [_csc(data, num_nodes[None], num_nodes[None])], [], [])
    if time_attr is None or time_attr not in data:
        return edges, {}, {}
    time = {None: data[time_attr]}
    return (edges, {}, time) if data.is_edge_attr(time_attr) else (edges, time, {})


def _read_hetero(data: HeteroData, time_attr: str | None) -> tuple[EdgeSet, Times, Times]:
    node_types, edge_types = data.metadata()
    for node_type in (end for edge_type in edge_types for end in edge_type[::2]):
        if node_type not in node_types:
            raise ValueError(f"NeighborSampler: data must have the nodes of every edge type, got none of {node_type!r}")
    num_nodes = {t: checked_num_nodes(f"NeighborSampler: {t!r}", data[t].num_nodes) for t in node_types}
    csc = [_csc(data[t], num_nodes[t[0]], num_nodes[t[-1]]) for t in edge_types]
    node_time = {t: data[t][time_attr] for t in node_types if time_attr and time_attr in data[t]}
    edge_time = {t: data[t][time_attr] for t in edge_types if time_attr and time_attr in data[t]}
    return EdgeSet(node_types, edge_types, num_nodes, csc, [], []), node_time, edge_time


def _read_stores(features: Any, graph: Any, time_attr: str | None) -> tuple[EdgeSet, Times, Times]:
    attrs = graph.get_all_edge_attrs()
    edge_types = sorted({a.edge_type for a in attrs}, key=str)
    node_types = [None] if edge_types == [None] else sorted({end for t in edge_types for end in (t[0], t[-1])})
    row, colptr, perm = graph.csc()
    if edge_types == [None]:
        num_nodes, csc = {None: max(attrs[0].size)}, [(colptr, row, perm)]
    else:
        num_nodes = {t: remote.size(features, graph, t) for t in node_types}
        csc = [(colptr[t], row[t], perm.get(t)) for t in edge_types]
    named = [a for a in features.get_all_tensor_attrs() if a.attr_name == time_attr and time_attr is not None]
    times = {a.group_name: _whole_tensor(features, a) for a in named}
    edges = EdgeSet(node_types, edge_types, num_nodes, csc, [], [])
    node_time = {k: v for k, v in times.items() if k in node_types}
    if edge_types == [None] and node_time and len(node_time[None]) == csc[0][1].numel() != num_nodes[None]:
        node_time = {}  # one per edge: nodes and edges have the same name here
    return edges, node_time, {k: v for k, v in times.items() if k not in node_time}


def _csc(store: Any, num_sources: int, num_targets: int) -> tuple[Tensor, Tensor, Tensor | None]:
    edge_index = store.get("edge_index", None)
    if edge_index is not None:  # PyG writes behind its memory where a target is out of range
        name = "NeighborSampler: edge_index"
        for ends, num_nodes in zip(checked_edge_index(edge_index, name), (num_sources, num_targets)):
            check_ids(name, ends, num_nodes)
    rowptr, col, perm = to_csc(store, device="cpu")
    return rowptr.long(), col, perm


def _check_csc(edges: EdgeSet) -> None:
    for (source, target), (rowptr, col, _) in zip(edges.end_types, edges.csc):
        if rowptr.numel() != edges.num_nodes[target] + 1:
            raise ValueError(
                f"NeighborSampler: edges must have {edges.num_nodes[target]} targets, got {rowptr.numel() - 1}"
            )
        check_rows(rowptr, col.numel())
        check_ids("NeighborSampler: edge_index", col, edges.num_nodes[source])


def _check_values(argument: str, values: Tensor, count: int, owner: str, *, integers: bool = False) -> None:
    if values.shape != (count,) or (integers and (values.is_floating_point() or values.dtype == torch.bool)):
        raise ValueError(
            f"NeighborSampler: {argument} must name {'an integer' if integers else 'a number'} per {owner}, [{count}], "
            f"got {list(values.shape)} of {values.dtype}"
        )


def _whole_tensor(features: Any, attr: Any) -> Tensor:
    attr.index = None
    return features.get_tensor(attr)


def _edge_time(edges: EdgeSet, i: int, node_time: Times, edge_time: Times) -> Tensor | None:
    """Times of the edges in csc order: their own or those of their sources, the later where there are both."""
    _, col, perm = edges.csc[i]
    times = []
    if (time := node_time.get(edges.end_types[i][0])) is not None:
        times.append(time[col].to(torch.int64))
    if (time := edge_time.get(edges.edge_types[i])) is not None:
        times.append(_in_csc_order(time, perm).to(torch.int64))
    return torch.stack(times).amax(0) if times else None


def _weights(edges: EdgeSet, data: Any, weight_attr: str | None) -> list[Tensor | None]:
    """Weights in csc order; edge types without weights count as ones where others have them."""
    if weight_attr is None:
        return [None] * len(edges.csc)
    named = [_named_weight(data, edge_type, weight_attr) for edge_type in edges.edge_types]
    if all(weight is None for weight in named):
        raise ValueError(f"NeighborSampler: weight_attr must name an edge attribute, got {weight_attr!r}")
    weights: list[Tensor | None] = []
    for weight, (_, col, perm) in zip(named, edges.csc):
        if weight is not None:
            _check_values("weight_attr", weight, col.numel(), "edge")
        weights.append(torch.ones(col.numel()) if weight is None else _in_csc_order(weight, perm))
    return weights


def _named_weight(data: Any, edge_type: Any, name: str) -> Tensor | None:
    if isinstance(data, tuple):
        for attr in data[0].get_all_tensor_attrs():
            if attr.attr_name == name and attr.group_name == edge_type:
                return _whole_tensor(data[0], attr)
        return None
    store = data if edge_type is None else data[edge_type]
    return store.get(name, None)


def _in_csc_order(values: Tensor, perm: Tensor | None) -> Tensor:
    return values if perm is None else values[perm]
