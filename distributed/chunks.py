"""The chunked graph of one stage: current, historical and gradient rows of every aggregation (GNNPipe).

Within an epoch the chunks pass a stage one after another. An aggregation of chunk c reads its neighbours from a
buffer of all rows, in which the chunks that came before hold current rows and the others historical ones. In the
backward pass, which runs in the reverse order, it pulls the gradient of its rows from a buffer of all output
gradients; whether the chunks that have not come yet hold any there, and what a chunk leaves, is a rule of
cross_gradient.

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
from typing import Any

import torch
from torch import Tensor

from gossamer.distributed.channel import Channel
from gossamer.distributed.cross_gradient import CrossChunkGradient, cross_chunk_gradient
from gossamer.distributed.history import HistoryKeeper, HistoryPolicy
from gossamer.distributed.layout import Part
from gossamer.distributed.pulls import Pulled, PullOrder
from gossamer.distributed.sites import Extremum, Linear, Rows, Site
from gossamer.graph import CSR
from gossamer.graph.aggregate import propagation

__all__ = ["AGGREGATION", "ChunkView", "ChunkedGraph", "WholeView"]

AGGREGATION = "_AggregateBackward"  # the gradient function that writes into the buffers of a chunk


@dataclass
class ChunkedGraph:
    """The rows of one way, numbered chunk by chunk, with the buffers of one stage.

    Args:
        part: the graph of the way; N is the number of its own nodes.
        channel: to the other ways.
        history: how rows are kept for later epochs.
        gradient: the rule of gradients that cross chunks.
        recompute: run layers again in the backward pass; aggregations only where one chunk is all the graph.
        shells: more graphs over the nodes of the part, for layers that read several; one way alone.

    Source: GNNPipe (arXiv 2308.10087) and the semantics of its code.
    """

    part: Part
    channel: Channel
    history: HistoryPolicy = field(default_factory=HistoryPolicy)
    gradient: CrossChunkGradient = field(default_factory=lambda: cross_chunk_gradient("rescaled"))
    recompute: bool = False
    shells: list[CSR] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    step: int = 0

    def __post_init__(self) -> None:
        self.graph, self.bounds, self.node_ids = self.part.graph, self.part.bounds, self.part.node_ids
        self._position = {chunk: chunk for chunk in range(self.num_chunks)}
        self.keeper = HistoryKeeper(self.part, self.channel, self.history, self.shells or [self.graph])
        self._pull_order = PullOrder(self.part)

    @property
    def num_chunks(self) -> int:
        return self.part.num_chunks

    def begin_epoch(self, epoch: int, order: list[int]) -> None:
        """Start from the historical rows; the chunks will pass in this order."""
        self.step = epoch
        self._position = {chunk: position for position, chunk in enumerate(order)}
        self.keeper.begin_epoch(epoch, order, self.sites)
        self._pull_order.begin_epoch(order)

    def end_epoch(self) -> None:
        """Take the snapshots that are due, and make the gradients of this epoch the last ones where they are kept."""
        if self.num_chunks == 1:
            return
        self.keeper.end_epoch(self.sites)
        for site in self.sites:
            if site.last_gradients is not None:
                site.gradients.copy_(site.last_gradients)

    def num_reads(self) -> tuple[int, list[int]]:
        """Rows that chunks read from others in this epoch: current, and historical by the chunk they are of."""
        return self.keeper.num_reads()

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

    def whole_view(self, *, keep: bool = False) -> WholeView:
        """The graph for exact inference: every row is current. ``keep`` puts the rows where training reads them."""
        return WholeView(self, keep=keep)

    def fetch(self, chunk: int, x: Tensor, rows: Tensor) -> Callable[[], None]:
        """Start to exchange the rows of a chunk; what this way reads of others comes into ``rows`` [N + halo, F]."""
        if self.part.is_whole:
            return _no_wait
        leaving = [x[ids] for ids in self.part.send_ids[chunk]]
        return self.channel.swap(leaving, [rows[a:b] for a, b in pairwise(self.part.halo_bounds[chunk])])

    def pulled(self, graph: CSR) -> Pulled:
        """The edges along which chunks pull gradients: all where those of the last epoch are in the buffers."""
        return Pulled(graph) if self.gradient.keeps_last or self.num_chunks == 1 else self._pull_order.pulled(graph)

    def site(self, index: int, like: Tensor) -> Site:
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

    def _new_site(self, like: Tensor) -> Site:
        def zeros(num_rows: int) -> Tensor:
            return like.new_zeros(num_rows, *like.shape[1:])

        num_all, num_own, several = self.graph.num_nodes, self.part.num_own, self.num_chunks > 1
        outputs = zeros(num_own) if self.keeps_outputs else None
        for other in self.sites if self.shares_rows else ():
            if other.inputs.shape[1:] == like.shape[1:] and other.inputs.dtype == like.dtype:
                return Site(other.inputs, other.gradients, None, None, outputs)
        history = self.history.new(like, num_all, len(self.sites)) if several and self.history.period > 1 else None
        last = zeros(num_own) if several and self.gradient.keeps_copy else None
        return Site(zeros(num_all), zeros(num_own), history, last, outputs)

    def state_dict(self) -> dict[str, Tensor]:
        """What the next epoch depends on: the rows that it starts from, and last gradients where they are kept."""
        if self.num_chunks == 1:
            return {}
        state = {"taken": self.keeper.taken_epochs()}
        for i, site in enumerate(self.sites):
            state[f"{i}.like"] = site.inputs[:0].clone()
            for part, tensor in enumerate(self._kept(site)):
                state[f"{i}.{part}"] = tensor
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave."""
        self.sites = []
        if "taken" in state:
            self.keeper.load_taken_epochs(state["taken"])
        for i in range(sum(name.endswith(".like") for name in state)):
            site = self.site(i, state[f"{i}.like"])
            for part, tensor in enumerate(self._kept(site)):
                tensor.copy_(state[f"{i}.{part}"])
            if site.last_gradients is not None:
                site.last_gradients.copy_(site.gradients)

    def _kept(self, site: Site) -> list[Tensor]:
        rows = [site.inputs] if site.history is None else site.history.state()
        return rows + [site.gradients] * self.gradient.keeps_last


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
            return self._pass(x, Extremum(edge_weight, reduce == "min"), None)
        return self._pass(x, Linear(propagation(graph, reduce, dtype=x.dtype)), None)

    def gcn_aggregate(
        self, x: Tensor, *, weight: Tensor | None = None, residual: Tensor | None = None, alpha: float = 0.0
    ) -> Tensor:
        if weight is not None:
            raise ValueError("gcn_aggregate: weight must be None in a pipelined layer (it belongs to the graph)")
        return self._pass(x, Linear(propagation(self._graph, "gcn", dtype=x.dtype), alpha), residual)

    @abstractmethod
    def _pass(self, x: Tensor, kind: Linear | Extremum, residual: Tensor | None) -> Tensor:
        """The aggregation of the rows of the view."""


class WholeView(_View):
    """All rows of the way, in exact inference; with ``keep`` they become the inputs of the aggregations in training."""

    def __init__(
        self,
        chunked: ChunkedGraph,
        graph: CSR | None = None,
        *,
        keep: bool = False,
        sites: Iterator[int] | None = None,
    ) -> None:
        super().__init__(chunked, 0, chunked.part.num_own, graph or chunked.graph)
        self._keep, self._sites = keep, sites or count()

    def _along(self, graph: CSR) -> WholeView:
        return WholeView(self._chunked, graph, keep=self._keep, sites=self._sites)

    def _pass(self, x: Tensor, kind: Linear | Extremum, residual: Tensor | None) -> Tensor:
        chunked, rows = self._chunked, x.contiguous()
        if chunked.graph.num_nodes > self.num_nodes:
            rows = x.new_empty(chunked.graph.num_nodes, *x.shape[1:])
            rows[: self.num_nodes] = x
        arrivals = [chunked.fetch(k, x[a:b], rows) for k, (a, b) in enumerate(pairwise(chunked.bounds))]
        for wait in arrivals:
            wait()
        if self._keep:
            chunked.site(next(self._sites), x).inputs.copy_(rows)
        return kind.infer(rows, Rows.of(self._graph, 0, self.num_nodes), residual)


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

    def _pass(self, x: Tensor, kind: Linear | Extremum, residual: Tensor | None) -> Tensor:
        site = self._chunked.site(next(self._sites), x)
        return _Aggregate.apply(x, residual, self, site, kind)

    def forward(self, site: Site, x: Tensor, kind: Linear | Extremum, residual: Tensor | None) -> Tensor:
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
        self, site: Site, kind: Linear | Extremum, residual: Tensor | None, begin: int, end: int
    ) -> Tensor:
        graph = self._graph
        own = None if residual is None else residual[begin - self.begin : end - self.begin]
        return kind.forward(graph, site, Rows.of(graph, begin, end), own)

    def backward(self, site: Site, grad: Tensor, kind: Linear | Extremum) -> Tensor:
        """Gradient of this chunk's rows from the output gradients of the chunks that used them in this epoch."""
        own = site.gradients[self.begin : self.end]
        own.copy_(grad)
        grad_x = self.pull(site, kind)
        chunked = self._chunked
        if chunked.num_chunks > 1:
            last = None if site.last_gradients is None else site.last_gradients[self.begin : self.end]
            chunked.gradient.leave(own, last, chunked._position[self._chunk], chunked.num_chunks)
        return grad_x

    def pull(self, site: Site, kind: Linear | Extremum) -> Tensor:
        """Gradient of this chunk's rows from the output gradients that are in the buffer, of all ways."""
        chunked = self._chunked
        graph, pulled = self._graph, chunked.pulled(self._graph)
        if chunked.part.is_whole:
            return kind.backward(graph, site, pulled, self.begin, self.end)
        cells, send_ids = chunked.part.halo_bounds[self._chunk], chunked.part.send_ids[self._chunk]
        empty = site.gradients[:0]
        leaving = [kind.backward(graph, site, pulled, a, b) if a < b else empty for a, b in pairwise(cells)]
        arriving = [empty.new_empty(len(ids), *empty.shape[1:]) for ids in send_ids]
        wait = chunked.channel.swap(leaving, arriving)
        grad_x = kind.backward(graph, site, pulled, self.begin, self.end)
        wait()
        for ids, rows in zip(send_ids, arriving):
            grad_x.index_add_(0, ids, rows)
        return grad_x


def _no_wait() -> None:
    """No way is there to wait for."""


class _Aggregate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, view: ChunkView, site: Site, kind: Linear | Extremum
    ) -> Tensor:
        ctx.call = (view, site, kind)
        return view.forward(site, x, kind, residual)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        view, site, kind = ctx.call
        grad_residual = kind.alpha * grad if ctx.needs_input_grad[1] else None
        return view.backward(site, grad, kind), grad_residual, None, None, None
