"""k-hop rewiring: which nodes lie at which distance, by bit-parallel breadth-first search."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.csr import CSR

__all__ = ["k_hop", "k_hop_count", "k_hop_pairs"]

_MAX_PAIRS = 2**30


@typed
def k_hop(graph: CSR, max_hops: int, *, directed: bool = True, max_pairs: int = _MAX_PAIRS) -> list[CSR]:
    """shells[k - 1] holds the edges {j -> i : the shortest path from j to i has exactly k edges}, k = 1..max_hops.

    512 sources are searched at once, one bit each; a batch of small graphs costs no more than its graphs one by one.
    Weights and times are not looked at; self loops and repeated edges change nothing. On a GPU every block of nodes
    that no edge leaves is searched by one thread block: made for batches of small graphs.

    Args:
        graph: in-neighbours in CSR form, less than 2^31 nodes.
        max_hops: number of shells, at least 1.
        directed: follow edges from source to target only; False walks them both ways.
        max_pairs: refuse to emit more pairs than this (4 bytes each); they are counted before these are allocated.

    Returns:
        max_hops graphs with sorted rows; a shell may be empty. Their columns (int32) lie behind each other in one
        tensor, so that the hop of a pair is implied by its place.

    Raises:
        TypeError: if graph is not a CSR or max_hops not an int.
        ValueError: if max_hops is below 1, or there are more than max_pairs pairs.

    Source: Then et al. 2014, The More the Merrier: Efficient Multi-Source Graph Traversal (PVLDB 8:4).
    """
    graph, blocks = _prepare("k_hop", graph, max_hops, directed)
    # What the search finds in small blocks is kept, one byte per pair; larger ones are searched again to emit.
    counts, kept = torch.ops.gossamer.k_hop_count(graph.rowptr, graph.col, blocks, max_hops, max_pairs)
    rowptr = _row_pointers(counts)
    sizes = rowptr[:, -1].tolist()
    num_pairs = sum(sizes)
    if num_pairs > max_pairs:
        raise ValueError(
            f"k_hop: max_pairs must be at least {num_pairs}, the number of pairs within {max_hops} hops "
            f"({4 * num_pairs / 2**30:.3g} GiB), got {max_pairs}"
        )
    col = torch.ops.gossamer.k_hop(graph.rowptr, graph.col, blocks, kept, rowptr, num_pairs)
    return [CSR._trusted(*shell, graph.num_nodes) for shell in zip(rowptr, col.split(sizes))]


@typed
def k_hop_count(graph: CSR, max_hops: int, *, directed: bool = True) -> Tensor:
    """out[k - 1, i] = number of nodes j whose shortest path to i has exactly k edges; nothing is emitted.

    Args:
        graph: in-neighbours in CSR form, less than 2^31 nodes.
        max_hops: number of shells, at least 1.
        directed: follow edges from source to target only; False walks them both ways.

    Returns:
        [max_hops, num_nodes], int32.

    Raises:
        TypeError, ValueError: as k_hop.
    """
    graph, blocks = _prepare("k_hop_count", graph, max_hops, directed)
    return torch.ops.gossamer.k_hop_count(graph.rowptr, graph.col, blocks, max_hops, 0)[0]


@typed
def k_hop_pairs(
    graph: CSR, max_hops: int, *, directed: bool = True, max_pairs: int = _MAX_PAIRS
) -> tuple[Tensor, Tensor]:
    """The shells of k_hop as one edge index and the hop of every pair: 1 <= d(source -> target) <= max_hops.

    Args and Raises: as k_hop.

    Returns:
        The pairs [2, num_pairs], int32, sorted by (hop, target, source), and their hops [num_pairs], int16.
    """
    shells = k_hop(graph, max_hops, directed=directed, max_pairs=max_pairs)
    sizes = torch.tensor([shell.num_edges for shell in shells], device=graph.rowptr.device)
    hops = torch.arange(1, max_hops + 1, dtype=torch.int16, device=graph.rowptr.device)
    nodes = torch.arange(graph.num_nodes, dtype=torch.int32, device=graph.rowptr.device)
    target = torch.cat([nodes.repeat_interleave(shell.in_degree()) for shell in shells])
    return torch.stack([torch.cat([shell.col for shell in shells]), target]), hops.repeat_interleave(sizes)


def _prepare(function: str, graph: CSR, max_hops: int, directed: bool) -> tuple[CSR, Tensor]:
    """The graph to search and the bounds of its diagonal blocks, after every check."""
    if not isinstance(graph, CSR):
        raise TypeError(f"{function}: graph must be a CSR, got {type(graph).__name__}")
    if not isinstance(max_hops, int) or isinstance(max_hops, bool):
        raise TypeError(f"{function}: max_hops must be an int, got {type(max_hops).__name__}")
    most = max(1, min(_MAX_PAIRS // max(graph.num_nodes, 1), 2**15 - 1))
    if not 1 <= max_hops <= most:
        raise ValueError(f"{function}: max_hops must be in [1, {most}] for {graph.num_nodes} nodes, got {max_hops}")
    graph = graph if directed else _both_ways(graph)
    # The cut into blocks is one sequential sweep: on a GPU graph it runs on the host.
    blocks = torch.ops.gossamer.diagonal_blocks(graph.rowptr.cpu(), graph.col.cpu())
    return graph, blocks.to(graph.rowptr.device)


def _row_pointers(counts: Tensor) -> Tensor:
    """[max_hops, num_nodes + 1], int64: where the rows of every shell begin, and the last one ends."""
    if counts.device.type == "cpu":  # in one pass over memory that nobody has cleared before
        return torch.ops.gossamer.row_pointers(counts)
    return torch.nn.functional.pad(counts.cumsum(1), (1, 0))


def _both_ways(graph: CSR) -> CSR:
    target = torch.arange(graph.num_nodes, device=graph.col.device).repeat_interleave(graph.in_degree())
    source = graph.col.long()
    edges = torch.stack([torch.cat([source, target]), torch.cat([target, source])])
    return CSR.from_edge_index(edges, graph.num_nodes)


@torch.library.register_fake("gossamer::diagonal_blocks")
def _(rowptr: Tensor, col: Tensor) -> Tensor:
    return rowptr.new_empty(torch.library.get_ctx().new_dynamic_size())


@torch.library.register_fake("gossamer::k_hop_count")
def _(rowptr: Tensor, col: Tensor, blocks: Tensor, max_hops: int, max_kept: int) -> tuple[Tensor, Tensor]:
    counts = rowptr.new_empty(max_hops, rowptr.shape[0] - 1, dtype=torch.int32)
    return counts, rowptr.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)


@torch.library.register_fake("gossamer::row_pointers")
def _(counts: Tensor) -> Tensor:
    return counts.new_empty(counts.shape[0], counts.shape[1] + 1, dtype=torch.int64)


@torch.library.register_fake("gossamer::k_hop")
def _(rowptr: Tensor, col: Tensor, blocks: Tensor, kept: Tensor, shell_rowptr: Tensor, num_pairs: int) -> Tensor:
    return rowptr.new_empty(num_pairs, dtype=torch.int32)
