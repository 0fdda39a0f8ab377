"""A whole stack of DRew-GCN layers as one operator: what DRew runs where nothing asks for the layers one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.graph.aggregate import propagation
from gossamer.graph.csr import CSR

__all__ = ["drew_gcn"]


def drew_gcn(convs: Sequence[Any], x: Tensor, shells: Sequence[CSR], *, recompute: bool = True) -> Tensor:
    """The result of DRewGCNConv layers called one after the other, forward and backward fused over hops and layers.

    A hop's rows are gathered, multiplied and measured for its norm while they are in the cache; one pass over all hops
    of a layer norms, cuts, sums and normalises; going back, one gathering serves the gradients of state and weight.
    Running statistics are updated as the layers would. The same bits for any number of threads.

    Args:
        convs: layers for which ``fusable`` holds.
        x: [num_nodes, channels], float32 or float64, on the CPU.
        shells: of ``k_hop``, at least as many as the last layer reads.
        recompute: compute the messages [num_hops, num_nodes, channels] again in the backward pass, one layer at a
            time; what is kept are the states [num_layers, num_nodes, channels]. False keeps the messages of all
            layers, which costs more time than it saves where fresh pages are dear (see benchmarks/bench_drew.py).

    Returns:
        [num_nodes, channels], differentiable in x and every parameter (once: no second derivatives).

    Source: Gutteridge et al. 2023, DRew: Dynamically Rewired Message Passing with Delay, section 4.
    """
    hops = [(t, k, i, conv.source(t, k)) for t, conv in enumerate(convs) for i, k in _hops(conv, shells, x)]
    layer, shell, number, state = ([hop[j] for hop in hops] for j in range(4))
    shells = shells[: max(shell, default=0)]
    norms = [convs[t].norms[i] for t, i in zip(layer, number)]
    training = bool(norms) and norms[0].training
    scales = [propagation(graph, "gcn", dtype=x.dtype).row_scale for graph in shells]
    weights = [convs[t].lins[i].weight for t, i in zip(layer, number)]
    back = [graph.transpose() for graph in shells] if torch.is_grad_enabled() else []
    out, _, _, mean, var, _ = torch.ops.gossamer.drew_gcn(
        x.contiguous(), [graph.rowptr for graph in shells], [graph.col for graph in shells], scales, layer,
        [k - 1 for k in shell], state, len(convs), _stack(weights, x, 2),
        _stack([norm.weight for norm in norms], x, 1), _stack([norm.bias for norm in norms], x, 1),
        _hop_weights(convs, layer, shell), None if training else _stack([norm.running_mean for norm in norms], x, 1),
        None if training else _stack([norm.running_var for norm in norms], x, 1), convs[0].norms[0].eps,
        convs[0].l2_norm, not recompute and torch.is_grad_enabled(), [graph.rowptr for graph in back],
        [graph.col for graph in back],
    )  # fmt: skip
    if training:
        _update_running(norms, mean, var, x.shape[0])
    return out


def fusable(convs: Sequence[Any], x: Tensor) -> bool:
    """Whether drew_gcn computes what these DRewGCNConv layers do: with quirks, on the CPU, plain batch norms."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu"):
        return False
    norms = [norm for conv in convs for norm in conv.norms]
    first = norms[0]
    return (
        all(conv.reference_quirks and conv.l2_norm == convs[0].l2_norm for conv in convs)
        and all(type(norm) is nn.BatchNorm1d and norm.affine and norm.track_running_stats for norm in norms)
        and all(norm.training == first.training and norm.eps == first.eps for norm in norms)
        and all(norm.momentum is not None and norm.weight.dtype == x.dtype for norm in norms)
        and not (first.training and x.shape[0] < 2)
    )


def _hops(conv: Any, shells: Sequence[CSR], x: Tensor) -> list[tuple[int, int]]:
    """(number of its weights, k) of the hops that have edges."""
    conv.check_shells(shells, x)
    return [((k - 1) % conv.num_weights, k) for k in range(1, conv.num_hops + 1) if shells[k - 1].num_edges]


def _stack(tensors: list[Tensor], x: Tensor, dims: int) -> Tensor:
    return torch.stack(tensors) if tensors else x.new_empty(0, *[x.shape[1]] * dims)


def _hop_weights(convs: Sequence[Any], layer: list[int], shell: list[int]) -> Tensor | None:
    if not layer or convs[0].hop_weights is None:
        return None
    weights = [conv.num_hops * conv.hop_weights.softmax(0) for conv in convs]
    return torch.stack([weights[t][k - 1] for t, k in zip(layer, shell)])


@torch.no_grad()
def _update_running(norms: list[Any], mean: Tensor, var: Tensor, num_nodes: int) -> None:
    # .data, as in batch_norm itself: an update is no change that a backward pass of the same norm would have to refuse
    unbiased = var * (num_nodes / (num_nodes - 1))
    for norm, m, v in zip(norms, mean, unbiased):
        norm.running_mean.data.lerp_(m, norm.momentum)
        norm.running_var.data.lerp_(v, norm.momentum)
        norm.num_batches_tracked.add_(1)


@torch.library.register_fake("gossamer::drew_gcn")
def _(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    layer, num_layers, l2_norm, keep_messages = others[3], others[6], others[13], others[14]
    (num_nodes, channels), hops = x.shape, len(layer)
    return (
        torch.empty_like(x),
        x.new_empty(num_layers, num_nodes, channels),
        x.new_empty(hops if keep_messages else 0, num_nodes, channels),
        x.new_empty(hops, channels),
        x.new_empty(hops, channels),
        x.new_empty(num_layers if l2_norm else 0, num_nodes),
    )


@torch.library.register_fake("gossamer::drew_gcn_backward")
def _(grad: Tensor, *others: Any) -> tuple[Tensor, ...]:
    weight, gamma, beta = others[12:15]
    return (*(torch.empty_like(t) for t in (grad, weight, gamma, beta)), gamma.new_empty(gamma.shape[0]))


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    _, rowptr, col, scale, ctx.layer, ctx.shell, ctx.state, _, weight, gamma, beta, hop_weight, mean, _, ctx.eps, *_ = (
        inputs
    )
    rowptr_t, col_t = inputs[17:]
    ctx.training, ctx.num_shells = mean is None, len(rowptr)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, weight, gamma, beta, hop_weight, *rowptr, *col, *scale, *rowptr_t, *col_t)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    nothing: list[Any] = [None] * 19
    for position in (1, 2, 3, 17, 18):  # lists of tensors
        nothing[position] = [None] * ctx.num_shells
    if not ctx.layer:  # torch takes an empty list for one of tensors
        nothing[4:7] = [[], [], []]
    if grad is None:
        return tuple(nothing)
    out, states, messages, mean, var, length, weight, gamma, beta, hop_weight, *graphs = ctx.saved_tensors
    rowptr, col, scale, rowptr_t, col_t = (graphs[i * ctx.num_shells : (i + 1) * ctx.num_shells] for i in range(5))
    if len(rowptr_t) != ctx.num_shells:
        raise RuntimeError("drew_gcn: rowptr_t and col_t must be given where a gradient is wanted, got none")
    grads = torch.ops.gossamer.drew_gcn_backward(
        grad.contiguous(), out, states, messages, mean, var, length, rowptr, col, scale, ctx.layer, ctx.shell,
        ctx.state, weight, gamma, beta, hop_weight, ctx.eps, ctx.training, rowptr_t, col_t,
    )  # fmt: skip
    nothing[0] = grads[0]
    nothing[8:11] = grads[1:4]
    nothing[11] = None if hop_weight is None else grads[4]
    return tuple(nothing)


torch.library.register_autograd("gossamer::drew_gcn", _backward, setup_context=_setup_context)
