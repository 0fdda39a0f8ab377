"""Maximum and minimum over in-neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.graph.csr import CSR

__all__ = ["extremum"]


def extremum(graph: CSR, x: Tensor, weight: Tensor | None, *, minimum: bool = False) -> Tensor:
    """out[i] = max (or min) over in-neighbours j of i of weight[j -> i] * x[j]; 0 where i has none.

    The gradient goes to the first edge of the row that attains the value; a NaN attains both.

    Args:
        graph: in-neighbours in CSR form, no node with 2^31 of them or more.
        x: [num_nodes, F], floating point, contiguous.
        weight: [num_edges], float32, or float64 where x is float64.
        minimum: take the minimum.
    """
    back = graph.transpose() if x.requires_grad and torch.is_grad_enabled() else None
    positions = graph._transpose_positions if back else None
    out, _ = torch.ops.gossamer.extremum(
        x, graph.rowptr, graph.col, weight, minimum, back and back.rowptr, back and back.col, positions
    )
    return out


@torch.library.register_fake("gossamer::extremum")
def _(x: Tensor, rowptr: Tensor, col: Tensor, weight: Any, minimum: bool, *transposed: Any) -> tuple[Tensor, Tensor]:
    shape = (rowptr.shape[0] - 1, x.shape[1])
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("gossamer::extremum_backward")
def _(grad: Tensor, arg: Tensor, rowptr: Tensor, weight: Any, rowptr_t: Tensor, *transposed: Any) -> Tensor:
    return grad.new_empty(rowptr_t.shape[0] - 1, grad.shape[1])


@torch.library.register_fake("gossamer::extremum_backward_weight")
def _(grad: Tensor, arg: Tensor, x: Tensor, rowptr: Tensor, col: Tensor) -> Tensor:
    return x.new_empty(col.shape[0], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, rowptr, col, weight, _, *transposed = inputs
    arg = output[1]
    ctx.mark_non_differentiable(arg)
    kept_x = x if ctx.needs_input_grad[3] else None  # only the gradient of the weight needs x
    ctx.save_for_backward(arg, kept_x, rowptr, col, weight, *transposed)


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    arg, x, rowptr, col, weight, *transposed = ctx.saved_tensors
    grad = grad.contiguous()
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.gossamer.extremum_backward(grad, arg, rowptr, weight, *transposed)
    if ctx.needs_input_grad[3]:
        grad_weight = torch.ops.gossamer.extremum_backward_weight(grad, arg, x, rowptr, col)
    return grad_x, None, None, grad_weight, None, None, None, None


torch.library.register_autograd("gossamer::extremum", _backward, setup_context=_setup_context)
