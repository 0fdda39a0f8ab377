"""Gates of hash-selected experts: only the k rows of the weight that a token needs are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.sparse_nn._checks import require, require_ids
from gossamer.sparse_nn.route_plan import range_errors

__all__ = ["hash_gate"]


@typed
def hash_gate(
    x: Tensor, weight: Tensor, table: Tensor, token_ids: Tensor, *, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """expert_ids[t] = table[token_ids[t]]; gates = scale * s / sum(s) with s = sqrt(softplus(<x[t], weight[e]>)).

    Products and sums are in float32 (float64 for float64). Of the E rows of the weight k are read per token, where a
    dense router multiplies by all of them. A token's gates depend on that token alone, to the bit.

    Args:
        x: [num_tokens, d], float32, float64 or bfloat16 (float16 on CUDA).
        weight: [E, d]; where its type is not that of x, both are taken in float32.
        table: [vocab_size, k], int16, int32 or int64, in [0, E).
        token_ids: [num_tokens], int32 or int64, in [0, vocab_size).
        scale: sum of the gates of a token.

    Returns:
        expert_ids [num_tokens, k], int32, and gates [num_tokens, k], float32 (float64 for float64).

    Raises:
        ValueError: if a shape does not fit, or an id is out of range (on CUDA: a device-side assertion).
        TypeError: if ids or table are not integers.

    Source: DeepSeek-AI 2026, DeepSeek-V4 technical report, section 2.1; table after Roller et al. 2021, Hash Layers.
    """
    require_ids(token_ids, "hash_gate", "token_ids")
    if table.dtype is not torch.int16:
        require_ids(table, "hash_gate", "table")
    require(x.dim() == 2, "hash_gate", "x", "[num_tokens, d]", tuple(x.shape))
    fits = weight.dim() == 2 and weight.shape[1] == x.shape[1]
    require(fits, "hash_gate", "weight", f"[E, {x.shape[1]}]", tuple(weight.shape))
    require(table.dim() == 2, "hash_gate", "table", "[vocab_size, k]", tuple(table.shape))
    require(token_ids.numel() == len(x), "hash_gate", "token_ids", f"[{len(x)}]", tuple(token_ids.shape))
    if x.dtype != weight.dtype:
        x, weight = x.float(), weight.float()
    ids = token_ids.flatten().long()
    with range_errors():
        gates, _, expert_ids = _gate(x.contiguous(), weight.contiguous(), table.contiguous(), ids, float(scale))
    return expert_ids, gates


def _gate(x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """The operator; where nothing needs a gradient without its layer in Python, which takes longer than one token."""
    differentiable = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if differentiable or torch.compiler.is_compiling():
        return torch.ops.gossamer.hash_gate(x, weight, *others)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.gossamer.hash_gate.default(x, weight, *others)


@torch.library.register_fake("gossamer::hash_gate")
def _(x: Tensor, weight: Tensor, table: Tensor, token_ids: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    shape = (x.shape[0], table.shape[1])
    sums = torch.float64 if x.dtype is torch.float64 else torch.float32
    return x.new_empty(shape, dtype=sums), x.new_empty(shape, dtype=sums), token_ids.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("gossamer::hash_gate_backward")
def _(grad: Tensor, x: Tensor, weight: Tensor, expert_ids: Tensor, logits: Tensor, scale: float) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(weight)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _, _, ctx.scale = inputs
    _, logits, expert_ids = output
    ctx.mark_non_differentiable(expert_ids, logits)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, expert_ids, logits)


def _backward(ctx: Any, grad: Tensor | None, _logits: Any, _ids: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    grads = torch.ops.gossamer.hash_gate_backward(grad.contiguous(), *ctx.saved_tensors, ctx.scale)
    return *grads, None, None, None


torch.library.register_autograd("gossamer::hash_gate", _backward, setup_context=_setup_context)
