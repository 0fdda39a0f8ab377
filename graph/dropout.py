"""Dropout keyed by (seed, step, node id, feature): the same mask for any chunking, thread count or recomputation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer._arguments import typed

__all__ = ["node_dropout", "relu_dropout", "stream_seed"]

_MASK = (1 << 64) - 1


@typed
def node_dropout(
    x: Tensor,
    p: float,
    *,
    seed: int,
    step: int = 0,
    node_ids: Tensor | None = None,
    first_row: int = 0,
    training: bool = True,
) -> Tensor:
    """out[i, f] = 0 with probability p, else x[i, f] / (1 - p), decided by (seed, step, node id of i, f) alone.

    The probability is rounded to a multiple of 2^-16, in the mask and in the factor alike. Nothing is saved for the
    backward pass but the node ids: the mask is drawn again.

    Args:
        x: [num_rows, num_features], floating point.
        p: probability in [0, 1] that an element is dropped.
        seed: random seed, one for every use of dropout in a model.
        step: number of the training step; another step gives another mask.
        node_ids: [num_rows], int64, the node of every row; any integers.
        first_row: node of row 0 where node_ids is None; row i is then node first_row + i.
        training: False returns x itself.

    Raises:
        TypeError: if x is not floating point or node_ids is not int64.
        ValueError: if a shape or p is wrong.

    Source: Srivastava et al. 2014, Dropout: A Simple Way to Prevent Neural Networks from Overfitting.
    """
    _check("node_dropout", x, p, node_ids)
    if not training or p == 0:
        return x
    return torch.ops.gossamer.node_dropout(x.contiguous(), p, seed, step, node_ids, first_row)


@typed
def relu_dropout(
    x: Tensor,
    p: float,
    *,
    seed: int,
    step: int = 0,
    node_ids: Tensor | None = None,
    first_row: int = 0,
    training: bool = True,
) -> Tensor:
    """out = node_dropout(relu(x)) in one pass; the arguments are those of node_dropout.

    Only the output is saved for the backward pass, which is one pass as well.
    """
    _check("relu_dropout", x, p, node_ids)
    if not training or p == 0:
        return F.relu(x)
    return torch.ops.gossamer.relu_dropout(x.contiguous(), p, seed, step, node_ids, first_row)


def stream_seed(seed: int, index: int) -> int:
    """Seed number ``index`` of the many that a model makes of one; in [0, 2^63)."""
    bits = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xD1B54A32D192ED03) & _MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return (bits ^ (bits >> 31)) >> 1


def _check(function: str, x: Tensor, p: float, node_ids: Tensor | None) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{function}: x must be floating point, got {x.dtype}")
    if x.dim() != 2:
        raise ValueError(f"{function}: x must have 2 dimensions, got {x.dim()}")
    if not 0 <= p <= 1:
        raise ValueError(f"{function}: p must be in [0, 1], got {p}")
    if node_ids is None:
        return
    if node_ids.dtype != torch.int64:
        raise TypeError(f"{function}: node_ids must be int64, got {node_ids.dtype}")
    if node_ids.shape != x.shape[:1]:
        raise ValueError(f"{function}: node_ids must be of shape {tuple(x.shape[:1])}, got {tuple(node_ids.shape)}")


@torch.library.register_fake("gossamer::node_dropout")
@torch.library.register_fake("gossamer::relu_dropout")
def _(x: Tensor, p: float, seed: int, step: int, node_ids: Tensor | None, first_row: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("gossamer::relu_dropout_backward")
def _(grad: Tensor, out: Tensor, p: float) -> Tensor:
    return torch.empty_like(grad)


def _save_key(ctx: Any, inputs: Any, output: Tensor) -> None:
    _, ctx.p, ctx.seed, ctx.step, node_ids, ctx.first_row = inputs
    ctx.save_for_backward(node_ids)


def _node_dropout_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (node_ids,) = ctx.saved_tensors
    grad_x = torch.ops.gossamer.node_dropout(grad.contiguous(), ctx.p, ctx.seed, ctx.step, node_ids, ctx.first_row)
    return grad_x, None, None, None, None, None


def _save_output(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.p = inputs[1]
    ctx.save_for_backward(output)


def _relu_dropout_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (out,) = ctx.saved_tensors
    return torch.ops.gossamer.relu_dropout_backward(grad.contiguous(), out, ctx.p), None, None, None, None, None


def _save_mask(ctx: Any, inputs: Any, output: Tensor) -> None:
    _, out, ctx.p = inputs
    ctx.save_for_backward(out)


def _relu_dropout_double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (out,) = ctx.saved_tensors  # linear in grad; constant in out almost everywhere
    return torch.ops.gossamer.relu_dropout_backward(grad.contiguous(), out, ctx.p), None, None


torch.library.register_autograd("gossamer::node_dropout", _node_dropout_backward, setup_context=_save_key)
torch.library.register_autograd("gossamer::relu_dropout", _relu_dropout_backward, setup_context=_save_output)
torch.library.register_autograd(
    "gossamer::relu_dropout_backward", _relu_dropout_double_backward, setup_context=_save_mask
)
