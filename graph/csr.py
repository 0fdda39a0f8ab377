"""CSR: the one graph structure of the library."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

__all__ = ["CSR"]


class CSR:
    """A directed graph in compressed sparse rows; row i lists the in-neighbours of node i.

    Messages flow from ``col[e]`` to the row that holds edge e. The tensors are never modified.

    Args:
        rowptr: [num_nodes + 1], int64, ascending from 0 to num_edges.
        col: [num_edges], int32 or int64, source nodes in [0, num_nodes).
        num_nodes: number of nodes.
        weight: [num_edges], floating point, edge weights.
        time: [num_edges], int64, edge times.
        edge_ids: [num_edges], int64, the caller's number of each edge.
    """

    def __init__(
        self,
        rowptr: Tensor,
        col: Tensor,
        *,
        num_nodes: int,
        weight: Tensor | None = None,
        time: Tensor | None = None,
        edge_ids: Tensor | None = None,
    ) -> None:
        self.rowptr = rowptr
        self.col = col
        self.num_nodes = num_nodes
        self.weight = weight
        self.time = time
        self.edge_ids = edge_ids

    @property
    def num_edges(self) -> int:
        return self.col.numel()

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor,
        num_nodes: int | None = None,
        *,
        weight: Tensor | None = None,
        time: Tensor | None = None,
    ) -> CSR:
        """Build the graph of edges source -> target, stable in the given order within each row."""
        source, target = edge_index
        if num_nodes is None:
            num_nodes = int(edge_index.max()) + 1 if edge_index.numel() else 0
        order = torch.sort(target, stable=True).indices
        rowptr = torch.zeros(num_nodes + 1, dtype=torch.int64, device=target.device)
        rowptr[1:] = torch.bincount(target, minlength=num_nodes).cumsum(0)
        narrow = torch.int32 if num_nodes < 2**31 else torch.int64
        return cls(
            rowptr,
            source[order].to(narrow),
            num_nodes=num_nodes,
            weight=None if weight is None else weight[order],
            time=None if time is None else time[order],
            edge_ids=order,
        )

    def in_degree(self) -> Tensor:
        """Number of in-neighbours of every node, [num_nodes], int64."""
        return self.rowptr.diff()

    @cached_property
    def _rows(self) -> Tensor:
        """[num_edges], int64: the row (target node) of every edge."""
        return torch.repeat_interleave(torch.arange(self.num_nodes, device=self.col.device), self.in_degree())

    @cached_property
    def _transpose_positions(self) -> Tensor:
        """[num_edges], int64: for every edge of the transposed graph, its position in this one."""
        return torch.sort(self.col, stable=True).indices

    @cached_property
    def _transposed(self) -> CSR:
        positions = self._transpose_positions
        rowptr = torch.zeros_like(self.rowptr)
        rowptr[1:] = torch.bincount(self.col, minlength=self.num_nodes).cumsum(0)
        col = self._rows[positions].to(self.col.dtype)
        weight = None if self.weight is None else self.weight[positions]
        return CSR(rowptr, col, num_nodes=self.num_nodes, weight=weight, edge_ids=positions)

    def transpose(self) -> CSR:
        """The graph with every edge reversed (computed once, then cached)."""
        return self._transposed

    def permute(self, order: Tensor) -> CSR:
        """The graph with renumbered nodes: new node i is old node order[i].

        Args:
            order: [num_nodes], int64, every node id once.
        """
        rank = torch.empty_like(order)
        rank[order] = torch.arange(self.num_nodes, device=order.device)
        degree = self.in_degree()[order]
        rowptr = torch.zeros_like(self.rowptr)
        rowptr[1:] = degree.cumsum(0)
        shift = self.rowptr[order] - rowptr[:-1]  # from an edge of a new row to the same edge of the old row
        positions = torch.arange(self.num_edges, device=order.device) + shift.repeat_interleave(degree)
        return CSR(
            rowptr,
            rank[self.col[positions].long()].to(self.col.dtype),
            num_nodes=self.num_nodes,
            weight=None if self.weight is None else self.weight[positions],
            time=None if self.time is None else self.time[positions],
            edge_ids=positions if self.edge_ids is None else self.edge_ids[positions],
        )
