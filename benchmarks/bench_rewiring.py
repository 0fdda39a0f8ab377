"""Rewiring baselines and positional encodings against the way the papers' code does it."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy
import torch

from gossamer.graph import CSR, balanced_forman_curvature, fosr, random_walk_pe, sdrf

import graphs
import harness

CAPABILITY = "Rewiring baselines"
NUM_NODES, NUM_EDGES = 2000, 8000


@lru_cache
def graph() -> CSR:
    """A random graph of 2000 nodes and mean degree 8, both ways."""
    edges = torch.randint(0, NUM_NODES, (2, NUM_EDGES), generator=torch.Generator().manual_seed(0))
    edges = edges[:, edges[0] != edges[1]]
    edges = torch.cat([edges, edges.flip(0)], 1).unique(dim=1)
    return CSR.from_edge_index(edges, NUM_NODES)


@lru_cache
def adjacency() -> numpy.ndarray:
    dense = numpy.zeros((NUM_NODES, NUM_NODES))
    dense[graph()._rows.numpy(), graph().col.numpy()] = 1
    return dense


def dense_curvatures(a: numpy.ndarray) -> numpy.ndarray:
    """The dense pass of the paper's code over all edges, one vector operation for its innermost loop."""
    squared, degree, out = a @ a, a.sum(1), numpy.zeros_like(a)
    for i, j in zip(*a.nonzero()):
        most, least = max(degree[i], degree[j]), min(degree[i], degree[j])
        through = numpy.concatenate([a[:, j] * (squared[i] - a[i]), a[i] * (squared[:, j] - a[:, j])])
        flat = 2 / most + 2 / least - 2 + (2 / most + 1 / least) * squared[i, j]
        out[i, j] = flat + (through > 0).sum() / (most * max(through.max(), 1))
    return out


def dense_fosr(a: numpy.ndarray, num_edges: int) -> list[tuple[int, int]]:
    """The paper's code: the products of all pairs of nodes for every added edge."""
    edges, degree, added = [list(ids) for ids in a.nonzero()], a.sum(1), []
    x = 2 * numpy.random.default_rng(0).random(len(a)) - 1
    for iteration in range(5 + num_edges):
        if iteration >= 5:
            y = x / (degree + 1) ** 0.5
            products = numpy.outer(y, y)
            products[edges[0], edges[1]] = 0
            numpy.fill_diagonal(products, 0)
            i, j = divmod(int(products.argmin()), len(a))
            added.append((i, j))
            edges = [edges[0] + [i, j], edges[1] + [j, i]]
            degree[[i, j]] += 1
        root = numpy.maximum(degree, 1) ** 0.5  # a node without edges must not divide by 0
        x = x - x.dot(root) * root / degree.sum()
        scaled, y = x / root, x.copy()
        y += numpy.bincount(edges[0], scaled[edges[1]], len(a)) / root
        x = y / numpy.linalg.norm(y)
    return added


SIZES = f"{NUM_NODES} nodes, mean degree 8"


@harness.goal(CAPABILITY, f"curvature of all edges, {SIZES}, against the dense pass of the paper's code", at_least=50.0)
def curvature() -> harness.Figure:
    times = harness.compare(
        {"ours": lambda: balanced_forman_curvature(graph()), "dense": lambda: dense_curvatures(adjacency())},
        repeats=3, warmup=1, max_seconds=30,
    )  # fmt: skip
    return times.figure("dense", "ours", "dense: one product of matrices, then vectors of length 2000 per edge")


@harness.goal(CAPABILITY, f"SDRF, 10 edges, {SIZES}, against as many passes over all curvatures by the same kernel")
def sdrf_updates() -> harness.Figure:
    def anew() -> None:
        for _ in range(10):
            balanced_forman_curvature(graph())

    times = harness.compare({"ours": lambda: sdrf(graph(), 10, tau=math.inf), "anew": anew}, repeats=10)
    return times.figure("anew", "ours", "ours takes one pass and then renews what an edge can change")


@harness.goal(
    CAPABILITY, f"FoSR, 50 edges, {SIZES}, against the products of all pairs as in the paper's code", at_least=50.0
)  # fmt: skip
def fosr_edges() -> harness.Figure:
    times = harness.compare(
        {
            "ours": lambda: fosr(graph(), 50, num_power_iterations=5),
            "dense": lambda: dense_fosr(adjacency(), 50),
        },
        repeats=5, warmup=1, max_seconds=30,
    )  # fmt: skip
    return times.figure("dense", "ours", "5 power iterations before the first edge on both sides")


@harness.goal(CAPABILITY, "200 peptide-like graphs, random-walk PE of 20 steps, against PyG one by one", at_least=2.0)
def random_walks() -> harness.Figure:
    try:
        from torch_geometric.data import Data
        from torch_geometric.transforms import AddRandomWalkPE
    except ImportError as error:
        raise harness.NotHere("torch_geometric is not installed") from error
    batch = graphs.peptides(200)
    edges = batch.to_edge_index().unique(dim=1)  # PyG's dense path knows no repeated edges
    batch = CSR.from_edge_index(edges, batch.num_nodes)
    bounds = torch.ops.gossamer.diagonal_blocks(batch.rowptr, batch.col).tolist()
    small = []
    for begin, end in pairwise(bounds):
        inside = (edges[0] >= begin) & (edges[0] < end)
        small.append(Data(edge_index=edges[:, inside] - begin, num_nodes=end - begin))
    transform = AddRandomWalkPE(20)

    def theirs() -> torch.Tensor:
        return torch.cat([transform(data).random_walk_pe for data in small])

    torch.testing.assert_close(random_walk_pe(batch, 20), theirs(), rtol=1e-4, atol=1e-5)
    times = harness.compare({"ours": lambda: random_walk_pe(batch, 20), "PyG": theirs}, repeats=5, max_seconds=30)
    return times.figure("PyG", "ours", f"{len(small)} graphs, {batch.num_nodes} nodes")


if __name__ == "__main__":
    harness.main()
