"""The buffers of one aggregation, and the aggregations that read and fill them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.distributed.history import Snapshot
from gossamer.distributed.pulls import Pulled
from gossamer.graph import CSR
from gossamer.graph.aggregate import Propagation

__all__ = ["Extremum", "Linear", "Rows", "Site"]

# The gradients of a chunk's aggregations are taken here, so that the operators need none: skipping their wrappers in
# Python spares a third of what a call on a small chunk takes.
_below_autograd = torch._C._AutoDispatchBelowAutograd


@dataclass
class Site:
    """One aggregation of the stage: its rows of all chunks."""

    inputs: Tensor  # [N + halo, F] current rows, historical ones where this epoch has not been
    gradients: Tensor  # [N, F] gradient of the output
    history: Snapshot | None  # [N + halo, F] that an epoch starts from
    last_gradients: Tensor | None  # [N, F] of the last epoch, where the rule of cross-chunk gradients asks for them
    outputs: Tensor | None  # [N, F] kept for recomputation
    args: Tensor | None = None  # [N, F], int32, the winning edges of a maximum or minimum


class Rows(NamedTuple):
    """The rows [begin, end) of a graph, as the operators take them."""

    rowptr: Tensor
    col: Tensor
    begin: int
    end: int

    @classmethod
    def of(cls, graph: CSR | Pulled, begin: int, end: int) -> Rows:
        return cls(graph.rowptr[begin : end + 1], graph.col, begin, end)


class Linear(NamedTuple):
    """(1 - alpha) P x + alpha residual, with P a propagation."""

    p: Propagation
    alpha: float = 0.0

    def forward(self, graph: CSR, site: Site, rows: Rows, residual: Tensor | None) -> Tensor:
        return self.infer(site.inputs, rows, residual)

    def infer(self, x: Tensor, rows: Rows, residual: Tensor | None) -> Tensor:
        return self._apply(x, rows, self.p, None, residual)

    def backward(self, graph: CSR, site: Site, pulled: Pulled, begin: int, end: int) -> Tensor:
        """Halo rows get no self loop: it is a message of the way that owns them."""
        num_own, rows = len(site.gradients), Rows.of(pulled, begin, end)
        col_scale = None if self.p.row_scale is None else self.p.row_scale[:num_own]
        transposed = Propagation(self.p.weight, self.p.col_scale, col_scale, self.p.self_loops and rows.end <= num_own)
        edge_ids = None if self.p.weight is None else pulled.edge_ids
        return self._apply(site.gradients, rows, transposed, edge_ids, None)

    def _apply(self, x: Tensor, rows: Rows, p: Propagation, edge_ids: Tensor | None, residual: Tensor | None) -> Tensor:
        row_scale = None if p.row_scale is None else p.row_scale[rows.begin : rows.end]
        with _below_autograd():
            return torch.ops.gossamer.aggregate(
                x, rows.rowptr, rows.col, p.weight, edge_ids, row_scale, p.col_scale, p.self_loops, rows.begin,
                residual, self.alpha, None, None, None,
            )  # fmt: skip


class Extremum(NamedTuple):
    """The maximum or minimum; which edge won is kept for the backward pass."""

    weight: Tensor | None
    minimum: bool
    alpha: float = 0.0

    def forward(self, graph: CSR, site: Site, rows: Rows, residual: Tensor | None) -> Tensor:
        out, arg = self._winners(site.inputs, rows)
        if site.args is None:
            site.args = torch.full(site.gradients.shape, -1, dtype=torch.int32, device=out.device)
        site.args[rows.begin : rows.end] = arg
        return out

    def infer(self, x: Tensor, rows: Rows, residual: Tensor | None) -> Tensor:
        return self._winners(x, rows)[0]

    def _winners(self, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        return torch.ops.gossamer.extremum(x, rows.rowptr, rows.col, self.weight, self.minimum, None, None, None)

    def backward(self, graph: CSR, site: Site, pulled: Pulled, begin: int, end: int) -> Tensor:
        rows = Rows.of(pulled, begin, end)
        return torch.ops.gossamer.extremum_backward(
            site.gradients, site.args, graph.rowptr[: len(site.gradients) + 1], self.weight, rows.rowptr, rows.col,
            pulled.edge_ids,
        )  # fmt: skip
