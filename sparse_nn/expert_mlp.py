"""The experts: one grouped feed-forward network, with gather and scatter fused into its products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.sparse_nn._checks import require, require_floating
from gossamer.sparse_nn.dispatch import checked_gates
from gossamer.sparse_nn.route_plan import RoutePlan

__all__ = ["expert_mlp"]

ACTIVATIONS = ("relu", "gelu", "swiglu")


@typed
def expert_mlp(
    x: Tensor,
    plan: RoutePlan,
    w_in: Tensor,
    w_out: Tensor,
    *,
    gates: Tensor | None = None,
    activation: str = "swiglu",
    swiglu_limit: float | None = None,
) -> Tensor:
    """out[t] = sum over kept routes j of gates[t, j] * w_out[e] activation(w_in[e] x[t]) with e = expert_ids[t, j].

    swiglu(h) = silu(first half of h) * second half; with a limit silu(min(first, limit)) * clamp(second, +-limit). Sums
    are kept in float32 (float64 for float64). A token's result and gradient depend on that token alone, to the bit.
    Backward keeps x and the pre-activations, nothing else.

    Args:
        x: [num_tokens, d], float32, float64 or bfloat16 (float16 on CUDA); under autocast its type.
        plan: of num_tokens tokens and E experts.
        w_in: [E, 2 f, d] for swiglu (gate rows first), [E, f, d] for relu and gelu, in the type of x.
        w_out: [E, d, f], in the type of x.
        gates: [num_tokens, k], floating point; None stands for ones.
        activation: relu, gelu (exact) or swiglu.
        swiglu_limit: above 0; bounds the gate rows from above and the others from both sides. None bounds nothing.

    Returns:
        [num_tokens, d].

    Raises:
        ValueError: if a shape does not fit the others, or the limit is not positive.
        TypeError: if w_in or w_out is not in the type of x.

    Source: Shazeer et al. 2017, Outrageously Large Neural Networks, eq. 1; without padding or copies as in Tan et al.
    2024, ScatterMoE; limit as in DeepSeek-AI 2026, DeepSeek-V4.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, w_in, w_out = x.to(dtype), w_in.to(dtype), w_out.to(dtype)
    _check(x, plan, w_in, w_out, activation)
    limit = float("inf") if swiglu_limit is None else float(swiglu_limit)
    require(limit > 0, "expert_mlp", "swiglu_limit", "above 0", swiglu_limit)
    gates = checked_gates("expert_mlp", gates, plan, x.dtype)
    tensors = (x, gates, w_in, w_out)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return torch.ops.gossamer.expert_mlp(
        x.contiguous(),
        plan.order,
        plan.offsets,
        gates,
        w_in.contiguous(),
        w_out.contiguous(),
        plan.top_k,
        activation,
        limit,
        save,
    )[0]


def _check(x: Tensor, plan: RoutePlan, w_in: Tensor, w_out: Tensor, activation: str) -> None:
    require(activation in ACTIVATIONS, "expert_mlp", "activation", "relu, gelu or swiglu", repr(activation))
    shape = tuple(x.shape)
    require(len(shape) == 2 and shape[0] == plan.num_tokens, "expert_mlp", "x", f"[{plan.num_tokens}, d]", shape)
    require_floating(x, "expert_mlp", "x")
    for name, weight in (("w_in", w_in), ("w_out", w_out)):
        if weight.dtype != x.dtype:
            raise TypeError(f"expert_mlp: {name} must be {x.dtype} like x, got {weight.dtype}")
    experts, d = plan.num_experts, shape[1]
    fits = w_out.dim() == 3 and tuple(w_out.shape[:2]) == (experts, d)
    require(fits, "expert_mlp", "w_out", f"[{experts}, {d}, f]", tuple(w_out.shape))
    wanted = (experts, w_out.shape[2] * (2 if activation == "swiglu" else 1), d)
    require(tuple(w_in.shape) == wanted, "expert_mlp", "w_in", f"{list(wanted)} for {activation}", tuple(w_in.shape))


@torch.library.register_fake("gossamer::expert_mlp")
def _(x, order, offsets, gates, w_in, w_out, k, activation, limit, save_hidden):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), x.new_empty(order.shape[0] if save_hidden else 0, w_in.shape[1])


@torch.library.register_fake("gossamer::expert_mlp_backward")
def _(grad, x, order, offsets, gates, w_in, w_out, hidden, k, activation, limit, weights):  # type: ignore[no-untyped-def]
    sums = torch.float64 if x.dtype is torch.float64 else torch.float32
    grad_gates = x.new_empty(0 if gates is None else x.shape[0], k, dtype=sums)
    experts = w_in.shape[0] if weights else 0
    return (
        torch.empty_like(x),
        grad_gates,
        w_in.new_empty(experts, *w_in.shape[1:]),
        w_out.new_empty(experts, *w_out.shape[1:]),
    )


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.k, ctx.activation, ctx.limit, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    x, order, offsets, gates, w_in, w_out, hidden = ctx.saved_tensors
    weights = ctx.needs_input_grad[4] or ctx.needs_input_grad[5]
    grad_x, grad_gates, grad_w_in, grad_w_out = torch.ops.gossamer.expert_mlp_backward(
        grad.contiguous(), x, order, offsets, gates, w_in, w_out, hidden, ctx.k, ctx.activation, ctx.limit, weights
    )
    if not weights:
        grad_w_in = grad_w_out = None
    return grad_x, None, None, None if gates is None else grad_gates, grad_w_in, grad_w_out, None, None, None, None


torch.library.register_autograd("gossamer::expert_mlp", _backward, setup_context=_setup_context)
