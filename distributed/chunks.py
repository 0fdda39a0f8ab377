"""The chunked graph of one stage: current, historical and gradient rows of every aggregation (GNNPipe).

Within an epoch the chunks pass a stage one after another. An aggregation of chunk c reads its neighbours from a
buffer of all rows, in which the chunks that came before hold current rows and the others historical ones. In the
backward pass, which runs in the reverse order, it pulls the gradient of its rows from a buffer of all output
gradients, in which the chunks that have not come yet hold zeros: no gradient flows through history.

Where several ways share the stage, the rows of a chunk that other ways read travel to them before the aggregation, and
overlap with the aggregation of the interior rows. In the backward pass every way sends what its rows contribute to
the gradients of rows of others, and adds up what it gets, in the order of the ways.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gossamer.distributed.channel import Channel
from gossamer.distributed.layout import Part
from gossamer.graph import CSR
from gossamer.graph.aggregate import Propagation, propagation

__all__ = ["AGGREGATION", "ChunkView", "ChunkedGraph", "WholeView"]

# The gradients of a chunk's aggregations are taken here, so that the operators need none: skipping their wrappers in
# Python spares a third of what a call on a small chunk takes.
_below_autograd = torch._C._AutoDispatchBelowAutograd
AGGREGATION = "_AggregateBackward"  # the gradient function that writes into the buffers of a chunk


@dataclass
class _Site:
    """One aggregation of the stage: its rows of all chunks."""

    inputs: Tensor  # [N + halo, F] current rows, historical ones where this epoch has not been
    gradients: Tensor  # [N, F] gradient of the output
    history: Tensor | None  # [N + halo, F] the snapshot that an epoch starts from
    outputs: Tensor | None  # [N, F] kept for recomputation
    args: Tensor | None = None  # [N, F], int32, the winning edges of a maximum or minimum


class _Rows(NamedTuple):
    """The rows [begin, end) of a CSR, as the operators take them."""

    rowptr: Tensor
    col: Tensor
    begin: int
    end: int

    @classmethod
    def of(cls, graph: CSR, begin: int, end: int) -> _Rows:
        return cls(graph.rowptr[begin : end + 1], graph.col, begin, end)


class _Linear(NamedTuple):
    """(1 - alpha) P x + alpha residual, with P a propagation."""

    p: Propagation
    alpha: float = 0.0

    def forward(self, graph: CSR, site: _Site, rows: _Rows, residual: Tensor | None) -> Tensor:
        return self.infer(site.inputs, rows, residual)

    def infer(self, x: Tensor, rows: _Rows, residual: Tensor | None) -> Tensor:
        return self._apply(x, rows, self.p, None, residual)

    def backward(self, graph: CSR, site: _Site, rows: _Rows) -> Tensor:
        """Halo rows get no self loop: it is a message of the way that owns them."""
        num_own = len(site.gradients)
        col_scale = None if self.p.row_scale is None else self.p.row_scale[:num_own]
        transposed = Propagation(self.p.weight, self.p.col_scale, col_scale, self.p.self_loops and rows.end <= num_own)
        positions = None if self.p.weight is None else graph._transpose_positions
        return self._apply(site.gradients, rows, transposed, positions, None)

    def _apply(
        self, x: Tensor, rows: _Rows, p: Propagation, edge_ids: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        row_scale = None if p.row_scale is None else p.row_scale[rows.begin : rows.end]
        with _below_autograd():
            return torch.ops.gossamer.aggregate(
                x, rows.rowptr, rows.col, p.weight, edge_ids, row_scale, p.col_scale, p.self_loops, rows.begin,
                residual, self.alpha, None, None, None,
            )  # fmt: skip


class _Extremum(NamedTuple):
    """The maximum or minimum; which edge won is kept for the backward pass."""

    weight: Tensor | None
    minimum: bool
    alpha: float = 0.0

    def forward(self, graph: CSR, site: _Site, rows: _Rows, residual: Tensor | None) -> Tensor:
        out, arg = self._winners(site.inputs, rows)
        if site.args is None:
            site.args = torch.full(site.gradients.shape, -1, dtype=torch.int32, device=out.device)
        site.args[rows.begin : rows.end] = arg
        return out

    def infer(self, x: Tensor, rows: _Rows, residual: Tensor | None) -> Tensor:
        return self._winners(x, rows)[0]

    def _winners(self, x: Tensor, rows: _Rows) -> tuple[Tensor, Tensor]:
        return torch.ops.gossamer.extremum(x, rows.rowptr, rows.col, self.weight, self.minimum, None, None, None)

    def backward(self, graph: CSR, site: _Site, rows: _Rows) -> Tensor:
        return torch.ops.gossamer.extremum_backward(
            site.gradients, site.args, graph.rowptr[: len(site.gradients) + 1], self.weight, rows.rowptr, rows.col,
            graph._transpose_positions,
        )  # fmt: skip


@dataclass
class ChunkedGraph:
    """The rows of one way, numbered chunk by chunk, with the buffers of one stage.

    Args:
        part: the graph of the way; N is the number of its own nodes.
        channel: to the other ways.
        refresh_period: epochs between two snapshots of the history; 1 keeps the last epoch's rows.
        drop_stale_gradients: zero the gradient rows at the end of an epoch; else they stay, as stale gradients.
        cross_chunk_scale: factor on gradients that cross chunks; 2 makes them unbiased per hop.
        recompute: run layers again in the backward pass; aggregations only where one chunk is all the graph.
        shells: more graphs over the nodes of the part, for layers that read several; one way alone.

    Source: GNNPipe (arXiv 2308.10087) and the semantics of its code.
    """

    part: Part
    channel: Channel
    refresh_period: int = 23
    drop_stale_gradients: bool = True
    cross_chunk_scale: float = 2.0
    recompute: bool = False
    shells: list[CSR] = field(default_factory=list)
    sites: list[_Site] = field(default_factory=list)
    step: int = 0

    def __post_init__(self) -> None:
        self.graph, self.bounds, self.node_ids = self.part.graph, self.part.bounds, self.part.node_ids

    @property
    def num_chunks(self) -> int:
        return self.part.num_chunks

    @property
    def _keeps_history(self) -> bool:
        return self.num_chunks > 1 and self.refresh_period > 1

    def begin_epoch(self, epoch: int) -> None:
        """Start from the historical rows (unless this epoch follows a snapshot)."""
        self.step = epoch
        for site in self.sites:
            if site.history is not None and epoch % self.refresh_period != 0:
                site.inputs.copy_(site.history)

    def end_epoch(self, epoch: int) -> None:
        """Take the snapshot that is due and forget the gradients."""
        for site in self.sites:
            if site.history is not None and (epoch + 1) % self.refresh_period == 0:
                site.history.copy_(site.inputs)
            if self.num_chunks > 1 and self.drop_stale_gradients:
                site.gradients.zero_()

    @property
    def shares_rows(self) -> bool:
        return self.num_chunks == 1  # an aggregation is over before the next begins: all of them use the same rows

    @property
    def keeps_outputs(self) -> bool:
        """Whether aggregations are replayed from memory in the backward pass."""
        return self.recompute and (not self.shares_rows or self.graph.num_nodes > self.part.num_own)

    def view(self, chunk: int, *, replay: bool = False, first_site: int = 0) -> ChunkView:
        """The graph as ``chunk`` passes the layers from aggregation ``first_site`` on; ``replay`` reads memory."""
        return ChunkView(self, chunk, replay, sites=count(first_site))

    def whole_view(self) -> WholeView:
        """The graph for exact inference: every row is current."""
        return WholeView(self)

    def fetch(self, chunk: int, x: Tensor, rows: Tensor) -> Callable[[], None]:
        """Start to exchange the rows of a chunk; what this way reads of others comes into ``rows`` [N + halo, F]."""
        if self.part.is_whole:
            return _no_wait
        leaving = [x[ids] for ids in self.part.send_ids[chunk]]
        return self.channel.swap(leaving, [rows[a:b] for a, b in pairwise(self.part.halo_bounds[chunk])])

    def site(self, index: int, like: Tensor) -> _Site:
        """The buffers of the stage's aggregation number ``index``, made at its first use with zero history."""
        if index == len(self.sites):
            self.sites.append(self._new_site(like))
        site = self.sites[index]
        if site.inputs.shape[1:] != like.shape[1:] or site.inputs.dtype != like.dtype:
            raise ValueError(
                "train_epoch: layers must aggregate the same widths and dtypes for every chunk, got "
                f"{tuple(like.shape[1:])} {like.dtype} after {tuple(site.inputs.shape[1:])} {site.inputs.dtype}"
            )
        return site

    def _new_site(self, like: Tensor) -> _Site:
        def zeros(num_rows: int) -> Tensor:
            return like.new_zeros(num_rows, *like.shape[1:])

        num_all, num_own = self.graph.num_nodes, self.part.num_own
        outputs = zeros(num_own) if self.keeps_outputs else None
        for other in self.sites if self.shares_rows else ():
            if other.inputs.shape[1:] == like.shape[1:] and other.inputs.dtype == like.dtype:
                return _Site(other.inputs, other.gradients, None, outputs)
        history = zeros(num_all) if self._keeps_history else None
        return _Site(zeros(num_all), zeros(num_own), history, outputs)

    def state_dict(self) -> dict[str, Tensor]:
        """What the next epoch depends on: the rows that it starts from, and stale gradients where they are kept."""
        if self.num_chunks == 1:
            return {}
        state = {}
        for i, site in enumerate(self.sites):
            state[f"{i}.rows"] = site.inputs if site.history is None else site.history
            if not self.drop_stale_gradients:
                state[f"{i}.gradients"] = site.gradients
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave (an epoch that follows a snapshot starts from equal rows and history)."""
        self.sites = []
        for i in range(sum(name.endswith(".rows") for name in state)):
            site = self.site(i, state[f"{i}.rows"])
            site.inputs.copy_(state[f"{i}.rows"])
            if site.history is not None:
                site.history.copy_(state[f"{i}.rows"])
            if not self.drop_stale_gradients:
                site.gradients.copy_(state[f"{i}.gradients"])


class _View(ABC):
    """What stands where a layer expects a graph; ``aggregate`` and ``gcn_aggregate`` of gossamer.graph hand over to it.

    Args:
        chunked: the rows of the way.
        begin, end: those of the view.
        graph: whose edges are followed; that of the part, or a shell.

    Attributes:
        begin, end: its rows, as numbered in the part.
        node_ids: the numbers of its rows in the whole graph (keys of random streams).
        step: the epoch, which changes those streams.
        num_edges: of the graph that it is a view of.
        shells: views of the shells, where there are any.
    """

    def __init__(self, chunked: ChunkedGraph, begin: int, end: int, graph: CSR) -> None:
        self._chunked, self._graph = chunked, graph
        self.num_edges = graph.num_edges
        self.begin, self.end = begin, end
        self.num_nodes = end - begin
        self.node_ids = chunked.node_ids[begin:end]
        self.step = chunked.step

    @cached_property
    def shells(self) -> list[_View]:
        return [self._along(shell) for shell in self._chunked.shells]

    @abstractmethod
    def _along(self, graph: CSR) -> _View:
        """The same rows, along the edges of another graph."""

    def aggregate(self, x: Tensor, *, weight: Tensor | None = None, reduce: str = "sum") -> Tensor:
        graph = self._graph
        if weight is not None:
            raise ValueError("aggregate: weight must be None in a pipelined layer (edge weights belong to the graph)")
        if reduce in ("max", "min"):
            edge_weight = None if graph.weight is None else graph.weight.to(x.dtype)
            return self._pass(x, _Extremum(edge_weight, reduce == "min"), None)
        return self._pass(x, _Linear(propagation(graph, reduce, dtype=x.dtype)), None)

    def gcn_aggregate(
        self, x: Tensor, *, weight: Tensor | None = None, residual: Tensor | None = None, alpha: float = 0.0
    ) -> Tensor:
        if weight is not None:
            raise ValueError("gcn_aggregate: weight must be None in a pipelined layer (it belongs to the graph)")
        return self._pass(x, _Linear(propagation(self._graph, "gcn", dtype=x.dtype), alpha), residual)

    @abstractmethod
    def _pass(self, x: Tensor, kind: _Linear | _Extremum, residual: Tensor | None) -> Tensor:
        """The aggregation of the rows of the view."""


class WholeView(_View):
    """All rows of the way, in exact inference."""

    def __init__(self, chunked: ChunkedGraph, graph: CSR | None = None) -> None:
        super().__init__(chunked, 0, chunked.part.num_own, graph or chunked.graph)

    def _along(self, graph: CSR) -> WholeView:
        return WholeView(self._chunked, graph)

    def _pass(self, x: Tensor, kind: _Linear | _Extremum, residual: Tensor | None) -> Tensor:
        chunked, rows = self._chunked, x.contiguous()
        if chunked.graph.num_nodes > self.num_nodes:
            rows = x.new_empty(chunked.graph.num_nodes, *x.shape[1:])
            rows[: self.num_nodes] = x
        arrivals = [chunked.fetch(k, x[a:b], rows) for k, (a, b) in enumerate(pairwise(chunked.bounds))]
        for wait in arrivals:
            wait()
        return kind.infer(rows, _Rows.of(self._graph, 0, self.num_nodes), residual)


class ChunkView(_View):
    """The rows of one chunk, in training; ``sites`` numbers the aggregations along all graphs."""

    def __init__(
        self,
        chunked: ChunkedGraph,
        chunk: int,
        replay: bool,
        graph: CSR | None = None,
        sites: Iterator[int] | None = None,
    ) -> None:
        super().__init__(chunked, chunked.bounds[chunk], chunked.bounds[chunk + 1], graph or chunked.graph)
        self._chunk = chunk
        self._replay = replay
        self._sites = sites or count()

    @property
    def next_site(self) -> int:
        return next(copy(self._sites))

    def _along(self, graph: CSR) -> ChunkView:
        return ChunkView(self._chunked, self._chunk, self._replay, graph, self._sites)

    def _pass(self, x: Tensor, kind: _Linear | _Extremum, residual: Tensor | None) -> Tensor:
        site = self._chunked.site(next(self._sites), x)
        return _Aggregate.apply(x, residual, self, site, kind)

    def forward(self, site: _Site, x: Tensor, kind: _Linear | _Extremum, residual: Tensor | None) -> Tensor:
        """Aggregation of this chunk's rows from the current and historical rows of all chunks."""
        if self._replay:
            assert site.outputs is not None
            return site.outputs[self.begin : self.end].clone()
        site.inputs[self.begin : self.end] = x
        wait = self._chunked.fetch(self._chunk, x, site.inputs)
        middle = self._chunked.part.middles[self._chunk]
        pieces = [self._aggregate_rows(site, kind, residual, self.begin, middle)]
        wait()
        if middle < self.end:
            pieces.append(self._aggregate_rows(site, kind, residual, middle, self.end))
        out = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if site.outputs is not None:
            site.outputs[self.begin : self.end] = out
        return out

    def _aggregate_rows(
        self, site: _Site, kind: _Linear | _Extremum, residual: Tensor | None, begin: int, end: int
    ) -> Tensor:
        graph = self._graph
        own = None if residual is None else residual[begin - self.begin : end - self.begin]
        return kind.forward(graph, site, _Rows.of(graph, begin, end), own)

    def backward(self, site: _Site, grad: Tensor, kind: _Linear | _Extremum) -> Tensor:
        """Gradient of this chunk's rows from the output gradients of the chunks that used them in this epoch."""
        own = site.gradients[self.begin : self.end]
        own.copy_(grad)
        grad_x = self.pull(site, kind)
        own.mul_(self._chunked.cross_chunk_scale)
        return grad_x

    def pull(self, site: _Site, kind: _Linear | _Extremum) -> Tensor:
        """Gradient of this chunk's rows from the output gradients that are in the buffer, of all ways."""
        chunked = self._chunked
        graph, transposed = self._graph, self._graph.transpose()
        if chunked.part.is_whole:
            return kind.backward(graph, site, _Rows.of(transposed, self.begin, self.end))
        cells, send_ids = chunked.part.halo_bounds[self._chunk], chunked.part.send_ids[self._chunk]
        empty = site.gradients[:0]
        leaving = [
            kind.backward(graph, site, _Rows.of(transposed, a, b)) if a < b else empty for a, b in pairwise(cells)
        ]
        arriving = [empty.new_empty(len(ids), *empty.shape[1:]) for ids in send_ids]
        wait = chunked.channel.swap(leaving, arriving)
        grad_x = kind.backward(graph, site, _Rows.of(transposed, self.begin, self.end))
        wait()
        for ids, rows in zip(send_ids, arriving):
            grad_x.index_add_(0, ids, rows)
        return grad_x


def _no_wait() -> None:
    """No way is there to wait for."""


class _Aggregate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, view: ChunkView, site: _Site, kind: _Linear | _Extremum
    ) -> Tensor:
        ctx.call = (view, site, kind)
        return view.forward(site, x, kind, residual)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        view, site, kind = ctx.call
        grad_residual = kind.alpha * grad if ctx.needs_input_grad[1] else None
        return view.backward(site, grad, kind), grad_residual, None, None, None
