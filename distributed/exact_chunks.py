"""The chunked graph of the exact mode: an aggregation waits for the rows that it reads, and every gradient flows.

The schedule calls a chunk again when the chunks that it reads have stored their rows, so that the buffers of an
aggregation hold current rows wherever it looks: no history, and nothing stale in the backward pass either.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gossamer.distributed.chunks import ChunkedGraph, ChunkView
from gossamer.distributed.cross_gradient import CrossChunkGradient, cross_chunk_gradient
from gossamer.distributed.history import HistoryPolicy
from gossamer.distributed.sites import Extremum, Linear, Site
from gossamer.graph import CSR

__all__ = ["Cut", "ExactGraph", "ExactView"]


@dataclass
class ExactGraph(ChunkedGraph):
    """As ChunkedGraph, with rows of this epoch only: no history, and no gradient is dropped or scaled."""

    history: HistoryPolicy = field(default_factory=lambda: HistoryPolicy(period=1))
    gradient: CrossChunkGradient = field(default_factory=lambda: cross_chunk_gradient("stale"))
    _arriving: dict[int, list[Callable[[], None]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def shares_rows(self) -> bool:
        """Never: a site is what aggregations wait for."""
        return False

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: an epoch starts from the weights alone."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """There is nothing to restore."""

    def num_reads(self) -> tuple[int, list[int]]:
        current, historical = super().num_reads()
        return current + sum(historical), [0] * self.num_chunks

    def publish(self, chunk: int, site: Site, x: Tensor) -> None:
        """Store the rows of a chunk and send them to the ways that read them."""
        rows = x.detach()
        site.inputs[self.bounds[chunk] : self.bounds[chunk + 1]] = rows
        self._arriving[id(site)].append(self.fetch(chunk, rows, site.inputs))

    def complete(self, site: Site) -> None:
        """Wait for the rows of other ways that are on their way to an aggregation."""
        for wait in self._arriving.pop(id(site), ()):
            wait()


@dataclass
class Cut:
    """One aggregation of one chunk: the graph of autograd ends at its inputs and begins anew at its output.

    Attributes:
        view, site, kind: where it happened.
        out: its rows, a leaf.
        random_state: of the CPU when the layer went on, for recomputation.
        x, residual: what it was given.
    """

    view: ExactView
    site: Site
    kind: Linear | Extremum
    out: Tensor
    random_state: Tensor | None
    x: Tensor | None = None
    residual: Tensor | None = None

    def give(self, gradient: Tensor | None) -> None:
        """Store the gradient of ``out`` for the chunks that were read."""
        own = self.site.gradients[self.view.begin : self.view.end]
        own.zero_() if gradient is None else own.copy_(gradient)

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """x and residual with their gradients, once all chunks that read this one have given theirs."""
        found = []
        if self.x is not None and self.x.requires_grad:
            found.append((self.x, self.view.pull(self.site, self.kind)))
        if self.residual is not None and self.residual.requires_grad:
            own = self.site.gradients[self.view.begin : self.view.end]
            found.append((self.residual, self.kind.alpha * own))
        return found


class ExactView(ChunkView):
    """One chunk of an ExactGraph, as the layers see it.

    Args:
        pause: called by every aggregation once its rows are stored; returns when those that it reads are there.
        past: the cuts of the forward pass in the recomputation, which takes aggregations from memory; else None.
        cuts: where cuts go.
    """

    def __init__(
        self,
        chunked: ExactGraph,
        chunk: int,
        pause: Callable[[], None],
        sites: Iterator[int],
        past: Iterator[Cut] | None = None,
        *,
        graph: CSR | None = None,
        cuts: list[Cut] | None = None,
    ) -> None:
        super().__init__(chunked, chunk, past is not None, graph, sites)
        self._exact, self._pause, self._past = chunked, pause, past
        self.cuts: list[Cut] = [] if cuts is None else cuts

    def _along(self, graph: CSR) -> ExactView:
        return ExactView(self._exact, self._chunk, self._pause, self._sites, self._past, graph=graph, cuts=self.cuts)

    def _pass(self, x: Tensor, kind: Linear | Extremum, residual: Tensor | None) -> Tensor:
        if self._past is not None:
            return self._repeat(next(self._past), x, residual)
        site = self._exact.site(next(self._sites), x)
        self._exact.publish(self._chunk, site, x)
        self._pause()
        self._exact.complete(site)
        keep, recompute = torch.is_grad_enabled(), self._exact.recompute
        with torch.no_grad():
            out = self._aggregate_rows(site, kind, residual, self.begin, self.end)
        if site.outputs is not None:
            site.outputs[self.begin : self.end] = out
        cut = Cut(self, site, kind, out.requires_grad_(keep), torch.get_rng_state() if recompute else None)
        if keep:
            cut.x, cut.residual = x, residual
        self.cuts.append(cut)
        return out

    def _repeat(self, cut: Cut, x: Tensor, residual: Tensor | None) -> Tensor:
        assert cut.site.outputs is not None
        assert cut.random_state is not None
        cut.out = cut.site.outputs[self.begin : self.end].clone().requires_grad_()
        cut.x, cut.residual = x, residual
        self.cuts.append(cut)
        torch.set_rng_state(cut.random_state)
        return cut.out
