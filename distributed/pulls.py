"""Along which edges a chunk pulls gradients: those that lead to chunks whose gradients are there.

In the backward pass of a stale epoch a chunk finds the gradients of itself and of the chunks after it in the order. The
edges to the chunks before it would only add zeros, and they are close to half of the edges that cross chunks: without
them a pull reads fewer rows, and nobody has to clear the buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gossamer.distributed.layout import Part
from gossamer.graph import CSR

__all__ = ["Pulled", "PullOrder"]


class Pulled:
    """The rows of a transposed graph, all of their edges or those of ``kept``.

    Attributes:
        rowptr, col: as of the transposed CSR.
    """

    def __init__(self, graph: CSR, kept: Tensor | None = None) -> None:
        transposed = graph.transpose()
        self.rowptr, self.col = transposed.rowptr, transposed.col
        self._graph, self._kept = graph, kept
        if kept is not None:
            ends = kept.new_zeros(len(kept) + 1, dtype=self.rowptr.dtype)
            torch.cumsum(kept, 0, out=ends[1:])
            self.rowptr, self.col = ends[self.rowptr], self.col[kept]

    @cached_property
    def edge_ids(self) -> Tensor:
        """[edges of these rows]: each one's number in the graph."""
        ids = self._graph._transpose_positions
        return ids if self._kept is None else ids[self._kept]


class PullOrder:
    """The rows that chunks pull along in one order of them, for one graph after another of a part."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._pairs: WeakKeyDictionary[CSR, Tensor] = WeakKeyDictionary()  # puller and pulled of transposed edges
        self._pulled: WeakKeyDictionary[CSR, Pulled] = WeakKeyDictionary()  # of this epoch
        self.begin_epoch(range(part.num_chunks))

    def begin_epoch(self, order: Sequence[int]) -> None:
        """The chunks will pass forward in this order and come back in its reverse."""
        place = torch.empty(len(order), dtype=torch.int64)
        place[list(order)] = torch.arange(len(order))
        self._is_there = place[:, None] <= place
        self._pulled.clear()

    def pulled(self, graph: CSR) -> Pulled:
        """The rows of the transposed graph, with the edges to chunks that come back no later than the puller."""
        if graph not in self._pulled:
            if graph not in self._pairs:
                self._pairs[graph] = self._pair_of_edges(graph)
            is_there = self._is_there.flatten().to(graph.rowptr.device)
            self._pulled[graph] = Pulled(graph, is_there[self._pairs[graph]])
        return self._pulled[graph]

    def _pair_of_edges(self, graph: CSR) -> Tensor:
        chunk, transposed = self._part.chunk, graph.transpose()
        pairs = chunk[transposed._rows] * self._part.num_chunks + chunk[transposed.col.long()]
        return pairs.to(torch.int32)
