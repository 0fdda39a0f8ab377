"""Aggregation over in-neighbours: the sparse product that every graph layer is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.graph.csr import CSR

__all__ = ["Propagation", "aggregate", "gcn_aggregate", "propagation"]


@dataclass(frozen=True)
class Propagation:
    """The linear map D_row (A_weight + self_loops I) D_col of an aggregation; None stands for ones."""

    weight: Tensor | None = None
    row_scale: Tensor | None = None
    col_scale: Tensor | None = None
    self_loops: bool = False


def aggregate(graph: Any, x: Tensor, *, weight: Tensor | None = None, reduce: str = "sum") -> Tensor:
    """out[i] = reduce over in-neighbours j of i of weight[j -> i] * x[j].

    ``graph`` is a CSR, or a view of one that owns its data flow (a chunk of the pipelined engine).
    """
    if not isinstance(graph, CSR):
        return graph.aggregate(x, weight=weight, reduce=reduce)
    return propagate(graph, x, propagation(graph, reduce, weight))


def gcn_aggregate(graph: Any, x: Tensor, *, residual: Tensor | None = None, alpha: float = 0.0) -> Tensor:
    """out = (1 - alpha) D^-1/2 (A + I) D^-1/2 x + alpha residual, with D the in-degree counting the self loop."""
    if not isinstance(graph, CSR):
        return graph.gcn_aggregate(x, residual=residual, alpha=alpha)
    return propagate(graph, x, propagation(graph, "gcn"), residual, alpha)


def propagation(graph: CSR, kind: str, weight: Tensor | None = None) -> Propagation:
    """The map behind an aggregation of ``kind`` sum, mean or gcn."""
    weight = graph.weight if weight is None else weight
    if kind == "sum":
        return Propagation(weight)
    if kind == "mean":
        return Propagation(weight, row_scale=graph.in_degree().clamp(min=1).float().reciprocal())
    if kind == "gcn":
        degree = graph.in_degree().float() + 1
        scale = degree.rsqrt()
        return Propagation(weight, scale, scale, self_loops=True)
    raise ValueError(f"aggregate: reduce must be sum, mean, max or min, got {kind!r}")


def propagate(graph: CSR, x: Tensor, p: Propagation, residual: Tensor | None = None, alpha: float = 0.0) -> Tensor:
    """Apply a propagation to every row of the graph."""
    back = graph.transpose() if x.requires_grad and torch.is_grad_enabled() else None
    return torch.ops.gossamer.aggregate(
        x, graph.rowptr, graph.col, p.weight, None, p.row_scale, p.col_scale, p.self_loops, 0, residual, alpha,
        back and back.rowptr, back and back.col, back and graph._transpose_positions,
    )  # fmt: skip


@torch.library.register_fake("gossamer::aggregate")
def _(x, rowptr, col, weight, edge_ids, row_scale, col_scale, self_loops, row_offset, residual, alpha, *transposed):
    return x.new_empty(rowptr.shape[0] - 1, x.shape[1])


def _setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
    (_, _, _, weight, _, row_scale, col_scale, ctx.self_loops, _, _, ctx.alpha, *transposed) = inputs
    ctx.save_for_backward(weight, row_scale, col_scale, *transposed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, row_scale, col_scale, rowptr_t, col_t, edge_ids_t = ctx.saved_tensors
    grad = grad.contiguous()
    grad_x = grad_residual = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.gossamer.aggregate(
            grad, rowptr_t, col_t, weight, edge_ids_t, col_scale, row_scale, ctx.self_loops, 0, None, ctx.alpha,
            None, None, None,
        )  # fmt: skip
    if ctx.needs_input_grad[9]:
        grad_residual = ctx.alpha * grad
    return grad_x, None, None, None, None, None, None, None, None, grad_residual, None, None, None, None


torch.library.register_autograd("gossamer::aggregate", _backward, setup_context=_setup_context)
