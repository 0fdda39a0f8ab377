"""The product of two feature rows at every edge: the gradient of an aggregation in its edge weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__: list[str] = []


@torch.library.register_fake("gossamer::sddmm")
def _(a: Tensor, b: Tensor, rowptr: Tensor, col: Tensor, *others: Any) -> Tensor:
    return a.new_empty(col.shape[0], dtype=torch.float64 if a.dtype == torch.float64 else torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    given = [*inputs, *[None] * (11 - len(inputs))]  # the transposed graph may be left out
    ctx.factor = given.pop(7)
    ctx.save_for_backward(*given)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b, rowptr, col, edge_ids, row_scale, col_scale, rowptr_t, col_t, edge_ids_t = ctx.saved_tensors
    alpha = 1 - ctx.factor
    grad_a = grad_b = None
    if ctx.needs_input_grad[0]:
        grad_a = torch.ops.gossamer.aggregate(
            b, rowptr, col, grad.contiguous(), edge_ids, row_scale, col_scale, False, 0, None, alpha,
            rowptr_t, col_t, edge_ids_t,
        )  # fmt: skip
    if ctx.needs_input_grad[1]:
        if rowptr_t is None:
            raise RuntimeError("sddmm: rowptr_t and col_t must be given where b needs a gradient, got None")
        grad_b = torch.ops.gossamer.aggregate(
            a, rowptr_t, col_t, grad.contiguous(), edge_ids_t, col_scale, row_scale, False, 0, None, alpha,
            rowptr, col, edge_ids,
        )  # fmt: skip
    return grad_a, grad_b, *(None,) * (len(ctx.needs_input_grad) - 2)


torch.library.register_autograd("gossamer::sddmm", _backward, setup_context=_setup_context)
