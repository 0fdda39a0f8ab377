"""What sampling prepares once per graph: edges in time order, tables of the weights, scratch memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Relation", "SamplingIndex", "checked_weight", "prepare_relation"]


@dataclass(frozen=True)
class Relation:
    """The edges of one type, ready to be sampled: row i lists the sources of the edges into target i.

    Args:
        rowptr: [num_targets + 1], int64, or the lines of a compact graph, [num_lines, 32], int16.
        col: [num_edges], int32 or int64; like edge_ids and alias perhaps a strided view (see _side_by_side).
        edge_ids: [num_edges], int32 or int64, the caller's number of each edge; None where that is its position.
        weight: [num_edges], float32, with ``alias`` [2, num_edges], int32 (AliasTable of laws.h).
        time: [num_edges], int64, ascending within each row; with weights also ``cumulative`` [num_edges], float64.
            None beside other relations with times: always visible.
        source_type, target_type: numbers of the node types.
    """

    rowptr: Tensor
    col: Tensor
    edge_ids: Tensor | None = None
    weight: Tensor | None = None
    alias: Tensor | None = None
    cumulative: Tensor | None = None
    time: Tensor | None = None
    source_type: int = 0
    target_type: int = 0


def prepare_relation(
    rowptr: Tensor,
    col: Tensor,
    *,
    edge_ids: Tensor | None = None,
    weight: Tensor | None = None,
    time: Tensor | None = None,
    source_type: int = 0,
    target_type: int = 0,
    row_pointers: Tensor | None = None,
) -> Relation:
    """Sort the edges of every row by time, stably and only if they are not sorted yet, and tabulate the weights.

    The tensors may be on a GPU, or pinned: then so is what is made here. ``row_pointers`` is what to keep of rowptr.
    """
    order = None if time is None else _time_order(rowptr, time)
    if order is not None and time is not None:
        col, time = col[order], time[order]
        weight = None if weight is None else weight[order]
        edge_ids = order if edge_ids is None else edge_ids[order]
    alias = cumulative = None
    if weight is not None:
        weight = checked_weight(weight)
        on_cpu = (rowptr.cpu(), weight.cpu())
        alias = torch.ops.gossamer.alias_table(*on_cpu)
        cumulative = None if time is None else torch.ops.gossamer.cumulative_weights(*on_cpu)
    rows = rowptr if row_pointers is None else row_pointers
    if order is not None or alias is not None:  # else col may be a mapped file, too large to copy
        col, edge_ids, alias = _side_by_side(rowptr, col, edge_ids, alias)
    else:
        col, edge_ids = _beside(rowptr, col), _beside(rowptr, edge_ids)
    weight, cumulative, time = (_beside(rowptr, tensor) for tensor in (weight, cumulative, time))
    return Relation(rows.contiguous(), col, edge_ids, weight, alias, cumulative, time, source_type, target_type)


def _side_by_side(
    rowptr: Tensor, col: Tensor, edge_ids: Tensor | None, alias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Columns, numbers and tables of the weights as views of one array: all of an edge is on one cache line."""
    numbers = [col] if edge_ids is None else [col, edge_ids]
    if not all(_is_narrow(tensor) for tensor in numbers):
        return _beside(rowptr, col), _beside(rowptr, edge_ids), _beside(rowptr, alias)
    tables = [] if alias is None else alias.to(col.device).unbind()
    edges = _beside(rowptr, torch.stack([*(n.to(torch.int32) for n in numbers), *tables], 1))
    ids = None if edge_ids is None else edges[:, 1]
    return edges[:, 0], ids, None if alias is None else edges[:, len(numbers) :].T


def _is_narrow(numbers: Tensor) -> bool:
    return numbers.dtype == torch.int32 or numbers.numel() == 0 or int(numbers.max()) < 2**31


def _beside(rowptr: Tensor, tensor: Tensor | None) -> Any:
    """The tensor, contiguous, on the device or in the pinned memory of rowptr."""
    if tensor is None:
        return None
    tensor = tensor.to(rowptr.device).contiguous()
    return tensor.pin_memory() if rowptr.is_pinned() and not tensor.is_pinned() else tensor


def _time_order(rowptr: Tensor, time: Tensor) -> Tensor | None:
    """Positions of the edges by row, then time; None if they stand so already."""
    rows = torch.repeat_interleave(torch.arange(rowptr.numel() - 1, device=rowptr.device), rowptr.diff())
    if bool(((time[1:] >= time[:-1]) | (rows[1:] != rows[:-1])).all()):
        return None
    order = torch.sort(time, stable=True).indices
    return order[torch.sort(rows[order], stable=True).indices]


def checked_weight(weight: Tensor) -> Tensor:
    """The weights as float32, if they can be sampled by."""
    weight = weight.to(torch.float32).contiguous()
    if not bool((torch.isfinite(weight) & (weight >= 0)).all()):
        raise ValueError("neighbor_sample: weight must be finite and not negative, got a value that is not")
    return weight


@dataclass
class SamplingIndex:
    """The relations of a graph, and the tables that give local ids to nodes.

    A call borrows a table and gives it back, so that concurrent calls never share one; a call that fails keeps it.
    """

    relations: Sequence[Relation]
    num_nodes: Sequence[int]
    tables: deque[Tensor] = field(default_factory=deque, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"relations": self.relations, "num_nodes": self.num_nodes, "tables": deque()}

    def sample(
        self,
        seeds: Sequence[Tensor],
        fanouts: Sequence[Sequence[float]],
        *,
        seed: int,
        replace: bool,
        temporal: str,
        window: int | None,
        seed_time: Sequence[Tensor] | None,
        disjoint: bool,
    ) -> RawSample:
        """Sample with ``fanouts`` [num_relations][num_hops]; seeds and times stand by node type."""
        table = torch.empty(0, dtype=torch.int32) if disjoint else self._borrow()
        out = torch.ops.gossamer.neighbor_sample(
            [r.rowptr for r in self.relations],
            [r.col for r in self.relations],
            self._column("weight"),
            self._column("alias"),
            self._timed_column("cumulative", torch.float64),
            self._timed_column("time", torch.int64) if seed_time is not None else [],
            [r.source_type for r in self.relations],
            [r.target_type for r in self.relations],
            list(self.num_nodes),
            list(seeds),
            [] if seed_time is None else list(seed_time),
            [float(fanout) for hops in fanouts for fanout in hops],
            _signed(seed),
            replace,
            temporal,
            window,
            disjoint,
            table,
            self._column("edge_ids"),
        )
        if not disjoint:
            self.tables.append(table)
        return self._unpack(iter(out), disjoint)

    def _borrow(self) -> Tensor:
        try:
            return self.tables.pop()
        except IndexError:
            return torch.zeros(sum(self.num_nodes) + 1, dtype=torch.int32)

    def _column(self, name: str) -> list[Tensor]:
        """One tensor per relation, or none where the relations have none."""
        columns = [getattr(relation, name) for relation in self.relations]
        return [] if any(column is None for column in columns) else columns

    def _timed_column(self, name: str, dtype: torch.dtype) -> list[Tensor]:
        """One tensor per relation, an empty one where a relation has no times; or none where no relation has."""
        columns = [getattr(relation, name) for relation in self.relations]
        if all(column is None for column in columns):
            return []
        return [torch.empty(0, dtype=dtype) if column is None else column for column in columns]

    def _unpack(self, out: Any, disjoint: bool) -> RawSample:
        nodes, batches, edges = [], [], []
        numbered = bool(self._column("edge_ids"))  # else some of the relations have no numbers
        for _ in self.num_nodes:
            nodes.append(next(out))
            batches.append(next(out) if disjoint else None)
        for relation in self.relations:
            row, col, edge = next(out), next(out), next(out)
            edges.append((row, col, edge if numbered or relation.edge_ids is None else relation.edge_ids[edge].long()))
        num_nodes = [next(out).tolist() for _ in self.num_nodes]
        num_edges = [next(out).tolist() for _ in self.relations]
        return RawSample(nodes, batches, edges, num_nodes, num_edges)


@dataclass(frozen=True)
class RawSample:
    """A sample by number of node type and relation."""

    node: list[Tensor]
    batch: list[Tensor | None]
    edges: list[tuple[Tensor, Tensor, Tensor]]  # row, col, edge
    num_nodes: list[list[int]]
    num_edges: list[list[int]]


def _signed(seed: int) -> int:
    """The 64 lower bits of a seed as the signed integer that operators take."""
    return ((seed + 2**63) % 2**64) - 2**63


@torch.library.register_fake("gossamer::alias_table")
def _(rowptr: Tensor, weight: Tensor) -> Tensor:
    return rowptr.new_empty(2, weight.shape[0], dtype=torch.int32)


@torch.library.register_fake("gossamer::cumulative_weights")
def _(rowptr: Tensor, weight: Tensor) -> Tensor:
    return weight.new_empty(weight.shape[0], dtype=torch.float64)


@torch.library.register_fake("gossamer::neighbor_sample")
def _(rowptr: list[Tensor], *arguments: Any) -> list[Tensor]:
    num_nodes, fanouts, disjoint = arguments[7], arguments[10], arguments[15]
    context = torch.library.get_ctx()
    node = [rowptr[0].new_empty(context.new_dynamic_size()) for _ in num_nodes]
    out = [torch.empty_like(n) for n in node for _ in range(1 + disjoint)]
    for _ in rowptr:
        edge = rowptr[0].new_empty(context.new_dynamic_size())
        out += [edge, torch.empty_like(edge), torch.empty_like(edge)]
    num_hops = len(fanouts) // len(rowptr)
    out += [rowptr[0].new_empty(num_hops + 1) for _ in num_nodes]
    return out + [rowptr[0].new_empty(num_hops) for _ in rowptr]
