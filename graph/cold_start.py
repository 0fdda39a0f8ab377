"""Densification of LiGNN: nodes with few neighbours get those that are like them in content."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.graph.csr import CSR

__all__ = ["densify"]

_BLOCK = 1024


def densify(graph: CSR, embeddings: Tensor, *, low: float = 0.36, high: float = 0.90, num_neighbors: int = 50) -> CSR:
    """The graph in which cold nodes have further in-neighbours: the nearest well-connected nodes by content.

    A node is cold if its in-degree is below the ``low`` quantile of all in-degrees; candidates are nodes above the
    ``high`` quantile. Sampling, which draws in-neighbours, then reaches the candidates. Nearness is the cosine, found
    exactly with one product of [cold, candidates] in blocks; equal products go to the lower candidate.

    Args:
        graph: on the CPU, without weights and times.
        embeddings: [num_nodes, dim], floating point, finite content embeddings.
        low, high: quantiles, 0 <= low <= high <= 1.
        num_neighbors: new in-neighbours of each cold node, at most the number of candidates.

    Returns:
        A graph whose rows begin with the old edges, numbered by their old positions, then the new ones after those.

    Raises:
        ValueError: if an argument is out of its range.

    Source: LiGNN (Borisyuk et al. 2024), graph densification.
    """
    _check(graph, embeddings, low, high, num_neighbors)
    if graph.num_nodes == 0:
        return graph
    degree = graph.in_degree()
    low_degree, high_degree = (degree.double().quantile(share) for share in (low, high))
    cold, candidates = (degree < low_degree).nonzero().flatten(), (degree > high_degree).nonzero().flatten()
    if not len(cold) or not len(candidates):
        return graph
    unit = torch.nn.functional.normalize(embeddings.detach().float(), dim=1)
    count = min(num_neighbors, len(candidates))
    near = [
        (unit[part] @ unit[candidates].T).sort(dim=1, descending=True, stable=True).indices
        for part in cold.split(_BLOCK)
    ]
    nearest = torch.cat([order[:, :count] for order in near])
    new = torch.stack([candidates[nearest].flatten(), cold.repeat_interleave(count)])
    return CSR.from_edge_index(torch.cat([graph.to_edge_index(), new], 1), graph.num_nodes)


def _check(graph: CSR, embeddings: Tensor, low: float, high: float, num_neighbors: int) -> None:
    if graph.weight is not None or graph.time is not None or graph.device.type != "cpu":
        raise ValueError(f"densify: graph must be on the CPU without weights and times, got {graph}")
    shape = list(embeddings.shape)
    if len(shape) != 2 or shape[0] != graph.num_nodes or not bool(embeddings.isfinite().all()):
        raise ValueError(f"densify: embeddings must be finite [{graph.num_nodes}, dim], got {shape}")
    if not 0 <= low <= high <= 1:
        raise ValueError(f"densify: low and high must be 0 <= low <= high <= 1, got {low} and {high}")
    if num_neighbors < 1:
        raise ValueError(f"densify: num_neighbors must be at least 1, got {num_neighbors}")
