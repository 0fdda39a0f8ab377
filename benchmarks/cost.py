"""The least work of every operator: bytes that must move, each array once, and FLOPs. Speed is held against it.

``COSTS`` has one function per operator. Its arguments are those of the public function, where they decide the cost;
what a result alone can tell (edges sampled, pairs found) is handed over as a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gossamer.graph import CSR
from gossamer.sparse_nn import RoutePlan

__all__ = ["COSTS", "Cost", "aggregate_cost", "cost"]


@dataclass(frozen=True)
class Cost:
    """Minimum bytes and FLOPs of one call."""

    bytes: int
    flops: int = 0

    def seconds(self, bandwidth: float, peak: float) -> float:
        """The floor: the greater of the time that the bytes take and the time that the FLOPs take."""
        return max(self.bytes / bandwidth, self.flops / peak)


def _size(*tensors: Tensor | None) -> int:
    """Bytes of the tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _structure(graph: CSR) -> int:
    return _size(graph.rowptr, graph.col)


def aggregate_cost(graph: CSR, x: Tensor) -> Cost:
    """One gather of a source row per edge, the structure, and the result written once.

    Gathers are counted one by one: a cache that holds the hubs can beat this floor, which takes all bytes from memory.
    """
    gathered = graph.num_edges * x.shape[1] * x.element_size()
    return Cost(gathered + _structure(graph) + _size(graph.weight, x), 2 * graph.num_edges * x.shape[1])


def _extremum(graph: CSR, x: Tensor) -> Cost:
    """As a sum, and the position of each extremum, int32."""
    plain = aggregate_cost(graph, x)
    return Cost(plain.bytes + 4 * x.numel(), plain.flops)


def _sddmm(graph: CSR, x: Tensor) -> Cost:
    """A row of each side per edge, one number out."""
    return Cost(_structure(graph) + 2 * graph.num_edges * x.shape[1] * x.element_size() + 4 * graph.num_edges,
                2 * graph.num_edges * x.shape[1])  # fmt: skip


def _gated_sum(graph: CSR, query: Tensor) -> Cost:
    """Key and value of a source per edge; the query read and numerator over denominator written once; about ten FLOPs
    for a sigmoid."""
    per_edge = 2 * query.shape[1] * query.element_size()
    return Cost(
        _structure(graph) + graph.num_edges * per_edge + 2 * _size(query), 14 * graph.num_edges * query.shape[1]
    )


def _elementwise(x: Tensor, passes: int) -> Cost:
    return Cost(passes * _size(x), x.numel())


def _quantize_rows(x: Tensor, bits: int) -> Cost:
    return Cost(_size(x) + x.numel() * bits // 8 + 4 * x.shape[0], 2 * x.numel())


def _plan(num_tokens: int, k: int, num_experts: int) -> Cost:
    """Expert ids in; order, inverse (int32) and offsets (int64) out."""
    return Cost(num_tokens * k * (4 + 4 + 4) + 8 * (num_experts + 1))


def _hash_plan(table: Tensor, token_ids: Tensor, num_experts: int) -> Cost:
    k = table.shape[1]
    read = _size(token_ids) + token_ids.numel() * k * table.element_size()
    return Cost(read + _plan(token_ids.numel(), k, num_experts).bytes)


def _dispatch(x: Tensor, plan: RoutePlan) -> Cost:
    return Cost(_size(x, plan.order) + plan.num_routes * x.shape[1] * x.element_size())


def _combine(y: Tensor, plan: RoutePlan, gates: Tensor | None) -> Cost:
    out = plan.num_tokens * y.shape[1] * y.element_size()
    return Cost(_size(y, plan.inverse, gates) + out, 2 * y.numel())


def _expert_mlp(x: Tensor, plan: RoutePlan, w_in: Tensor, w_out: Tensor) -> Cost:
    """Weights of the experts that are touched and rows once; two products per route."""
    weights = (_size(w_in) + _size(w_out)) // len(w_in) * len(plan.touched_experts())
    products = w_in[0].numel() + w_out[0].numel()
    return Cost(weights + 2 * _size(x), 2 * plan.num_routes * products)


def _hash_gate(x: Tensor, weight: Tensor, table: Tensor) -> Cost:
    """Every token, every row of the weight and k gates per token once."""
    routes = x.shape[0] * table.shape[1]
    return Cost(_size(x, weight) + 8 * routes, 2 * routes * x.shape[1])


def _top_k_gate(logits: Tensor, k: int) -> Cost:
    """Logits once; ids, gates and the plan out; about ten FLOPs for an exponential."""
    num_tokens, num_experts = logits.shape
    return Cost(_size(logits) + num_tokens * k * 8 + _plan(num_tokens, k, num_experts).bytes, 10 * logits.numel())


def _decode_attention(q: Tensor, k: Tensor, v: Tensor) -> Cost:
    """The cache once; a product of each query head with every key and every value."""
    cache = _size(k) if v is k else _size(k, v)
    per_position = q.shape[1] * q.shape[2] * (q.shape[3] + v.shape[3])
    return Cost(cache + 2 * _size(q), 2 * q.shape[0] * k.shape[1] * per_position)


def _neighbor_sample(num_edges: int, num_nodes: int) -> Cost:
    """Per sampled edge a column read and row, column and edge id written (int64); per node two row pointers, its id and
    its local number."""
    return Cost(num_edges * (4 + 24) + num_nodes * (16 + 8 + 8))


def _ppr_neighbors(graph: CSR, num_seeds: int, top_k: int, alpha: float, eps: float) -> Cost:
    """The bound of forward push: at most 1 / (alpha eps) edges per seed, or the whole graph; a column and a residual
    each, and the result."""
    edges = min(int(1 / (alpha * eps)), graph.num_edges)
    return Cost(num_seeds * (edges * 8 + top_k * 12), num_seeds * edges)


def _walk_neighbors(num_seeds: int, num_walks: int, num_steps: int, top_k: int) -> Cost:
    """Two row pointers and a column per step, and the result."""
    return Cost(num_seeds * (num_walks * num_steps * 20 + top_k * 12))


def _k_hop(graph: CSR, max_hops: int, num_pairs: int) -> Cost:
    """The graph once; a column per pair and row pointers per hop out."""
    return Cost(_structure(graph) + 4 * num_pairs + 8 * max_hops * (graph.num_nodes + 1))


def _drew_gcn(num_nodes: int, channels: int, shells_of_layer: list[list[CSR]]) -> Cost:
    """Per layer and hop: a gathered row per pair and a product [N, F] x [F, F]; states and result once."""
    rows, flops = 0, 0
    for shells in shells_of_layer:
        for shell in shells:
            rows += shell.num_edges * channels * 4 + _structure(shell)
            flops += 2 * shell.num_edges * channels + 2 * num_nodes * channels**2
    return Cost(rows + 8 * (len(shells_of_layer) + 1) * num_nodes * channels, flops)


def _per_edge(graph: CSR, read: int, written: int) -> Cost:
    return Cost(_size(graph.rowptr) + graph.num_edges * (read + written))


def _curvature(graph: CSR) -> Cost:
    """For every edge the neighbours of both ends, which are merged: sum of squared degrees."""
    degree = graph.in_degree().double()
    merged = int((degree * degree).sum())
    return Cost(4 * merged + _structure(graph) + 8 * graph.num_edges, merged)


def _fosr(graph: CSR, num_edges: int) -> Cost:
    """One step of power iteration per added edge."""
    return Cost(num_edges * (_structure(graph) + 24 * graph.num_nodes), num_edges * 4 * graph.num_edges)


def _stable_order(keys: Tensor, num_keys: int) -> Cost:
    return Cost(_size(keys) + 8 * (keys.numel() + num_keys + 1))


def _compress_rows(graph: CSR, num_codes: int) -> Cost:
    return Cost(_structure(graph) + num_codes)


COSTS: dict[str, Callable[..., Cost]] = {
    "aggregate": aggregate_cost,
    "extremum": _extremum,
    "sddmm": _sddmm,
    "gated_sum": _gated_sum,
    "node_dropout": lambda x: _elementwise(x, 2),
    "relu_dropout": lambda x: _elementwise(x, 2),
    "quantize_rows": _quantize_rows,
    "dequantize_rows": _quantize_rows,
    "route_plan": _plan,
    "hash_plan": _hash_plan,
    "dispatch": _dispatch,
    "combine": _combine,
    "expert_mlp": _expert_mlp,
    "hash_gate": _hash_gate,
    "top_k_gate": _top_k_gate,
    "decode_attention": _decode_attention,
    "neighbor_sample": _neighbor_sample,
    "ppr_neighbors": _ppr_neighbors,
    "walk_neighbors": _walk_neighbors,
    "k_hop": _k_hop,
    "drew_gcn": _drew_gcn,
    "balanced_forman_curvature": _curvature,
    "sdrf": _curvature,
    "fosr": _fosr,
    "stable_order": _stable_order,
    "alias_table": lambda graph: _per_edge(graph, 4, 8),
    "cumulative_weights": lambda graph: _per_edge(graph, 4, 8),
    "compress_rows": _compress_rows,
}


def cost(operator: str, *arguments: Any) -> Cost:
    """Least work of one call of an operator."""
    return COSTS[operator](*arguments)
