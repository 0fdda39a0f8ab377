"""Sweeps of the graph operators; one thread, R-MAT graphs with hubs at random ids unless said."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.graph import (
    CSR,
    DRew,
    aggregate,
    balanced_forman_curvature,
    dequantize_rows,
    fosr,
    gated_sum,
    k_hop,
    k_hop_count,
    k_hop_pairs,
    neighbor_sample,
    node_dropout,
    ppr_neighbors,
    quantize_rows,
    relu_dropout,
    sdrf,
    walk_neighbors,
)
from gossamer.graph.order import _stable_order

import graphs
from cost import Cost, cost
from sweep import Problem, optional, sweep

WIDTH = 64
DEGREE = 16
NODES = (1 << 11, 1 << 13, 1 << 15, 1 << 17)
ROWS = (1 << 10, 1 << 13, 1 << 16)


@lru_cache(maxsize=2)
def rmat(num_nodes: int) -> CSR:
    """Mean degree 16, weighted."""
    skewed = graphs.rmat(num_nodes.bit_length() - 1, DEGREE * num_nodes)
    mixed = skewed.permute(torch.randperm(num_nodes, generator=torch.Generator().manual_seed(0)))
    weight = torch.rand(mixed.num_edges, generator=torch.Generator().manual_seed(1))
    return CSR(mixed.rowptr, mixed.col, num_nodes=num_nodes, weight=weight)


def unweighted(graph: CSR) -> CSR:
    return CSR(graph.rowptr, graph.col, num_nodes=graph.num_nodes)


def sparse_matrix(graph: CSR) -> Tensor:
    size = (graph.num_nodes, graph.num_nodes)
    return torch.sparse_csr_tensor(graph.rowptr, graph.col.long(), graph.weight, size, check_invariants=False)


def close(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], tolerance: float = 1e-3) -> Callable[[], None]:
    return lambda: torch.testing.assert_close(ours(), theirs(), rtol=tolerance, atol=tolerance)


@sweep("aggregate", "N", NODES, full=(1 << 19,), threads=True)
def aggregate_problem(num_nodes: int) -> Problem:
    graph, x = rmat(num_nodes), torch.randn(num_nodes, WIDTH)
    matrix = sparse_matrix(graph)

    def scipy_product() -> dict[str, Callable[[], Any]]:
        peer, dense = graph.to_scipy(), x.numpy()
        return {"scipy": lambda: peer @ dense}

    def ours() -> Tensor:
        return aggregate(graph, x)

    def stock() -> Tensor:
        return torch.sparse.mm(matrix, x)

    reduced = {"torch.sparse.mm reduce": lambda: torch.sparse.mm(matrix, x, reduce="sum")}
    rivals = {**reduced, **optional(scipy_product)}
    return Problem(ours, cost("aggregate", graph, x), stock, rivals, check=close(ours, stock))


@sweep("extremum", "N", NODES, threads=True)
def extremum_problem(num_nodes: int) -> Problem:
    graph, x = unweighted(rmat(num_nodes)), torch.rand(num_nodes, WIDTH)
    matrix = sparse_matrix(CSR(graph.rowptr, graph.col, num_nodes=num_nodes, weight=torch.ones(graph.num_edges)))

    def ours() -> Tensor:
        return aggregate(graph, x, reduce="max")

    def stock() -> Tensor:
        return torch.sparse.mm(matrix, x, reduce="amax")

    return Problem(ours, cost("extremum", graph, x), stock, check=close(ours, stock))


@sweep("sddmm", "N", NODES[:3], threads=True)
def sddmm_problem(num_nodes: int) -> Problem:
    """The gradient of edge weights: a product of two rows per edge."""
    graph = rmat(num_nodes)
    x, grad = torch.randn(num_nodes, WIDTH), torch.randn(num_nodes, WIDTH)
    weight = graph.weight.clone().requires_grad_()
    out = aggregate(graph, x, weight=weight)
    source, target = graph.to_edge_index()

    def ours() -> Tensor:
        return torch.autograd.grad(out, weight, grad, retain_graph=True)[0]

    def stock() -> Tensor:
        return (grad[target] * x[source]).sum(1)

    return Problem(ours, cost("sddmm", graph, x), stock, check=close(ours, stock))


@sweep("gated_sum", "N", NODES[:3], threads=True)
def gated_sum_problem(num_nodes: int) -> Problem:
    graph = unweighted(rmat(num_nodes))
    query, key, value = (torch.randn(num_nodes, WIDTH) for _ in range(3))
    source, target = graph.to_edge_index()

    def ours() -> Tensor:
        return gated_sum(graph, query, key, value)

    def stock() -> Tensor:
        gate = torch.sigmoid(query[target] + key[source])
        total = torch.zeros_like(value).index_add_(0, target, gate * value[source])
        return total / (torch.zeros_like(value).index_add_(0, target, gate) + 1e-6)

    return Problem(ours, cost("gated_sum", graph, query), stock, check=close(ours, stock))


@sweep("node_dropout", "N", ROWS, threads=True)
def node_dropout_problem(num_nodes: int) -> Problem:
    x = torch.randn(num_nodes, WIDTH)
    return Problem(lambda: node_dropout(x, 0.5, seed=1), cost("node_dropout", x), lambda: F.dropout(x, 0.5))


@sweep("relu_dropout", "N", ROWS, threads=True)
def relu_dropout_problem(num_nodes: int) -> Problem:
    x = torch.randn(num_nodes, WIDTH)
    return Problem(lambda: relu_dropout(x, 0.5, seed=1), cost("relu_dropout", x), lambda: F.dropout(F.relu(x), 0.5))


@sweep("quantize_rows", "N", ROWS, threads=True)
def quantize_rows_problem(num_nodes: int) -> Problem:
    x = torch.randn(num_nodes, WIDTH)

    def stock() -> Tensor:
        return torch.floor(x / (x.abs().amax(1, keepdim=True) / 127) + torch.rand_like(x)).clamp(-127, 127).char()

    return Problem(lambda: quantize_rows(x, 8, seed=1), cost("quantize_rows", x, 8), stock)


@sweep("dequantize_rows", "N", ROWS, threads=True)
def dequantize_rows_problem(num_nodes: int) -> Problem:
    x = torch.randn(num_nodes, WIDTH)
    codes, scale = quantize_rows(x, 8, seed=1)
    signed, column = codes.view(torch.int8)[:, :WIDTH], scale.view(-1, 1)

    def ours() -> Tensor:
        return dequantize_rows(codes, scale, WIDTH, 8)

    return Problem(ours, cost("dequantize_rows", x, 8), lambda: signed * column)


@sweep("stable_order", "E", (1 << 15, 1 << 18, 1 << 21))
def stable_order_problem(num_edges: int) -> Problem:
    keys = torch.randint(num_edges // DEGREE, (num_edges,), dtype=torch.int32)
    return Problem(
        lambda: _stable_order(keys, num_edges // DEGREE), cost("stable_order", keys, num_edges // DEGREE),
        lambda: keys.sort(stable=True),
    )  # fmt: skip


@sweep("alias_table", "E", (1 << 15, 1 << 18, 1 << 21))
def alias_table_problem(num_edges: int) -> Problem:
    graph = rmat(num_edges // DEGREE)
    return Problem(
        lambda: torch.ops.gossamer.alias_table(graph.rowptr, graph.weight), cost("alias_table", graph)
    )  # fmt: skip


@sweep("cumulative_weights", "E", (1 << 15, 1 << 18, 1 << 21))
def cumulative_weights_problem(num_edges: int) -> Problem:
    graph = rmat(num_edges // DEGREE)

    def stock() -> Tensor:
        total = F.pad(graph.weight.cumsum(0, dtype=torch.float64), (1, 0))
        return total[1:] - total[graph.rowptr[:-1]].repeat_interleave(graph.in_degree())

    def ours() -> Tensor:
        return torch.ops.gossamer.cumulative_weights(graph.rowptr, graph.weight)

    return Problem(ours, cost("cumulative_weights", graph), stock)


@sweep("compress_rows", "E", (1 << 15, 1 << 18, 1 << 21))
def compress_rows_problem(num_edges: int) -> Problem:
    mixed = rmat(num_edges // DEGREE)
    source, target = mixed.to_edge_index()
    order = (target * mixed.num_nodes + source).argsort()  # columns ascend within each row
    graph = CSR(mixed.rowptr, mixed.col[order], num_nodes=mixed.num_nodes)
    raw = graph.col.numpy().tobytes()

    def ours() -> Any:
        return torch.ops.gossamer.compress_rows(graph.rowptr, graph.col)

    return Problem(
        ours, cost("compress_rows", graph, ours()[0].numel()), rivals={"zlib": lambda: zlib.compress(raw, 1)}
    )


@sweep("neighbor_sample", "S", (64, 256, 1024, 4096), full=(16384,), threads=True)
def neighbor_sample_problem(num_seeds: int) -> Problem:
    graph = unweighted(rmat(1 << 17))
    seeds = torch.randperm(graph.num_nodes)[:num_seeds]
    found = neighbor_sample(graph, seeds, [15, 10, 5], seed=0)
    least = cost("neighbor_sample", found.row.numel(), found.node.numel())

    def dgl_sampler() -> dict[str, Callable[[], Any]]:
        os.environ.setdefault("DGLBACKEND", "pytorch")
        import dgl

        csc = (graph.rowptr, graph.col.long(), torch.empty(0, dtype=torch.int64))
        peer = dgl.graph(("csc", csc), num_nodes=graph.num_nodes)
        sampler = dgl.dataloading.NeighborSampler([5, 10, 15])
        return {"DGL": lambda: sampler.sample_blocks(peer, seeds)}

    return Problem(lambda: neighbor_sample(graph, seeds, [15, 10, 5], seed=0), least, rivals=optional(dgl_sampler))


@sweep("ppr_neighbors", "S", (16, 64, 256), full=(1024,), threads=True)
def ppr_neighbors_problem(num_seeds: int) -> Problem:
    graph = unweighted(rmat(1 << 15))
    seeds = torch.randperm(graph.num_nodes)[:num_seeds]

    def power_iteration() -> dict[str, Callable[[], Any]]:
        import scipy.sparse

        ones = numpy.ones(graph.num_edges, dtype=numpy.float32)
        size = (graph.num_nodes, graph.num_nodes)
        matrix = scipy.sparse.csr_matrix((ones, graph.col.numpy(), graph.rowptr.numpy()), size)
        degree = numpy.maximum(numpy.asarray(matrix.sum(1)).ravel(), 1)
        step = (scipy.sparse.diags(1 / degree) @ matrix).T.tocsr().astype(numpy.float32)
        start = numpy.zeros((graph.num_nodes, num_seeds), dtype=numpy.float32)
        start[seeds.numpy(), range(num_seeds)] = 1

        def run() -> Any:
            p = start
            for _ in range(20):
                p = 0.15 * start + 0.85 * (step @ p)
            return numpy.argpartition(-p, 50, axis=0)[:50]

        return {"scipy, 20 steps of power iteration": run}

    return Problem(
        lambda: ppr_neighbors(graph, seeds, top_k=50), cost("ppr_neighbors", graph, num_seeds, 50, 0.15, 1e-4),
        rivals=optional(power_iteration),
    )  # fmt: skip


@sweep("walk_neighbors", "S", (64, 256, 1024), threads=True)
def walk_neighbors_problem(num_seeds: int) -> Problem:
    graph = unweighted(rmat(1 << 17))
    seeds = torch.randperm(graph.num_nodes)[:num_seeds]
    degree = graph.in_degree()

    def stock() -> Tensor:
        """128 walks of two steps; visits counted by a sort of (seed, node) pairs."""
        node, visits = seeds.repeat_interleave(128), []
        for _ in range(2):
            place = (torch.rand(len(node)) * degree[node]).long()
            node = graph.col[(graph.rowptr[node] + place).clamp(max=graph.num_edges - 1)].long()
            visits.append(node)
        owner = torch.arange(num_seeds).repeat_interleave(128).repeat(2)
        return (owner * graph.num_nodes + torch.cat(visits)).unique(return_counts=True)[1]

    ours = lambda: walk_neighbors(graph, seeds, top_k=50, seed=0)  # noqa: E731
    return Problem(ours, cost("walk_neighbors", num_seeds, 128, 2, 50), stock)


@sweep("k_hop", "G", (10, 50, 200), full=(1000,), threads=True)
def k_hop_problem(num_graphs: int) -> Problem:
    """Shells 1..10 of peptide-like graphs of about 150 nodes."""
    graph = graphs.peptides(num_graphs)

    def scipy_search() -> dict[str, Callable[[], Any]]:
        from scipy.sparse.csgraph import dijkstra

        whole, bounds = graph.to_scipy(), torch.ops.gossamer.diagonal_blocks(graph.rowptr, graph.col).tolist()
        blocks = [whole[a:b, a:b] for a, b in pairwise(bounds)]
        return {"scipy dijkstra": lambda: [(dijkstra(m, unweighted=True, limit=10) <= 10).nonzero() for m in blocks]}

    least = cost("k_hop", graph, 10, int(k_hop_count(graph, 10).sum()))
    return Problem(lambda: k_hop(graph, 10), least, rivals=optional(scipy_search))


@sweep("balanced_forman_curvature", "N", (1 << 9, 1 << 11, 1 << 13), threads=True)
def curvature_problem(num_nodes: int) -> Problem:
    graph = uniform_graph(num_nodes)
    return Problem(lambda: balanced_forman_curvature(graph), cost("balanced_forman_curvature", graph))


@sweep("sdrf", "N", (1 << 9, 1 << 11, 1 << 13))
def sdrf_problem(num_nodes: int) -> Problem:
    graph = uniform_graph(num_nodes)
    return Problem(lambda: sdrf(graph, 10, tau=float("inf")), cost("sdrf", graph))


@sweep("fosr", "N", (1 << 9, 1 << 11, 1 << 13))
def fosr_problem(num_nodes: int) -> Problem:
    graph = uniform_graph(num_nodes)
    return Problem(lambda: fosr(graph, 50, num_power_iterations=5), cost("fosr", graph, 55))


def uniform_graph(num_nodes: int) -> CSR:
    """Mean degree 8, both ways."""
    edges = torch.randint(0, num_nodes, (2, 4 * num_nodes), generator=torch.Generator().manual_seed(0))
    edges = edges[:, edges[0] != edges[1]]
    return CSR.from_edge_index(torch.cat([edges, edges.flip(0)], 1).unique(dim=1), num_nodes)


@sweep("drew_gcn", "L", (2, 5, 10))
def drew_gcn_problem(num_layers: int) -> Problem:
    """64 peptide-like graphs, forward and backward, against the way of the paper's code."""
    graph = graphs.peptides(64)
    x, shells = torch.randn(graph.num_nodes, WIDTH), k_hop(graph, num_layers)
    model = DRew(WIDTH, WIDTH, WIDTH, num_layers, delay=1)
    model.encoder = model.head = nn.Identity()

    def step(model: nn.Module, *inputs: Any) -> None:
        model.zero_grad()
        model(*inputs).square().sum().backward()

    def paper() -> dict[str, Callable[[], Any]]:
        from paper_drew import PaperDRewGCN

        theirs = PaperDRewGCN(WIDTH, num_layers, delay=1)
        pairs, hops = (t.long() for t in k_hop_pairs(graph, num_layers))
        return {"as the paper's code": lambda: step(theirs, x, pairs, hops)}

    forward = cost("drew_gcn", graph.num_nodes, WIDTH, [shells[: t + 1] for t in range(num_layers)])
    both = Cost(3 * forward.bytes, 3 * forward.flops)  # the gradients of state and weight
    return Problem(lambda: step(model, x, shells), both, rivals=optional(paper))
