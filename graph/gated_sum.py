"""Sums over in-neighbours weighed by gates that sum to 1: the messages of GatedGCN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.aggregate import FLOATING
from gossamer.graph.csr import CSR

__all__ = ["gated_sum"]


@typed
def gated_sum(graph: CSR, query: Tensor, key: Tensor, value: Tensor, *, eps: float = 1e-6) -> Tensor:
    """out[i] = sum_j s_ij value[j] / (sum_j s_ij + eps), s_ij = sigmoid(query[i] + key[j]), over in-neighbours j of i.

    Gates are computed where they are needed, in the backward pass once more: nothing of the size of the edges is
    allocated. Weights of the graph are not looked at.

    Args:
        graph: in-neighbours in CSR form.
        query: [num_nodes, F], floating point, of the receivers; sums are kept in float32 (float64 for float64).
        key: [num_nodes, F], dtype of query, of the senders.
        value: [num_nodes, F], dtype of query, of the senders.
        eps: what the sum of the gates is enlarged by, above 0.

    Returns:
        [num_nodes, F], dtype of query, 0 where i has no in-neighbours; differentiable (once) in query, key and value,
        the same bits for any number of threads.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a shape, a device or eps is wrong.

    Source: Bresson and Laurent 2017, Residual Gated Graph ConvNets; gates that sum to 1 of Dwivedi et al. 2020,
    Benchmarking Graph Neural Networks.
    """
    _check(graph, query, key, value, eps)
    back = graph.transpose() if torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)) else None
    out, _ = torch.ops.gossamer.gated_sum(
        query.contiguous(), key.contiguous(), value.contiguous(), graph.rowptr, graph.col, eps,
        back and back.rowptr, back and back.col,
    )  # fmt: skip
    return out


def _check(graph: CSR, query: Tensor, key: Tensor, value: Tensor, eps: float) -> None:
    if not isinstance(graph, CSR):
        raise TypeError(f"gated_sum: graph must be a CSR, got {type(graph).__name__}")
    if not eps > 0:
        raise ValueError(f"gated_sum: eps must be above 0, got {eps}")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATING or tensor.dtype != query.dtype:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"gated_sum: {name} must be a floating point tensor of the dtype of query, got {got}")
        if tensor.dim() != 2 or tensor.shape != (graph.num_nodes, query.shape[1]):
            wanted = f"[{graph.num_nodes}, F] (num_nodes rows, all of one width)"
            raise ValueError(f"gated_sum: {name} must be {wanted}, got {list(tensor.shape)}")
        if tensor.device != graph.col.device:
            raise ValueError(f"gated_sum: {name} must be on the graph's {graph.col.device}, got {tensor.device}")


@torch.library.register_fake("gossamer::gated_sum")
def _(query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return torch.empty_like(query), query.new_empty(query.shape, dtype=dtype)


@torch.library.register_fake("gossamer::gated_sum_backward")
def _(grad: Tensor, out: Tensor, norm: Tensor, query: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(query), torch.empty_like(query)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, value, rowptr, col, _, *transposed = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, query, key, value, rowptr, col, *[*transposed, None, None][:2])


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * len(ctx.needs_input_grad)
    *saved, rowptr_t, col_t = ctx.saved_tensors
    if rowptr_t is None:
        raise RuntimeError("gated_sum: rowptr_t and col_t must be given where a gradient is wanted, got None")
    grads = torch.ops.gossamer.gated_sum_backward(grad.contiguous(), *saved, rowptr_t, col_t)
    return *grads, *(None,) * (len(ctx.needs_input_grad) - 3)


torch.library.register_autograd("gossamer::gated_sum", _backward, setup_context=_setup_context)
