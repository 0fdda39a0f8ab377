"""HeteroCSR: a graph with types of nodes as one CSR, and the nodes of each type that matter most to a node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.csr import CSR
from gossamer.graph.csr_check import check_ids, checked_edge_index, checked_num_nodes
from gossamer.graph.ppr import push, walk
from gossamer.graph.sampling import check_seeds

__all__ = ["HeteroCSR", "hetero_ppr_neighbors", "hetero_walk_neighbors"]

EdgeType = tuple[str, str, str]


class HeteroCSR:
    """The edges of all types in one CSR, whose node ids run through one node type after the other.

    Args:
        edge_indices: by (source type, relation, target type), [2, num_edges], int64 or int32, source over target.
        num_nodes: by node type; its order is that of the ids in ``graph``.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an edge names a node type or a node that is not there.
    """

    @typed
    def __init__(self, edge_indices: Mapping[EdgeType, Tensor], num_nodes: Mapping[str, int]) -> None:
        self.num_nodes = {t: checked_num_nodes("HeteroCSR", size) for t, size in num_nodes.items()}
        self._first: dict[str, int] = {}  # id in graph of node 0 of each type
        total = 0
        for node_type, size in self.num_nodes.items():
            self._first[node_type] = total
            total += size
        edges = [self._united(edge_type, edge_index) for edge_type, edge_index in edge_indices.items()]
        united = torch.cat(edges, 1) if edges else torch.empty(2, 0, dtype=torch.int64)
        self.graph = CSR.from_edge_index(united, total)

    @classmethod
    def from_pyg(cls, data: Any) -> HeteroCSR:
        """The graph of a PyG ``HeteroData``: its edge_index by edge type."""
        node_types, edge_types = data.metadata()
        edges = {edge_type: data[edge_type].edge_index for edge_type in edge_types}
        return cls(edges, {node_type: data[node_type].num_nodes for node_type in node_types})

    def __repr__(self) -> str:
        return f"HeteroCSR(num_nodes={self.num_nodes}, num_edges={self.graph.num_edges})"

    def _united(self, edge_type: EdgeType, edge_index: Tensor) -> Tensor:
        """The edges of one type in the ids of ``graph``."""
        edges = checked_edge_index(edge_index, f"HeteroCSR: edge_index of {edge_type}").long()
        first = []
        for node_type, ends in zip((edge_type[0], edge_type[-1]), edges):
            self._check_type("HeteroCSR", node_type)
            check_ids(f"HeteroCSR: edge_index of {edge_type}", ends, self.num_nodes[node_type])
            first.append(self._first[node_type])
        return edges + torch.tensor(first)[:, None]

    def _seeds(self, function: str, seed_type: str, seeds: Tensor) -> Tensor:
        self._check_type(function, seed_type)
        return check_seeds(function, seeds, self.num_nodes[seed_type]) + self._first[seed_type]

    def _check_type(self, function: str, node_type: str) -> None:
        if node_type not in self.num_nodes:
            raise ValueError(f"{function}: node types must be among {list(self.num_nodes)}, got {node_type!r}")

    def _by_type(self, node: Tensor, score: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {node_type: (node[i], score[i]) for i, node_type in enumerate(self.num_nodes)}


@typed
def hetero_ppr_neighbors(
    graph: HeteroCSR, seed_type: str, seeds: Tensor, *, top_k: int, alpha: float = 0.15, eps: float = 1e-4
) -> dict[str, tuple[Tensor, Tensor]]:
    """``ppr_neighbors`` over all edge types together, with the top_k nodes of every type.

    A walk moves to one of the in-neighbours of a node over all edge types, each edge equally likely. Where every edge
    type has its reverse, a score is within ``eps * in_degree`` of the exact one, the degree being that over all types.

    Args:
        graph: the graph.
        seed_type: node type of the seeds.
        seeds: [num_seeds], int64 or int32, node ids within their type.
        top_k, alpha, eps: as for ``ppr_neighbors``.

    Returns:
        For every node type, node [num_seeds, top_k] with ids within the type and score [num_seeds, top_k].
    """
    ids = graph._seeds("hetero_ppr_neighbors", seed_type, seeds)
    types = list(graph.num_nodes.values())
    return graph._by_type(*push("hetero_ppr_neighbors", graph.graph, ids, top_k, alpha, eps, types))


@typed
def hetero_walk_neighbors(
    graph: HeteroCSR,
    seed_type: str,
    seeds: Tensor,
    *,
    top_k: int,
    seed: int,
    num_walks: int = 128,
    num_steps: int = 2,
    alpha: float = 0.15,
) -> dict[str, tuple[Tensor, Tensor]]:
    """``walk_neighbors`` over all edge types together, with the top_k nodes of every type.

    Args:
        graph: the graph.
        seed_type: node type of the seeds.
        seeds: [num_seeds], int64 or int32, node ids within their type.
        top_k, seed, num_walks, num_steps, alpha: as for ``walk_neighbors``.

    Returns:
        For every node type, node [num_seeds, top_k] with ids within the type and score [num_seeds, top_k].
    """
    function = "hetero_walk_neighbors"
    ids = graph._seeds(function, seed_type, seeds)
    types = list(graph.num_nodes.values())
    return graph._by_type(*walk(function, graph.graph, ids, top_k, num_walks, num_steps, alpha, seed, types))
