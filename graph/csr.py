"""CSR: the one graph structure of the library."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.csr_check import (
    check_edge_values,
    check_ids,
    check_permutation,
    check_rows,
    check_vector,
    checked_edge_index,
    checked_num_nodes,
)
from gossamer.graph.order import _stable_order

__all__ = ["CSR"]

_FIELDS = ("rowptr", "col", "weight", "time", "edge_ids")


class CSR:
    """A directed graph in compressed sparse rows; row i lists the in-neighbours of node i.

    Messages flow from ``col[e]`` to the row that holds edge e. Duplicate edges and self loops are allowed.
    The tensors are never modified, and the caller must not modify them either: results are cached.

    Args:
        rowptr: [num_nodes + 1], int64, ascending from 0 to num_edges.
        col: [num_edges], int32 or int64, source nodes in [0, num_nodes).
        num_nodes: number of nodes.
        weight: [num_edges], floating point, finite, edge weights.
        time: [num_edges], int64, edge times.
        edge_ids: [num_edges], int64, the caller's number of each edge; None numbers them in the order of col.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape, device or content.
    """

    rowptr: Tensor
    col: Tensor
    num_nodes: int
    weight: Tensor | None
    time: Tensor | None
    edge_ids: Tensor | None

    @typed
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
        num_nodes = checked_num_nodes("CSR", num_nodes)
        check_vector("CSR: rowptr", rowptr, num_nodes + 1, (torch.int64,))
        check_vector("CSR: col", col, None, (torch.int32, torch.int64), rowptr.device)
        check_rows(rowptr, col.numel())
        check_ids("CSR: col", col, num_nodes)
        check_edge_values("CSR", col.numel(), col.device, weight, time)
        if edge_ids is not None:
            check_vector("CSR: edge_ids", edge_ids, col.numel(), (torch.int64,), col.device)
        self._set(rowptr, col, num_nodes, weight, time, edge_ids)

    def _set(
        self,
        rowptr: Tensor,
        col: Tensor,
        num_nodes: int,
        weight: Tensor | None = None,
        time: Tensor | None = None,
        edge_ids: Tensor | None = None,
    ) -> None:
        self.rowptr = rowptr.contiguous()
        self.col = col.contiguous()
        self.num_nodes = num_nodes
        self.weight = None if weight is None else weight.contiguous()
        self.time = None if time is None else time.contiguous()
        self.edge_ids = None if edge_ids is None else edge_ids.contiguous()

    @staticmethod
    def _trusted(rowptr: Tensor, col: Tensor, num_nodes: int, *values: Tensor | None) -> CSR:
        """A graph of tensors that hold by construction; ``values`` are weight, time and edge_ids."""
        graph = CSR.__new__(CSR)
        graph._set(rowptr, col, num_nodes, *values)
        return graph

    def _rearranged(self, rowptr: Tensor, col: Tensor, positions: Tensor) -> CSR:
        """The graph of the given rows whose edge e carries what edge positions[e] of this graph carries."""
        edge_ids = positions if self.edge_ids is None else self.edge_ids.index_select(0, positions)
        return CSR._trusted(
            rowptr, col, self.num_nodes, _select(self.weight, positions), _select(self.time, positions), edge_ids
        )

    # Making and taking apart

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor,
        num_nodes: int | None = None,
        *,
        weight: Tensor | None = None,
        time: Tensor | None = None,
    ) -> CSR:
        """The graph of the edges edge_index[0, e] -> edge_index[1, e], each kept, duplicates and self loops too.

        Within a row the edges keep the given order, and ``edge_ids`` says where each one stood.

        Args:
            edge_index: [2, num_edges], int32 or int64, source nodes over target nodes.
            num_nodes: number of nodes; None takes the largest id plus one.
            weight: [num_edges], floating point, finite, in the order of edge_index.
            time: [num_edges], int64, in the order of edge_index.
        """
        edge_index = checked_edge_index(edge_index)
        if num_nodes is None:
            num_nodes = int(edge_index.max()) + 1 if edge_index.numel() else 0
        num_nodes = checked_num_nodes("CSR.from_edge_index", num_nodes)
        check_ids("CSR.from_edge_index: edge_index", edge_index, num_nodes)
        check_edge_values("CSR.from_edge_index", edge_index.shape[1], edge_index.device, weight, time)
        source, target = edge_index.to(_col_dtype(num_nodes))  # narrow first: fewer bytes to sort and to gather
        rowptr, order = _stable_order(target, num_nodes)
        col = source.index_select(0, order)
        return CSR._trusted(rowptr, col, num_nodes, _select(weight, order), _select(time, order), order)

    def to_edge_index(self) -> Tensor:
        """[2, num_edges], int64, source over target, in the order of ``col``, ``weight``, ``time`` and ``edge_ids``.

        The order given to ``from_edge_index`` comes back with ``to_edge_index()[:, edge_ids.argsort()]``.
        """
        return torch.stack([self.col.long(), self._rows])

    @classmethod
    def from_pyg(cls, data: Any) -> CSR:
        """The graph of a PyG ``Data``: its edge_index, or its adj_t, with edge_weight and edge_time if present."""
        from gossamer.graph import csr_convert  # imports this file

        return csr_convert.from_pyg(data)

    def to_pyg(self) -> Any:
        """A PyG ``Data`` with edge_index, num_nodes and what there is of edge_weight, edge_time and e_id."""
        from gossamer.graph import csr_convert

        return csr_convert.to_pyg(self)

    @classmethod
    def from_scipy(cls, matrix: Any) -> CSR:
        """The graph of a square scipy.sparse matrix: entry [i, j] is the edge from j to i, its value the weight.

        Values of integers become float32 and those of booleans are dropped. Stored zeros stay edges.
        """
        from gossamer.graph import csr_convert

        return csr_convert.from_scipy(matrix)

    def to_scipy(self) -> Any:
        """A scipy.sparse.csr_array of copies: row i holds the in-neighbours of i; without weights, float32 ones."""
        from gossamer.graph import csr_convert

        return csr_convert.to_scipy(self)

    @classmethod
    def from_cupy(cls, matrix: Any) -> CSR:
        """The graph of a square cupyx.scipy.sparse matrix on its GPU; the values are shared, not copied."""
        from gossamer.graph import csr_convert

        return csr_convert.from_cupy(matrix)

    def to_cupy(self) -> Any:
        """A cupyx.scipy.sparse.csr_matrix on the GPU of this graph, as ``to_scipy`` does on the CPU."""
        from gossamer.graph import csr_convert

        return csr_convert.to_cupy(self)

    # Structure

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        return self.col.numel()

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.rowptr.device

    def in_degree(self) -> Tensor:
        """Number of in-neighbours of every node, [num_nodes], int64."""
        return self.rowptr.diff()

    def out_degree(self) -> Tensor:
        """Number of out-neighbours of every node, [num_nodes], int64."""
        return self.col.bincount(minlength=self.num_nodes)

    @property
    def _row_pointers(self) -> Tensor:
        """What sampling reads: rowptr, or the lines of a compact graph."""
        return self.rowptr

    @cached_property
    def _rows(self) -> Tensor:
        """[num_edges], int64: the row (target node) of every edge."""
        return torch.arange(self.num_nodes, device=self.col.device).repeat_interleave(self.in_degree())

    @cached_property
    def _transpose_positions(self) -> Tensor:
        """[num_edges], int64: for every edge of the transposed graph, its position in this one."""
        return self._transpose_order[1]

    @cached_property
    def _transpose_order(self) -> tuple[Tensor, Tensor]:
        return _stable_order(self.col, self.num_nodes)

    @cached_property
    def _transposed(self) -> CSR:
        rowptr, positions = self._transpose_order
        col = self._rows.to(self.col.dtype).index_select(0, positions)
        return self._rearranged(rowptr, col, positions)

    def transpose(self) -> CSR:
        """The graph with every edge reversed, columns ascending in each row (computed once, then cached)."""
        return self._transposed

    def permute(self, order: Tensor) -> CSR:
        """The graph with renumbered nodes: new node i is old node order[i].

        Args:
            order: [num_nodes], int64, every node id once.
        """
        check_permutation(order, self.num_nodes, self.device)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(self.num_nodes, device=order.device)
        degree = self.in_degree()[order]
        rowptr = torch.zeros_like(self.rowptr)
        rowptr[1:] = degree.cumsum(0)
        shift = self.rowptr[order] - rowptr[:-1]  # from an edge of a new row to the same edge of the old row
        positions = torch.arange(self.num_edges, device=order.device) + shift.repeat_interleave(degree)
        col = rank.to(self.col.dtype).index_select(0, self.col.index_select(0, positions))
        return self._rearranged(rowptr, col, positions)

    def coalesce(self, *, reduce: str = "sum") -> CSR:
        """The graph with columns ascending in each row and duplicate edges merged.

        Args:
            reduce: sum, mean, max or min of the weights of merged edges; their time is the earliest.
                Edge ids do not survive, as a merged edge has several.
        """
        from gossamer.graph import csr_edit

        return csr_edit.coalesce(self, reduce)

    def to_symmetric(self, *, reduce: str = "max") -> CSR:
        """The coalesced graph in which every edge also runs the other way (self loops are not doubled).

        Args:
            reduce: sum, mean, max or min of the weights of an edge and its reverse; max, min and mean leave
                a symmetric graph as it is.
        """
        from gossamer.graph import csr_edit

        return csr_edit.to_symmetric(self, reduce)

    def add_self_loops(self, *, weight: float = 1.0) -> CSR:
        """The graph with a self loop, last in its row, at every node that has none.

        Args:
            weight: weight of the new edges, where the graph has weights. Their time is the earliest of the
                graph and their edge id is -1.
        """
        from gossamer.graph import csr_edit

        return csr_edit.add_self_loops(self, weight)

    # Storage

    def to(self, device: torch.device | str | int) -> CSR:
        """The graph on a device; itself where it is there already."""
        moved = [None if t is None else t.to(device) for t in self._tensors()]
        if all(new is old for new, old in zip(moved, self._tensors())):
            return self
        rowptr, col, *values = moved
        assert rowptr is not None
        assert col is not None
        return CSR._trusted(rowptr, col, self.num_nodes, *values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph to one file that ``CSR.open`` maps; the file appears whole or not at all."""
        from gossamer.graph import csr_file

        csr_file.save(self, path)

    def compact(self) -> CSR:
        """The same graph with row pointers of 2.4 bytes per node in place of 8, to be kept for sampling.

        ``neighbor_sample`` takes it as it is, at the same speed. Its ``rowptr`` is worked out anew whenever it is asked
        for; let go of this graph to free the memory.
        """
        from gossamer.graph import compact

        return compact.CompactCSR(self)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> CSR:
        """Map a saved graph into memory without reading it.

        The header and the length of the file are checked at once. Each tensor is checked when it is first used:
        its checksum, and that its rows ascend and its ids are nodes. So opening takes the same time for every
        size, and nothing is used unseen. The pages are private: writing to a tensor never changes the file.

        Args:
            path: a file that ``save`` wrote.
            verify: False trusts the content of the tensors; an altered file may then crash the process.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is no graph file, is cut short or altered; for a tensor, when it is first used.
        """
        from gossamer.graph import csr_file

        return csr_file.MappedCSR(path, verify=verify)

    def equal(self, other: CSR) -> bool:
        """Whether both graphs have the same nodes and the same tensors, to the order of the edges and the dtype."""
        return (
            isinstance(other, CSR)
            and self.num_nodes == other.num_nodes
            and all(_same(a, b) for a, b in zip(self._tensors(), other._tensors()))
        )

    def __repr__(self) -> str:
        extras = [f"{name}={t.dtype}" for name in _FIELDS[1:] if (t := getattr(self, name)) is not None]
        sizes = f"num_nodes={self.num_nodes}, num_edges={self.num_edges}"
        return f"CSR({sizes}, {', '.join(extras)}, device={self.device})".replace("torch.", "")

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*_FIELDS, "num_nodes")}  # without what is cached

    def _tensors(self) -> list[Tensor | None]:
        return [getattr(self, name) for name in _FIELDS]


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def _col_dtype(num_nodes: int) -> torch.dtype:
    return torch.int32 if num_nodes < 2**31 else torch.int64


def _select(values: Tensor | None, positions: Tensor) -> Tensor | None:
    return None if values is None else values.index_select(0, positions)  # three times as fast as values[positions]


def _count_rows(rows: Tensor, num_nodes: int) -> Tensor:
    """rowptr [num_nodes + 1] of edges with the given rows, in any order."""
    rowptr = torch.zeros(num_nodes + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(rows.bincount(minlength=num_nodes), 0, out=rowptr[1:])
    return rowptr
