"""The neighbours that matter most to a node: the largest entries of its personalised PageRank."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.csr import CSR
from gossamer.graph.sampling import check_seeds
from gossamer.graph.sampling_index import _signed

__all__ = ["ppr_neighbors", "walk_neighbors"]

_MOST_ENTRIES = 1 << 24  # per seed
_MOST_DRAWS = 1 << 24  # per seed: an error of 1e-4, far below what walks are for, and seconds of work


@typed
def ppr_neighbors(
    graph: CSR, seeds: Tensor, *, top_k: int, alpha: float = 0.15, eps: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """The top_k entries of pi = alpha * sum over t of (1 - alpha)^t * P^t e_seed, for every seed.

    P moves a walk from a node to one of its in-neighbours, each equally likely; a walk without one ends there. Forward
    push stops when every node u holds less than ``eps * in_degree(u)`` of the walks. To what has stopped until then the
    score adds alpha times what the node holds, and its share by degree of the walks that move on: the long run of walks
    on an undirected graph. On undirected graphs a score is within ``eps * in_degree`` of pi; and those next to the
    top_k-th, whose order this leaves open, also add what their neighbours send them, for an eighth more work at most.

    Args:
        graph: in-neighbours in CSR form, on the CPU; weights are not used.
        seeds: [num_seeds], int64 or int32, node ids in [0, graph.num_nodes).
        top_k: number of entries per seed, in [1, 2^24].
        alpha: probability to stop at every step, in [1e-4, 1).
        eps: tolerance, in [1e-9, 1); the time per seed grows with 1 / (alpha * eps).

    Returns:
        node: [num_seeds, top_k], int64, by score, largest first; -1 where a seed reaches fewer nodes.
        score: [num_seeds, top_k], float32; 0 there.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Andersen, Chung and Lang 2006, Local Graph Partitioning using PageRank Vectors, section 3.
    """
    seeds = check_seeds("ppr_neighbors", seeds, graph.num_nodes)
    node, score = push("ppr_neighbors", graph, seeds, top_k, alpha, eps, [graph.num_nodes])
    return node[0], score[0]


@typed
def walk_neighbors(
    graph: CSR, seeds: Tensor, *, top_k: int, seed: int, num_walks: int = 128, num_steps: int = 2, alpha: float = 0.15
) -> tuple[Tensor, Tensor]:
    """An estimate of the top_k entries of pi from short random walks: the cheap relative of ``ppr_neighbors``.

    The terms t <= num_steps of pi, P^t e_seed being estimated by where ``num_walks`` walks are after t steps. The
    expected score is that cut-off sum, which is not above pi; its variance falls with 1 / num_walks. The walks of a
    node depend on (seed, node) alone: equal seeds give equal bytes for any number of threads and any batch.

    Args:
        graph: in-neighbours in CSR form, on the CPU; weights are not used.
        seeds: [num_seeds], int64 or int32, node ids in [0, graph.num_nodes).
        top_k: number of entries per seed, in [1, 2^24].
        seed: random seed.
        num_walks: walks per seed, at least 1.
        num_steps: steps of every walk, at least 1; num_walks * num_steps is at most 2^24.
        alpha: probability to stop at every step, in [1e-4, 1).

    Returns:
        node: [num_seeds, top_k], int64, by score, largest first; -1 where the walks met fewer nodes.
        score: [num_seeds, top_k], float32; 0 there.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Borisyuk et al. 2024, LiGNN: Graph Neural Networks at LinkedIn (two-hop sampling by random walks); the
    estimate after Fogaras et al. 2005, Towards Scaling Fully Personalized PageRank.
    """
    seeds = check_seeds("walk_neighbors", seeds, graph.num_nodes)
    node, score = walk("walk_neighbors", graph, seeds, top_k, num_walks, num_steps, alpha, seed, [graph.num_nodes])
    return node[0], score[0]


# For any number of node types: node and score [num_types, num_seeds, top_k], for the function named in errors


def push(
    function: str, graph: CSR, seeds: Tensor, top_k: int, alpha: float, eps: float, num_nodes: list[int]
) -> tuple[Tensor, Tensor]:
    _check(function, graph, top_k, alpha)
    if not 1e-9 <= eps < 1:
        raise ValueError(f"{function}: eps must be in [1e-9, 1), got {eps}")
    return torch.ops.gossamer.ppr_neighbors(
        graph.rowptr, graph.col, seeds, top_k, alpha, eps, _is_symmetric(graph), num_nodes
    )


def walk(
    function: str,
    graph: CSR,
    seeds: Tensor,
    top_k: int,
    num_walks: int,
    num_steps: int,
    alpha: float,
    seed: int,
    num_nodes: list[int],
) -> tuple[Tensor, Tensor]:
    _check(function, graph, top_k, alpha)
    for name, value in (("num_walks", num_walks), ("num_steps", num_steps)):
        if value < 1:
            raise ValueError(f"{function}: {name} must be at least 1, got {value}")
    if (draws := num_walks * num_steps) > _MOST_DRAWS:
        raise ValueError(f"{function}: num_walks * num_steps must be at most {_MOST_DRAWS}, got {draws}")
    return torch.ops.gossamer.walk_neighbors(
        graph.rowptr, graph.col, seeds, top_k, num_walks, num_steps, alpha, _signed(seed), num_nodes
    )


_SYMMETRIC: WeakKeyDictionary[CSR, bool] = WeakKeyDictionary()


def _is_symmetric(graph: CSR) -> bool:
    """Whether every edge also runs the other way, as often: told once per graph, by hashes of 64 bits."""
    if graph not in _SYMMETRIC:
        step, difference = 1 << 22, 0
        for begin in range(0, graph.num_edges, step):
            source = graph.col[begin : begin + step].long()
            positions = torch.arange(begin, begin + source.numel())
            target = torch.searchsorted(graph.rowptr, positions, right=True) - 1
            difference += int(_edge_hash(source, target).sum() - _edge_hash(target, source).sum())
        _SYMMETRIC[graph] = difference % 2**64 == 0
    return _SYMMETRIC[graph]


def _edge_hash(source: Tensor, target: Tensor) -> Tensor:
    """A hash that depends on the direction: one round of SplitMix64's mixing in wrapping arithmetic."""
    key = source * -0x61C8864680B583EB + target * -0x4B47D0C5A1F5D2E5
    key = (key ^ (key >> 30)) * -0x40A7B892E31B1A47
    key = (key ^ (key >> 27)) * -0x6B2FB644ECCEEE15
    return key ^ (key >> 31)


def _check(function: str, graph: CSR, top_k: int, alpha: float) -> None:
    if not 1 <= top_k <= _MOST_ENTRIES:
        raise ValueError(f"{function}: top_k must be in [1, {_MOST_ENTRIES}], got {top_k}")
    if not 1e-4 <= alpha < 1:
        raise ValueError(f"{function}: alpha must be in [1e-4, 1), got {alpha}")
    if graph.rowptr.device.type != "cpu":
        raise ValueError(f"{function}: graph must be on the CPU, got {graph.rowptr.device}")


def _fake(rowptr: Tensor, col: Tensor, seeds: Tensor, top_k: int, *rest: object) -> tuple[Tensor, Tensor]:
    num_nodes = rest[-1]
    assert isinstance(num_nodes, list)
    shape = (len(num_nodes), seeds.shape[0], top_k)
    return seeds.new_empty(shape), seeds.new_empty(shape, dtype=torch.float32)


torch.library.register_fake("gossamer::ppr_neighbors")(_fake)
torch.library.register_fake("gossamer::walk_neighbors")(_fake)
