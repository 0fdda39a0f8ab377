"""Dispatch and combine: rows of tokens to the order of a route plan, and back.

``expert_mlp`` fuses both into the expert products; use these where the experts are your own modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.sparse_nn._checks import require, require_floating
from gossamer.sparse_nn.route_plan import RoutePlan

__all__ = ["combine", "dispatch"]


@typed
def dispatch(x: Tensor, plan: RoutePlan) -> Tensor:
    """out[p] = x[plan.order[p] // k]: one row per kept route, grouped by expert.

    Args:
        x: [num_tokens, dim], float32, float64, bfloat16 (float16 on CUDA).
        plan: of num_tokens tokens.

    Returns:
        [num_routes, dim].

    Raises:
        ValueError: if x is not [plan.num_tokens, dim].

    Source: Gale et al. 2022, MegaBlocks, section 5 (dropless, no padding).
    """
    shape = tuple(x.shape)
    require(len(shape) == 2 and shape[0] == plan.num_tokens, "dispatch", "x", f"[{plan.num_tokens}, dim]", shape)
    return torch.ops.gossamer.dispatch(x.contiguous(), plan.order, plan.inverse, plan.top_k)


@typed
def combine(y: Tensor, plan: RoutePlan, gates: Tensor | None = None) -> Tensor:
    """out[t] = sum over kept routes j of token t of gates[t, j] * y[position of the route], summed in fp32.

    Args:
        y: [num_routes, dim], rows in the order of the plan.
        plan: the plan that y was dispatched with.
        gates: [num_tokens, k], floating point; None stands for ones.

    Returns:
        [num_tokens, dim]; zero where all routes of a token were dropped.

    Raises:
        ValueError: if y or gates do not have the shape of the plan.
    """
    shape = tuple(y.shape)
    require(len(shape) == 2 and shape[0] == plan.num_routes, "combine", "y", f"[{plan.num_routes}, dim]", shape)
    require_floating(y, "combine", "y")
    gates = checked_gates("combine", gates, plan, y.dtype)
    return torch.ops.gossamer.combine(y.contiguous(), plan.inverse, gates, plan.top_k)


def checked_gates(function: str, gates: Tensor | None, plan: RoutePlan, dtype: torch.dtype) -> Tensor | None:
    """Gates in the type that sums are kept in: float64 for float64, else float32."""
    if gates is None:
        return None
    wanted = (plan.num_tokens, plan.top_k)
    require(tuple(gates.shape) == wanted, function, "gates", f"{list(wanted)}", tuple(gates.shape))
    return gates.to(torch.float64 if dtype is torch.float64 else torch.float32).contiguous()


@torch.library.register_fake("gossamer::dispatch")
def _(x: Tensor, order: Tensor, inverse: Tensor, k: int) -> Tensor:
    return x.new_empty(order.shape[0], x.shape[1])


@torch.library.register_fake("gossamer::combine")
def _(y: Tensor, inverse: Tensor, gates: Tensor | None, k: int) -> Tensor:
    return y.new_empty(inverse.shape[0] // k, y.shape[1])


@torch.library.register_fake("gossamer::combine_backward")
def _(grad: Tensor, y: Tensor, inverse: Tensor, gates: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(y), y.new_empty(0) if gates is None else torch.empty_like(gates)


def _dispatch_context(ctx: Any, inputs: Any, output: Tensor) -> None:
    _, _, inverse, ctx.k = inputs
    ctx.save_for_backward(inverse)


def _dispatch_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (inverse,) = ctx.saved_tensors
    return torch.ops.gossamer.combine(grad.contiguous(), inverse, None, ctx.k), None, None, None


def _combine_context(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _combine_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    y, inverse, gates = ctx.saved_tensors
    grad_y, grad_gates = torch.ops.gossamer.combine_backward(grad.contiguous(), y, inverse, gates)
    return grad_y, None, None if gates is None else grad_gates, None


torch.library.register_autograd("gossamer::dispatch", _dispatch_backward, setup_context=_dispatch_context)
torch.library.register_autograd("gossamer::combine", _combine_backward, setup_context=_combine_context)
