"""Edges added where a graph is narrow: balanced Forman curvature, SDRF and FoSR."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.csr import CSR

__all__ = ["balanced_forman_curvature", "fosr", "sdrf"]


@typed
def balanced_forman_curvature(graph: CSR) -> Tensor:
    """ric(i, j) = 2/d_i + 2/d_j - 2 + 2 t/max(d_i, d_j) + t/min(d_i, d_j) + (s_i + s_j)/(g max(d_i, d_j)), per edge.

    t counts the triangles on the edge; s_i and s_j the neighbours of i and of j that close a square over the edge
    without a diagonal, g the most such squares through one of them. An edge whose end has no other neighbour has 0. The
    graph is walked both ways; repeated edges count once and self loops not at all. Every edge gets its curvature: the
    implementation in common use leaves the row of a node at its first non-neighbour.

    Args:
        graph: a CSR on the CPU, less than 2^31 nodes; weights are not used.

    Returns:
        [num_edges], float64, in the edge order of the graph, 0 for self loops; the same bits for any number of threads.

    Raises:
        TypeError: if graph is not a CSR.
        ValueError: if graph is not on the CPU.

    Source: Topping et al. 2022, Understanding over-squashing and bottlenecks on graphs via curvature, definition 1.
    """
    rowptr, col = _simple_rows("balanced_forman_curvature", graph)
    curvature = torch.ops.gossamer.balanced_forman_curvature(rowptr, col)
    rows = torch.arange(graph.num_nodes).repeat_interleave(rowptr.diff())
    place = torch.searchsorted(rows * graph.num_nodes + col, graph._rows * graph.num_nodes + graph.col)
    loops = graph._rows == graph.col
    curvature = torch.cat([curvature, curvature.new_zeros(1)])
    return curvature[place.masked_fill(loops, -1)]


@typed
def sdrf(
    graph: CSR, num_iterations: int, *, tau: float = 1.0, removal_bound: float | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Stochastic discrete Ricci flow: add edges around the edge of least curvature, remove those of most.

    An iteration takes the edge i - j of least balanced Forman curvature and adds one of the missing edges k - l, k = i
    or beside it, l = j or beside it, drawn with probability softmax(tau * gain of the curvature of i - j). Only the
    curvatures that the new edge can change are computed anew. The graph is walked both ways, without self loops.

    Args:
        graph: a CSR on the CPU, less than 2^31 nodes.
        num_iterations: at least 0; the flow ends earlier where nothing changes.
        tau: inverse temperature, at least 0; math.inf takes the largest gain.
        removal_bound: after every addition the edge of most curvature is removed where that is above the bound.
        seed: random seed; equal seeds give equal edges.

    Returns:
        added [2, A] and removed [2, R], int64, against the graph at the start: every edge once, smaller node first.

    Raises:
        TypeError: if graph is not a CSR.
        ValueError: if an argument is out of its range.

    Source: Topping et al. 2022, Understanding over-squashing and bottlenecks on graphs via curvature, algorithm 1.
    """
    if num_iterations < 0:
        raise ValueError(f"sdrf: num_iterations must be at least 0, got {num_iterations}")
    if not tau >= 0:
        raise ValueError(f"sdrf: tau must be at least 0, got {tau}")
    if removal_bound is not None and math.isnan(removal_bound):
        raise ValueError(f"sdrf: removal_bound must be a number or None, got {removal_bound}")
    rowptr, col = _simple_rows("sdrf", graph)
    curvature = torch.ops.gossamer.balanced_forman_curvature(rowptr, col)
    return torch.ops.gossamer.sdrf(rowptr, col, curvature, num_iterations, tau, removal_bound, seed)


@typed
def fosr(graph: CSR, num_edges: int, *, num_power_iterations: int = 50, seed: int = 0) -> Tensor:
    """First-order spectral rewiring: add the edges that widen the spectral gap most, one after the other.

    An edge i - j changes the second eigenvalue by 2 x_i x_j / sqrt((1 + d_i)(1 + d_j)) to first order, x the second
    eigenvector of D^-1/2 A D^-1/2, kept up to date by one power iteration per edge. The smallest product over the
    missing edges is found from the ends of the sorted factors, in O(m + n log n) instead of n^2. The search ends early
    where no missing edge has a negative product. The graph is walked both ways, without self loops.

    Args:
        graph: a CSR on the CPU, less than 2^31 nodes.
        num_edges: number of edges to add, at least 0.
        num_power_iterations: power iterations before the first edge, at least 0.
        seed: random seed of the first vector; equal seeds give equal edges.

    Returns:
        added [2, A], int64, A <= num_edges, in the order of addition, smaller node first.

    Raises:
        TypeError: if graph is not a CSR.
        ValueError: if an argument is out of its range.

    Source: Karhadkar, Banerjee and Montufar 2023, FoSR: First-order spectral rewiring for addressing oversquashing in
    GNNs, algorithm 1.
    """
    if num_edges < 0:
        raise ValueError(f"fosr: num_edges must be at least 0, got {num_edges}")
    if num_power_iterations < 0:
        raise ValueError(f"fosr: num_power_iterations must be at least 0, got {num_power_iterations}")
    rowptr, col = _simple_rows("fosr", graph)
    return torch.ops.gossamer.fosr(rowptr, col, num_edges, num_power_iterations, seed)


def _simple_rows(function: str, graph: CSR) -> tuple[Tensor, Tensor]:
    """rowptr and col (int32) of the graph walked both ways, sorted, without self loops and repeated edges."""
    if not isinstance(graph, CSR):
        raise TypeError(f"{function}: graph must be a CSR, got {type(graph).__name__}")
    if graph.device.type != "cpu":
        raise ValueError(f"{function}: graph must be on the CPU, got {graph.device}")
    if graph.num_nodes >= 2**31:
        raise ValueError(f"{function}: graph must have less than 2^31 nodes, got {graph.num_nodes}")
    row, col = graph._rows, graph.col.long()
    other = row != col
    row, col = torch.cat([row[other], col[other]]), torch.cat([col[other], row[other]])
    keys = torch.unique(row * graph.num_nodes + col)
    counts = torch.bincount(keys // max(graph.num_nodes, 1), minlength=graph.num_nodes)
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)), (keys % max(graph.num_nodes, 1)).int()


@torch.library.register_fake("gossamer::balanced_forman_curvature")
def _(rowptr: Tensor, col: Tensor) -> Tensor:
    return col.new_empty(col.shape, dtype=torch.float64)


@torch.library.register_fake("gossamer::sdrf")
def _(rowptr: Tensor, col: Tensor, curvature: Tensor, *settings: object) -> tuple[Tensor, Tensor]:
    added, removed = (torch.library.get_ctx().new_dynamic_size() for _ in range(2))
    return rowptr.new_empty(2, added), rowptr.new_empty(2, removed)


@torch.library.register_fake("gossamer::fosr")
def _(rowptr: Tensor, col: Tensor, num_edges: int, num_power_iterations: int, seed: int) -> Tensor:
    return rowptr.new_empty(2, torch.library.get_ctx().new_dynamic_size())
