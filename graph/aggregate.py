"""Aggregation over in-neighbours: the sparse product that every graph layer is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import gossamer.graph.sddmm  # noqa: F401  (the gradient of the edge weights)
from gossamer._arguments import typed
from gossamer.graph.csr import CSR
from gossamer.graph.extremum import extremum

__all__ = ["Propagation", "aggregate", "gcn_aggregate", "propagate", "propagation", "share_propagations"]

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Propagation:
    """The linear map D_row (A_weight + self_loops I) D_col of an aggregation; None stands for ones.

    weight_t is the weight in the edge order of the transposed graph; where it is None the backward pass looks the
    weight up through the positions of the edges.
    """

    weight: Tensor | None = None
    row_scale: Tensor | None = None
    col_scale: Tensor | None = None
    self_loops: bool = False
    weight_t: Tensor | None = None


@typed
def aggregate(graph: Any, x: Tensor, *, weight: Tensor | None = None, reduce: str = "sum") -> Tensor:
    """out[i] = reduce over in-neighbours j of i of weight[j -> i] * x[j]; 0 where i has none.

    Args:
        graph: a CSR, or a view of one that owns its data flow (a chunk of the pipelined engine).
        x: [num_nodes, F], floating point; sums are kept in float32 (float64 for float64).
        weight: [num_edges], floating point, in the edge order of the graph; None takes ``graph.weight``, or ones.
        reduce: sum, mean (over the number of in-neighbours), max or min. Where several edges tie for max or min the
            first one in the row has the gradient.

    Returns:
        [num_nodes, F], dtype of x; differentiable in x and weight, the same bits for any number of threads. Beyond
        the result it allocates nothing larger than x (max and min keep which edge won).

    Raises:
        TypeError: if x or weight has the wrong type.
        ValueError: if a shape, a device or reduce is wrong.
    """
    if reduce not in ("sum", "mean", "max", "min"):
        raise ValueError(f"aggregate: reduce must be sum, mean, max or min, got {reduce!r}")
    if not isinstance(graph, CSR):
        return graph.aggregate(x, weight=weight, reduce=reduce)
    _check(graph, x, weight, "aggregate")
    if reduce in ("max", "min"):
        return extremum(graph, x.contiguous(), _edge_weight(graph, weight, x.dtype), minimum=reduce == "min")
    return propagate(graph, x, propagation(graph, reduce, weight, x.dtype))


@typed
def gcn_aggregate(
    graph: Any, x: Tensor, *, weight: Tensor | None = None, residual: Tensor | None = None, alpha: float = 0.0
) -> Tensor:
    """out = (1 - alpha) D^-1/2 (A + I) D^-1/2 x + alpha residual, with D the weighted in-degree plus 1.

    A self loop that the graph has already is one more edge: the added one comes on top.

    Args:
        graph: a CSR, or a view of one that owns its data flow (a chunk of the pipelined engine).
        x: [num_nodes, F], floating point.
        weight: [num_edges], floating point, nonnegative; None takes ``graph.weight``, or ones. Degrees that belong
            to the graph's own weight are computed once and kept with the graph.
        residual: [num_nodes, F], dtype of x; needed where alpha is not 0.
        alpha: share of the residual.

    Returns:
        [num_nodes, F], dtype of x; differentiable in x, residual and weight.

    Raises:
        TypeError: if x, weight or residual has the wrong type.
        ValueError: if a shape or a device is wrong.

    Source: Kipf and Welling 2017, Semi-Supervised Classification with Graph Convolutional Networks, equation 2;
    the residual is that of Chen et al. 2020, Simple and Deep Graph Convolutional Networks, equation 5.
    """
    if not isinstance(graph, CSR):
        return graph.gcn_aggregate(x, weight=weight, residual=residual, alpha=alpha)
    _check(graph, x, weight, "gcn_aggregate")
    _check_residual(x, residual, alpha)
    owner = graph.weight if weight is None else weight
    if owner is not None and owner.requires_grad and torch.is_grad_enabled():
        return _gcn_of_learned_weight(graph, x, owner, residual, alpha)
    return propagate(graph, x, propagation(graph, "gcn", weight, x.dtype), residual, alpha)


def propagation(graph: CSR, kind: str, weight: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Propagation:
    """The map behind an aggregation of ``kind`` sum, mean or gcn of features of ``dtype``.

    Whatever follows from the graph and its own weight alone is computed once and kept with the graph.
    """
    if kind not in ("sum", "mean", "gcn"):
        raise ValueError(f"propagation: kind must be sum, mean or gcn, got {kind!r}")
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    if weight is None and not (graph.weight is not None and graph.weight.requires_grad):
        return _kept(graph, f"{kind} {dtype}", lambda: _propagation(graph, kind, graph.weight, dtype, own=True))
    weight = graph.weight if weight is None else weight
    return _propagation(graph, kind, weight, dtype, own=False)


def share_propagations(whole: CSR, local: CSR, nodes: Tensor, edges: Tensor) -> None:
    """Let ``local``, some rows of ``whole``, aggregate with the degrees of the whole graph.

    Args:
        whole: a graph whose weight needs no gradient.
        local: its node i is node nodes[i] of ``whole``, its edge e is edge edges[e].
        nodes: [local.num_nodes], int64.
        edges: [local.num_edges], int64.
    """

    def select(values: Tensor | None, ids: Tensor) -> Tensor | None:
        return None if values is None else values[ids]

    for dtype in (torch.float32, torch.float64):
        for kind in ("sum", "mean", "gcn"):
            p = propagation(whole, kind, dtype=dtype)
            scales = select(p.row_scale, nodes), select(p.col_scale, nodes)
            kept = Propagation(select(p.weight, edges), *scales, p.self_loops)
            local.__dict__.setdefault("_propagations", {})[f"{kind} {dtype}"] = (local.weight, kept)


def propagate(graph: CSR, x: Tensor, p: Propagation, residual: Tensor | None = None, alpha: float = 0.0) -> Tensor:
    """Apply a propagation to every row of the graph."""
    back = graph.transpose() if x.requires_grad and torch.is_grad_enabled() else None
    weight_t = p.weight_t if back else None
    edge_ids_t = graph._transpose_positions if back and p.weight is not None and weight_t is None else None
    return torch.ops.gossamer.aggregate(
        x.contiguous(), graph.rowptr, graph.col, p.weight, None, p.row_scale, p.col_scale, p.self_loops, 0,
        None if residual is None else residual.contiguous(), alpha, back and back.rowptr, back and back.col,
        edge_ids_t, weight_t,
    )  # fmt: skip


def _propagation(graph: CSR, kind: str, weight: Tensor | None, dtype: torch.dtype, *, own: bool) -> Propagation:
    weight = None if weight is None else weight.to(dtype).contiguous()
    weight_t = weight[graph._transpose_positions] if own and weight is not None else None
    if kind == "sum":
        return Propagation(weight, weight_t=weight_t)
    if kind == "mean":
        mean_scale = graph.in_degree().clamp(min=1).to(dtype).reciprocal()
        return Propagation(weight, row_scale=mean_scale, weight_t=weight_t)
    scale = _gcn_scale(graph, weight, dtype)
    return Propagation(weight, scale, scale, self_loops=True, weight_t=weight_t)


def _gcn_scale(graph: CSR, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[num_nodes]: (1 + weighted in-degree)^-1/2, 0 where that degree is 0."""
    if weight is None:
        degree = graph.in_degree().double()
    else:
        ones = weight.new_ones(graph.num_nodes, 1, dtype=torch.float64)
        degree = propagate(graph, ones, Propagation(weight.double()))[:, 0]
    scale = (degree + 1).rsqrt()
    return scale.masked_fill(scale.isinf(), 0).to(dtype)


def _gcn_of_learned_weight(graph: CSR, x: Tensor, weight: Tensor, residual: Tensor | None, alpha: float) -> Tensor:
    """gcn_aggregate with the gradient of the degrees: the scales become part of the edge weights."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale = _gcn_scale(graph, weight, dtype)
    edge_weight = weight.to(dtype) * scale[graph._rows] * scale[graph.col]
    out = propagate(graph, x, Propagation(edge_weight)) + (scale * scale).to(x.dtype)[:, None] * x
    return out if residual is None else (1 - alpha) * out + alpha * residual


def _edge_weight(graph: CSR, weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return propagation(graph, "sum", weight, dtype).weight


def _kept(graph: CSR, key: str, make: Callable[[], Propagation]) -> Propagation:
    """make(), once per graph and weight tensor (a graph's tensors are never modified)."""
    kept = graph.__dict__.setdefault("_propagations", {})
    if key not in kept or kept[key][0] is not graph.weight:
        kept[key] = (graph.weight, make())
    return kept[key][1]


def _check(graph: CSR, x: Tensor, weight: Tensor | None, function: str) -> None:
    if not isinstance(x, Tensor) or x.dtype not in FLOATING:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{function}: x must be a float32, float64, bfloat16 or float16 tensor, got {got}")
    if x.dim() != 2 or x.shape[0] != graph.num_nodes:
        raise ValueError(f"{function}: x must be [{graph.num_nodes}, F] (num_nodes rows), got {list(x.shape)}")
    if x.device != graph.col.device:
        raise ValueError(f"{function}: x must be on the device of the graph, {graph.col.device}, got {x.device}")
    if weight is None:
        return
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"{function}: weight must be a floating point tensor, got {got}")
    if weight.shape != (graph.num_edges,):
        raise ValueError(f"{function}: weight must be [{graph.num_edges}] (num_edges), got {list(weight.shape)}")
    if weight.device != x.device:
        raise ValueError(f"{function}: weight must be on the device of x, {x.device}, got {weight.device}")


def _check_residual(x: Tensor, residual: Tensor | None, alpha: float) -> None:
    if residual is None:
        if alpha != 0:
            raise ValueError(f"gcn_aggregate: residual must be given where alpha is not 0, got alpha {alpha}")
    elif residual.shape != x.shape:
        raise ValueError(f"gcn_aggregate: residual must be {list(x.shape)} like x, got {list(residual.shape)}")
    elif residual.dtype != x.dtype:
        raise TypeError(f"gcn_aggregate: residual must be {x.dtype} like x, got {residual.dtype}")
    elif residual.device != x.device:
        raise ValueError(f"gcn_aggregate: residual must be on the device of x, {x.device}, got {residual.device}")


@torch.library.register_fake("gossamer::aggregate")
def _(x: Tensor, rowptr: Tensor, *others: Any) -> Tensor:
    return x.new_empty(rowptr.shape[0] - 1, x.shape[1])


def _setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, rowptr, col, weight, edge_ids, row_scale, col_scale, ctx.self_loops, _, _, ctx.alpha, *transposed = inputs
    kept_x = x if ctx.needs_input_grad[3] else None  # only the gradient of the weight needs x
    transposed += [None] * (4 - len(transposed))
    ctx.save_for_backward(kept_x, rowptr, col, weight, edge_ids, row_scale, col_scale, *transposed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, rowptr, col, weight, edge_ids, row_scale, col_scale, *transposed = ctx.saved_tensors
    rowptr_t, col_t, edge_ids_t, weight_t = transposed
    grad = grad.contiguous()
    grad_x = grad_weight = grad_residual = None
    if ctx.needs_input_grad[0]:
        if rowptr_t is None:
            raise RuntimeError("aggregate: rowptr_t and col_t must be given where x needs a gradient, got None")
        there = (weight, edge_ids_t, None) if weight_t is None else (weight_t, None, weight)
        grad_x = torch.ops.gossamer.aggregate(  # the graph is the transpose of its transpose
            grad, rowptr_t, col_t, there[0], there[1], col_scale, row_scale, ctx.self_loops, 0, None, ctx.alpha,
            rowptr, col, edge_ids, there[2],
        )  # fmt: skip
    if ctx.needs_input_grad[3]:
        grad_weight = torch.ops.gossamer.sddmm(
            grad, x, rowptr, col, edge_ids, row_scale, col_scale, 1 - ctx.alpha, rowptr_t, col_t, edge_ids_t
        )
    if ctx.needs_input_grad[9]:
        grad_residual = ctx.alpha * grad
    others = (None,) * (len(ctx.needs_input_grad) - 10)
    return grad_x, None, None, grad_weight, None, None, None, None, None, grad_residual, *others


torch.library.register_autograd("gossamer::aggregate", _backward, setup_context=_setup_context)
