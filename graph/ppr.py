"""The neighbours that matter most to a node: the largest entries of its personalised PageRank."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.graph.csr import CSR
from gossamer.graph.sampling import check_seeds

__all__ = ["ppr_neighbors"]


def ppr_neighbors(
    graph: CSR, seeds: Tensor, *, top_k: int, alpha: float = 0.15, eps: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """The top_k entries of pi = alpha * sum over t of (1 - alpha)^t * P^t e_seed, for every seed.

    P moves a walk from a node to one of its in-neighbours, each equally likely; a walk without one ends there. Forward
    push stops when every node u holds less than ``eps * in_degree(u)`` of the walks. To what has stopped until then the
    score adds alpha times what the node holds, and its share by degree of the walks that move on: the long run of walks
    on an undirected graph. On undirected graphs a score is within ``eps * in_degree`` of pi.

    Args:
        graph: in-neighbours in CSR form, on the CPU; weights are not used.
        seeds: [num_seeds], int64 or int32, node ids in [0, graph.num_nodes).
        top_k: number of entries per seed, at least 1.
        alpha: probability to stop at every step, in (0, 1).
        eps: tolerance, in [1e-9, 1); the time per seed grows with 1 / (alpha * eps).

    Returns:
        node: [num_seeds, top_k], int64, by score, largest first; -1 where a seed reaches fewer nodes.
        score: [num_seeds, top_k], float32; 0 there.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Andersen, Chung and Lang 2006, Local Graph Partitioning using PageRank Vectors, section 3.
    """
    if top_k < 1:
        raise ValueError(f"ppr_neighbors: top_k must be at least 1, got {top_k}")
    if not 0 < alpha < 1:
        raise ValueError(f"ppr_neighbors: alpha must be in (0, 1), got {alpha}")
    if not 1e-9 <= eps < 1:
        raise ValueError(f"ppr_neighbors: eps must be in [1e-9, 1), got {eps}")
    if graph.rowptr.device.type != "cpu":
        raise ValueError(f"ppr_neighbors: graph must be on the CPU, got {graph.rowptr.device}")
    seeds = check_seeds("ppr_neighbors", seeds, graph.num_nodes)
    return torch.ops.gossamer.ppr_neighbors(graph.rowptr, graph.col, seeds, top_k, alpha, eps)


@torch.library.register_fake("gossamer::ppr_neighbors")
def _(rowptr: Tensor, col: Tensor, seeds: Tensor, top_k: int, alpha: float, eps: float) -> tuple[Tensor, Tensor]:
    shape = (seeds.shape[0], top_k)
    return seeds.new_empty(shape), seeds.new_empty(shape, dtype=torch.float32)
