"""Synthetic graphs that the rewiring benchmarks run on."""

from __future__ import annotations

import numpy
import torch

from gossamer.graph import CSR

__all__ = ["block_graph", "peptides", "random_graph", "rmat"]


def peptides(num_graphs: int = 200, seed: int = 0) -> CSR:
    """A batch of peptide-like graphs: chains with short branches and a few rings of six, about 150 nodes each."""
    rng = numpy.random.default_rng(seed)
    edges, start = [], 0
    for num_nodes in rng.integers(100, 198, num_graphs):
        child = numpy.arange(1, num_nodes)
        branch = rng.integers(numpy.maximum(child - 6, 0), child)
        parent = numpy.where(rng.random(num_nodes - 1) < 0.6, child - 1, branch)
        ring = rng.integers(0, num_nodes - 5, 8)
        edges.append(start + numpy.concatenate([[parent, child], [ring, ring + 5]], 1))
        start += num_nodes
    return _undirected(numpy.concatenate(edges, 1), int(start))


def rmat(scale: int, num_edges: int, seed: int = 0) -> CSR:
    """R-MAT (a = 0.57, b = c = 0.19) with 2^scale nodes and about num_edges directed edges, both ways, no loops."""
    rng = numpy.random.default_rng(seed)
    edges = numpy.zeros((2, num_edges * 2), dtype=numpy.int64)
    for _ in range(scale):
        quadrant = numpy.searchsorted([0.57, 0.76, 0.95], rng.random(num_edges * 2))
        edges = 2 * edges + [quadrant // 2, quadrant % 2]
    edges = numpy.unique(numpy.sort(edges[:, edges[0] != edges[1]], 0), axis=1)
    keep = rng.permutation(edges.shape[1])[: num_edges // 2]
    return _undirected(edges[:, keep], 2**scale)


def block_graph(num_nodes: int, num_edges: int, num_blocks: int, between: float, seed: int = 0) -> CSR:
    """About num_edges directed edges, both ways, no loops; a share ``between`` joins nodes of any two blocks, the rest
    nodes of one block (a stochastic block model)."""
    rng = numpy.random.default_rng(seed)
    source = rng.integers(0, num_nodes, num_edges // 2)
    within = source % num_blocks + num_blocks * rng.integers(0, num_nodes // num_blocks, len(source))
    target = numpy.where(rng.random(len(source)) < between, rng.integers(0, num_nodes, len(source)), within)
    edges = numpy.sort(numpy.stack([source, target]), 0)
    return _undirected(numpy.unique(edges[:, source != target], axis=1), num_nodes)


def random_graph(seed: int) -> tuple[torch.Tensor, int]:
    """Up to 40 nodes, every 51st graph up to 900, any number of edges: self loops, repeated edges, isolated nodes and
    no edges at all occur."""
    rng = numpy.random.default_rng(seed)
    num_nodes = int(rng.integers(1, 40 if seed % 51 else 900))
    return torch.from_numpy(rng.integers(0, num_nodes, (2, int(rng.integers(0, 2 * num_nodes))))), num_nodes


def _undirected(edges: numpy.ndarray, num_nodes: int) -> CSR:
    return CSR.from_edge_index(torch.from_numpy(numpy.concatenate([edges, edges[::-1]], 1)), num_nodes)
