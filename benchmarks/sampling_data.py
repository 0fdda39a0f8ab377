"""Graphs and batches of the sampling benchmarks."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from gossamer.graph import CSR

__all__ = ["batches", "rmat", "timed", "weighted"]

PAIRS = {16: 500_000, 18: 2_080_000, 20: 8_600_000}  # before both directions and without duplicates


@lru_cache(maxsize=2)
def rmat(scale: int) -> CSR:
    """A symmetric R-MAT graph of 2^scale nodes (a = 0.57, b = c = 0.19), without duplicate edges, int32 columns."""
    generator = torch.Generator().manual_seed(0)
    source = torch.zeros(PAIRS[scale], dtype=torch.int64)
    target = torch.zeros_like(source)
    for _ in range(scale):
        u = torch.rand(PAIRS[scale], generator=generator)
        source = 2 * source + (u >= 0.76)
        target = 2 * target + (((u >= 0.57) & (u < 0.76)) | (u >= 0.95))
    num_nodes = 1 << scale
    keys = torch.cat([target * num_nodes + source, source * num_nodes + target]).unique()
    rowptr = torch.zeros(num_nodes + 1, dtype=torch.int64)
    rowptr[1:] = torch.bincount(keys // num_nodes, minlength=num_nodes).cumsum(0)
    return CSR(rowptr, (keys % num_nodes).to(torch.int32), num_nodes=num_nodes)


@lru_cache(maxsize=1)
def weighted(scale: int) -> CSR:
    """The same graph with weights uniform in (0, 1)."""
    graph = rmat(scale)
    weight = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(1))
    return CSR(graph.rowptr, graph.col, num_nodes=graph.num_nodes, weight=weight)


@lru_cache(maxsize=1)
def timed(scale: int) -> CSR:
    """The same graph with weights, and with times uniform in [0, 1000)."""
    graph = weighted(scale)
    time = torch.randint(1000, (graph.num_edges,), generator=torch.Generator().manual_seed(2))
    return CSR(graph.rowptr, graph.col, num_nodes=graph.num_nodes, weight=graph.weight, time=time)


def batches(scale: int, count: int = 5, size: int = 1024) -> list[Tensor]:
    """Batches of different random nodes; nodes without edges occur as they do in the graph."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randperm(1 << scale, generator=generator)[:size] for _ in range(count)]
