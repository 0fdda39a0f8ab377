"""A whole stack of DRew-GCN or DRew-GIN layers as one operator: what DRew runs where nothing asks for the layers one by
one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.graph.aggregate import propagation
from gossamer.graph.csr import CSR

__all__ = ["drew_gcn"]


def drew_gcn(convs: Sequence[Any], x: Tensor, shells: Sequence[CSR], *, recompute: bool = False) -> Tensor:
    """The result of DRewGCNConv or DRewGINConv layers called one after the other, fused over hops and layers.

    A hop's rows are gathered, multiplied and measured for its norm while they are in the cache; one pass over all hops
    of a layer norms, cuts, sums and normalises; going back, one gathering serves the gradients of state and weight.
    Running statistics are updated as the layers would. The same bits for any number of threads.

    Args:
        convs: layers for which ``fusable`` holds.
        x: [num_nodes, channels], float32 or float64.
        shells: of ``k_hop``, at least as many as the last layer reads.
        recompute: compute the messages [num_hops, num_nodes, channels] of all layers again in the backward pass, one
            layer at a time; what is kept are the states [num_layers, num_nodes, channels].

    Returns:
        [num_nodes, channels], differentiable in x and every parameter (once: no second derivatives).

    Source: Gutteridge et al. 2023, DRew: Dynamically Rewired Message Passing with Delay, section 4.
    """
    of_layers = [conv.normed_hops(t, shells, x) for t, conv in enumerate(convs)]
    hops = [hop for of_layer in of_layers for hop in of_layer]
    layer = [t for t, of_layer in enumerate(of_layers) for _ in of_layer]
    shells = shells[: max([hop.shell + 1 for hop in hops], default=0)]
    norms = [hop.norm for hop in hops]
    training, self_loops = convs[0].training, convs[0].self_loops
    back = [graph.transpose() for graph in shells] if torch.is_grad_enabled() else []
    running = [[norm.running_mean for norm in norms], [norm.running_var for norm in norms]]
    known_mean, known_var = (None, None) if training else (_stack(tensors, x, 1) for tensors in running)
    out, _, _, mean, var, _ = torch.ops.gossamer.drew_gcn(
        x.contiguous(), [graph.rowptr for graph in shells], [graph.col for graph in shells],
        _scales(shells, x, self_loops), layer, [hop.shell for hop in hops], [hop.state for hop in hops], len(convs),
        _stack([hop.linear.weight for hop in hops], x, 2), _stack([norm.weight for norm in norms], x, 1),
        _stack([_shift(hop) for hop in hops], x, 1), _hop_weights(hops, x), known_mean, known_var,
        _norms(convs)[0].eps, convs[0].l2_norm, self_loops, not recompute and torch.is_grad_enabled(),
        [graph.rowptr for graph in back], [graph.col for graph in back],
    )  # fmt: skip
    if training:
        _update_running(hops, mean, var, x.shape[0])
    return out


def fusable(convs: Sequence[Any], x: Tensor) -> bool:
    """Whether drew_gcn computes what these layers do: a sum of normed hops, with plain batch norms, on CPU or GPU."""
    kind = x.device.type
    if kind not in ("cpu", "cuda") or x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(kind):
        return False
    if not all(getattr(conv, "is_normed_sum", False) and conv.l2_norm == convs[0].l2_norm for conv in convs):
        return False
    norms = _norms(convs)
    num_products = sum(isinstance(module, nn.Linear) for conv in convs for module in conv.modules())
    if not norms or len(norms) != num_products:  # somebody has put another norm, or none, in a place of one
        return False
    first = norms[0]
    return (
        all(type(norm) is nn.BatchNorm1d and norm.affine and norm.track_running_stats for norm in norms)
        and all(norm.training == convs[0].training and norm.eps == first.eps for norm in norms)
        and all(norm.momentum is not None and norm.weight.dtype == x.dtype for norm in norms)
        and not (first.training and x.shape[0] < 2)
    )


def _norms(convs: Sequence[Any]) -> list[Any]:
    return [norm for conv in convs for norm in conv.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]


def _scales(shells: Sequence[CSR], x: Tensor, self_loops: bool) -> list[Tensor]:
    """What both ends of an edge are scaled by: GCN normalises, GIN sums."""
    if self_loops:
        return [propagation(graph, "gcn", dtype=x.dtype).row_scale for graph in shells]  # type: ignore[misc]
    ones = x.new_ones(x.shape[0])
    return [ones for _ in shells]


def _stack(tensors: list[Tensor], x: Tensor, dims: int) -> Tensor:
    return torch.stack(tensors) if tensors else x.new_empty(0, *[x.shape[1]] * dims)


def _shift(hop: Any) -> Tensor:
    """The shift of a hop's norm, with the bias of the product in front: the batch's own mean takes that one away."""
    bias, norm = hop.linear.bias, hop.norm
    if bias is None:
        return norm.bias
    if norm.training:
        return norm.bias + 0 * bias  # its gradient is 0, not None
    return norm.bias + bias * norm.weight * (norm.running_var + norm.eps).rsqrt()


def _hop_weights(hops: list[Any], x: Tensor) -> Tensor | None:
    if all(hop.weight is None for hop in hops):
        return None
    one = x.new_ones(())
    weights = [one if hop.weight is None else hop.weight for hop in hops]
    return torch.stack([w if isinstance(w, Tensor) else w * one for w in weights])


@torch.no_grad()
def _update_running(hops: list[Any], mean: Tensor, var: Tensor, num_nodes: int) -> None:
    # .data, as in batch_norm itself: an update is no change that a backward pass of the same norm would have to refuse
    unbiased = var * (num_nodes / (num_nodes - 1))
    for hop, m, v in zip(hops, mean, unbiased):
        norm, bias = hop.norm, hop.linear.bias
        norm.running_mean.data.lerp_(m if bias is None else m + bias, norm.momentum)
        norm.running_var.data.lerp_(v, norm.momentum)
        norm.num_batches_tracked.add_(1)


@torch.library.register_fake("gossamer::drew_gcn")
def _(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    layer, num_layers, l2_norm, keep_messages = others[3], others[6], others[13], others[15]
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
    weight, gamma, beta, need_grad_x = *others[12:15], others[19]
    grad_x = torch.empty_like(grad) if need_grad_x else grad.new_empty(0, grad.shape[1])
    return (grad_x, *(torch.empty_like(t) for t in (weight, gamma, beta)), gamma.new_empty(gamma.shape[0]))


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    _, rowptr, col, scale, ctx.layer, ctx.shell, ctx.state, _, weight, gamma, beta, hop_weight, mean, _, ctx.eps, *_ = (
        inputs
    )
    ctx.self_loops = inputs[16]
    rowptr_t, col_t = inputs[18:]
    ctx.training, ctx.num_shells = mean is None, len(rowptr)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, weight, gamma, beta, hop_weight, *rowptr, *col, *scale, *rowptr_t, *col_t)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    nothing: list[Any] = [None] * 20
    for position in (1, 2, 3, 18, 19):  # lists of tensors
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
        ctx.state, weight, gamma, beta, hop_weight, ctx.eps, ctx.training,
        ctx.self_loops, ctx.needs_input_grad[0], rowptr_t, col_t,
    )  # fmt: skip
    nothing[0] = grads[0] if ctx.needs_input_grad[0] else None
    nothing[8:11] = grads[1:4]
    nothing[11] = None if hop_weight is None else grads[4]
    return tuple(nothing)


torch.library.register_autograd("gossamer::drew_gcn", _backward, setup_context=_setup_context)
