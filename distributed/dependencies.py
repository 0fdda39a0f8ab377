"""Which chunk reads which, and chunks in an order in which each reads few that come later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.distributed.layout import spread
from gossamer.graph import CSR
from gossamer.graph.partition import undirected

__all__ = ["chunk_needs", "spread_in_order"]

Needs = tuple[tuple[int, ...], ...]


def chunk_needs(graphs: Iterable[CSR], chunk: Tensor, num_chunks: int) -> Needs:
    """needs[c]: the chunks with in-neighbours of a node of chunk c, and c itself, ascending.

    Args:
        graphs: along whose edges rows are read.
        chunk: [N], int64, of every node.
    """
    keys = [chunk.unique() * (num_chunks + 1)]  # a chunk needs itself
    keys += [chunk[graph._rows] * num_chunks + chunk[graph.col.long()] for graph in graphs]
    found: list[list[int]] = [[] for _ in range(num_chunks)]
    for key in torch.cat(keys).unique().tolist():
        found[key // num_chunks].append(key % num_chunks)
    return tuple(map(tuple, found))


def spread_in_order(
    graph: CSR, num_ways: int, num_chunks: int, shells: Sequence[CSR] = ()
) -> tuple[Tensor, Tensor, Needs]:
    """way [N] and chunk [N] of every node, and the needs of the chunks, numbered so that an early start is possible.

    A chunk can be done once the last chunk that it needs is there. Two cuts are compared by how much later that is,
    over all chunks: METIS parts in the order of reverse Cuthill-McKee, and slices of a sweep over the nodes in that
    order. Slices read only the next and the one before, where the graph has such an order at all.

    Args:
        graph: whose edges are cut.
        num_ways, num_chunks: as in ``spread``.
        shells: all graphs along which rows are read; none stands for ``graph`` alone.

    Raises:
        ValueError: if a way has fewer nodes than chunks.

    Source: Cuthill and McKee 1969, Reducing the Bandwidth of Sparse Symmetric Matrices.
    """
    way, metis = spread(graph, num_ways, num_chunks)
    if num_chunks == 1:
        return way, metis, ((0,),)
    choices = [_sweep(graph, way, num_chunks)]
    if num_ways == 1:
        choices.insert(0, _renumbered(metis, chunk_needs([graph], metis, num_chunks)))
    ordered = [(chunk, chunk_needs(shells or [graph], chunk, num_chunks)) for chunk in choices]
    chunk, needs = min(ordered, key=lambda choice: _delay(choice[1]))
    return way, chunk, needs


def _delay(needs: Needs) -> int:
    """How many chunks have to come after a chunk until it can be done, over all chunks."""
    return sum(chunks[-1] - m for m, chunks in enumerate(needs))


def _renumbered(chunk: Tensor, needs: Needs) -> Tensor:
    edges = torch.tensor([(row, col) for row, chunks in enumerate(needs) for col in chunks])
    rowptr, col = undirected(CSR.from_edge_index(edges.T, len(needs)))
    return _ranks(_reverse_cuthill_mckee(rowptr, col)).to(chunk.device)[chunk]


def _sweep(graph: CSR, way: Tensor, num_chunks: int) -> Tensor:
    """Slices of every way with nearly equal numbers of nodes and edges, none empty."""
    order = _reverse_cuthill_mckee(*undirected(graph)).to(way.device)
    work = 1 + graph.in_degree()
    chunk = torch.empty_like(way)
    for w in range(int(way.max()) + 1):
        nodes = order[way[order] == w]
        sizes = _slices(work[nodes], num_chunks)
        chunk[nodes] = torch.arange(num_chunks, device=way.device).repeat_interleave(sizes)
    return chunk


def _slices(work: Tensor, num_slices: int) -> Tensor:
    """[num_slices]: how many items in turn make slices of nearly equal work, at least one each."""
    at = torch.arange(num_slices + 1, device=work.device)
    done = work.cumsum(0)
    borders = torch.searchsorted(done, at * done[-1] / num_slices, right=True)
    borders[0], borders[-1] = 0, len(work)
    ascending = (borders - at).cummax(0).values.clamp(max=len(work) - num_slices)
    return (ascending + at).diff()


def _ranks(order: Tensor) -> Tensor:
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return ranks


def _reverse_cuthill_mckee(rowptr: Tensor, col: Tensor) -> Tensor:
    """[num_nodes], int64: the nodes of a symmetric graph in the order of a sweep through it."""
    sparse = _import_sparse()
    n = len(rowptr) - 1
    ones = np.ones(len(col), dtype=np.int8)
    matrix = sparse.csr_matrix((ones, col.numpy(), rowptr.numpy()), shape=(n, n))
    order = sparse.csgraph.reverse_cuthill_mckee(matrix, symmetric_mode=True)
    return torch.from_numpy(order.astype(np.int64))


def _import_sparse() -> Any:
    try:
        import scipy.sparse.csgraph
    except ImportError as error:
        raise ImportError("mode 'exact' needs scipy: pip install scipy, or gossamer[train]") from error
    return scipy.sparse
