"""Partitions of a graph into parts of equal size with few edges between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.csr import CSR

__all__ = ["chunk_order", "halo", "partition"]


@typed
def partition(graph: CSR, num_parts: int) -> Tensor:
    """part[i] in [0, num_parts): parts of nearly equal size, chosen so that few edges join two of them.

    Directed graphs are cut as if every edge ran both ways; weights, duplicates and self loops do not count.
    No part is empty. Equal graphs give equal parts on every process that runs the same METIS.

    Args:
        graph: any CSR, on any device.
        num_parts: number of parts, between 1 and graph.num_nodes.

    Returns:
        [num_nodes], int64, on the device of the graph.

    Raises:
        ValueError: if num_parts is out of range.
        ImportError: if pymetis is not installed.

    Source: Karypis and Kumar 1998, A Fast and High Quality Multilevel Scheme for
    Partitioning Irregular Graphs.
    """
    return _partition(graph, num_parts, "partition: num_parts")


@typed
def chunk_order(graph: CSR, num_chunks: int) -> tuple[Tensor, Tensor]:
    """The renumbering that makes every part of ``partition`` a contiguous range of node ids.

    ``graph.permute(order)`` carries it out: chunk c is then bounds[c] <= new id < bounds[c + 1].
    Inside a chunk the nodes keep their old order.

    Args:
        graph: any CSR, on any device.
        num_chunks: number of chunks, between 1 and graph.num_nodes.

    Returns:
        order [num_nodes], int64: the old id of every new node.
        bounds [num_chunks + 1], int64, strictly ascending from 0 to num_nodes.
    """
    part = _partition(graph, num_chunks, "chunk_order: num_chunks")
    bounds = part.new_zeros(num_chunks + 1)
    bounds[1:] = part.bincount(minlength=num_chunks).cumsum(0)
    return part.sort(stable=True).indices, bounds


@typed
def halo(graph: CSR, part: Tensor) -> Tensor:
    """[2, H]: every pair (p, j) of a part and a node of another part that it reads, sorted.

    Node j is an in-neighbour of a node of part p. H rows cross between parts whenever each part needs the current
    rows of its in-neighbours: the volume of graph parallelism.

    Args:
        graph: any CSR, on any device.
        part: [num_nodes], int64, the part of every node, at least 0.

    Raises:
        ValueError: if part has another shape.
    """
    if part.shape != (graph.num_nodes,):
        raise ValueError(f"halo: part must be [{graph.num_nodes}] (num_nodes), got {list(part.shape)}")
    reader, source = part[graph._rows], graph.col.long()
    crosses = reader != part[source]
    key = (reader[crosses] * graph.num_nodes + source[crosses]).unique()
    return torch.stack([key // max(graph.num_nodes, 1), key % max(graph.num_nodes, 1)])


def _partition(graph: CSR, num_parts: int, argument: str) -> Tensor:
    if isinstance(num_parts, bool) or not isinstance(num_parts, int):
        raise TypeError(f"{argument} must be an int, got {type(num_parts).__name__}")
    if not 1 <= num_parts <= graph.num_nodes:
        raise ValueError(f"{argument} must be between 1 and the number of nodes ({graph.num_nodes}), got {num_parts}")
    if num_parts == 1:
        return torch.zeros(graph.num_nodes, dtype=torch.int64, device=graph.col.device)
    return _fill_empty_parts(_metis(graph, num_parts), num_parts).to(graph.col.device)


def _metis(graph: CSR, num_parts: int) -> Tensor:
    pymetis = _import_pymetis()
    rowptr, col = undirected(graph)
    adjacency = pymetis.CSRAdjacency(rowptr.numpy(), col.numpy())
    _, part = pymetis.part_graph(num_parts, adjacency, options=pymetis.Options(seed=0))
    return torch.tensor(part, dtype=torch.int64)


def undirected(graph: CSR) -> tuple[Tensor, Tensor]:
    """rowptr and col as METIS asks for them: both directions of every edge, once, and no self loops."""
    row, col = graph._rows.cpu(), graph.col.cpu().long()
    apart = row != col
    row, col = row[apart], col[apart]
    n = graph.num_nodes
    key = torch.cat([row * n + col, col * n + row]).unique()  # sorted by row, then by column
    rowptr = torch.zeros(n + 1, dtype=torch.int64)
    rowptr[1:] = (key // n).bincount(minlength=n).cumsum(0)
    return rowptr, key % n


def _fill_empty_parts(part: Tensor, num_parts: int) -> Tensor:
    """Give every part that METIS left empty (it does on small graphs) half of the largest one."""
    sizes = part.bincount(minlength=num_parts)
    for empty in (sizes == 0).nonzero().flatten():
        largest = sizes.argmax()
        moved = (part == largest).nonzero().flatten()[sizes[largest] // 2 :]
        part[moved] = empty
        sizes[largest] -= moved.numel()
        sizes[empty] = moved.numel()
    return part


def _import_pymetis() -> Any:
    try:
        import pymetis
    except ImportError as error:
        raise ImportError("partition needs METIS: pip install pymetis, or gossamer[train]") from error
    return pymetis
