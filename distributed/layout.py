"""How the nodes of a graph are spread over ways and chunks, and the local graph of one way.

The graph is cut into one METIS part per way, each part into one METIS chunk per micro-batch. Micro-batch k is chunk k
of every way. A worker numbers its own nodes chunk by chunk, in each chunk the interior (all in-neighbours are its own)
before the boundary, and after them its halo: the nodes of other ways that it reads, by chunk, then by way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from gossamer.graph import CSR, halo, partition
from gossamer.graph.aggregate import share_propagations

__all__ = ["Part", "spread", "take_part"]


@dataclass(frozen=True)
class Part:
    """The rows of one way (or of all of them, in one process that stands for all).

    Attributes:
        graph: own nodes and halo; halo nodes have no rows of their own.
        node_ids: [num_own], int64: the node of the whole graph behind each own node.
        bounds: chunk k owns the nodes [bounds[k], bounds[k + 1]).
        middles: its interior ends and its boundary begins at middles[k].
        halo_bounds: the halo that way v owns in its chunk k is [halo_bounds[k][v], halo_bounds[k][v + 1]).
        send_ids: send_ids[k][v] are the nodes of chunk k, counted from its begin, that way v reads.
    """

    graph: CSR
    node_ids: Tensor
    bounds: list[int]
    middles: list[int]
    halo_bounds: list[list[int]]
    send_ids: list[list[Tensor]]

    @property
    def num_own(self) -> int:
        return self.bounds[-1]

    @property
    def num_chunks(self) -> int:
        return len(self.bounds) - 1

    @cached_property
    def chunk(self) -> Tensor:
        """[own nodes and halo], int64: the chunk that each belongs to, in its own way."""
        sizes = [b - a for a, b in pairwise(self.bounds)] + [cells[-1] - cells[0] for cells in self.halo_bounds]
        device = self.node_ids.device
        chunks = torch.arange(self.num_chunks, device=device).repeat(2)
        return chunks.repeat_interleave(torch.tensor(sizes, device=device))

    @property
    def is_whole(self) -> bool:
        """Whether this is the only way."""
        return len(self.halo_bounds[0]) == 2


def spread(graph: CSR, num_ways: int, num_chunks: int) -> tuple[Tensor, Tensor]:
    """way [N] and chunk [N] of every node, int64.

    Raises:
        ValueError: if a way has fewer nodes than chunks.
    """
    way = partition(graph, num_ways)
    if num_ways == 1:
        return way, partition(graph, num_chunks)
    chunk = torch.zeros_like(way)
    for w in range(num_ways):
        nodes = (way == w).nonzero().flatten()
        if len(nodes) < num_chunks:
            raise ValueError(
                f"initialize: num_chunks must be at most the {len(nodes)} nodes of a way, got {num_chunks}"
            )
        chunk[nodes] = partition(_induced(graph, nodes), num_chunks)
    return way, chunk


def take_part(graph: CSR, way: Tensor, chunk: Tensor, mine: int | None) -> Part:
    """The part of way ``mine``; None takes all nodes, so that no row is remote.

    Args:
        graph: the whole graph.
        way, chunk: what ``spread`` returned.
    """
    num_ways, num_chunks = int(way.max()) + 1, int(chunk.max()) + 1
    if mine is None:
        way, num_ways, mine = torch.zeros_like(way), 1, 0
    pairs = halo(graph, way)
    remote = pairs[1][pairs[0] == mine]
    remote = remote[(chunk[remote] * num_ways + way[remote]).sort(stable=True).indices]
    own = (way == mine).nonzero().flatten()
    half = 2 * chunk + _reads_others(graph, way)  # the interior of a chunk, then its boundary
    own = own[half[own].sort(stable=True).indices]
    halves = _borders(half[own], 2 * num_chunks)
    bounds, middles = halves[0::2], halves[1::2]
    cells = _borders(chunk[remote] * num_ways + way[remote], num_chunks * num_ways)
    halo_bounds = [[len(own) + b for b in cells[k * num_ways : (k + 1) * num_ways + 1]] for k in range(num_chunks)]
    rank = torch.full_like(way, -1)
    rank[own] = torch.arange(len(own), device=own.device)
    wanted = [_wanted(pairs, way == mine, reader, mine) for reader in range(num_ways)]
    send_ids = [[rank[ids[chunk[ids] == k]] - bounds[k] for ids in wanted] for k in range(num_chunks)]
    return Part(_local_graph(graph, own, remote), own, bounds, middles, halo_bounds, send_ids)


def _wanted(pairs: Tensor, is_mine: Tensor, reader: int, mine: int) -> Tensor:
    """The own nodes that another way reads, ascending."""
    nodes = pairs[1][pairs[0] == reader]
    return nodes[is_mine[nodes]] if reader != mine else nodes[:0]


def _reads_others(graph: CSR, way: Tensor) -> Tensor:
    """[N]: whether a node has an in-neighbour in another way."""
    reads = torch.zeros_like(way, dtype=torch.bool)
    reads[graph._rows[way[graph._rows] != way[graph.col.long()]]] = True
    return reads


def _borders(sorted_cells: Tensor, num_cells: int) -> list[int]:
    """[num_cells + 1]: where each value of an ascending tensor begins."""
    counts = sorted_cells.bincount(minlength=num_cells)
    return [0, *counts.cumsum(0).tolist()]


def _local_graph(graph: CSR, own: Tensor, remote: Tensor) -> CSR:
    """The rows of ``own``, in this order, over the nodes ``own`` and ``remote``; edges keep their order."""
    nodes = torch.cat([own, remote])
    rank = graph.col.new_full((graph.num_nodes,), -1)
    rank[nodes] = torch.arange(len(nodes), dtype=rank.dtype, device=rank.device)
    degree = graph.in_degree()[own]
    rowptr = degree.new_zeros(len(nodes) + 1)
    rowptr[1 : len(own) + 1] = degree.cumsum(0)
    rowptr[len(own) + 1 :] = rowptr[len(own)].clone()
    shift = graph.rowptr[own] - rowptr[: len(own)]
    edges = torch.arange(int(rowptr[-1]), device=own.device) + shift.repeat_interleave(degree)
    weight = None if graph.weight is None else graph.weight[edges]
    local = CSR._trusted(rowptr, rank[graph.col[edges].long()], len(nodes), weight, None, None)
    share_propagations(graph, local, nodes, edges)
    return local


def _induced(graph: CSR, nodes: Tensor) -> CSR:
    """The edges between some nodes, renumbered."""
    rank = nodes.new_full((graph.num_nodes,), -1)
    rank[nodes] = torch.arange(len(nodes), device=nodes.device)
    edges = rank[graph.to_edge_index()]
    return CSR.from_edge_index(edges[:, (edges >= 0).all(0)], len(nodes))
