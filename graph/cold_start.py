"""Densification of LiGNN: nodes with few neighbours get those that are like them in content."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.csr import CSR

__all__ = ["densify"]

_BLOCK = 1024
_HNSW_LINKS, _HNSW_BUILD = 16, 200  # M and ef_construction of the index


@typed
def densify(
    graph: CSR,
    embeddings: Tensor,
    *,
    low: float = 0.36,
    high: float = 0.90,
    num_neighbors: int = 50,
    nodes: Tensor | None = None,
    search: str = "exact",
    weight: float | None = None,
    time: int | None = None,
) -> CSR:
    """The graph in which cold nodes have further in-neighbours: the nearest well-connected nodes by content.

    A node is cold if its in-degree is below the ``low`` quantile of the in-degrees; candidates are nodes above the
    ``high`` quantile. Sampling, which draws in-neighbours, then reaches the candidates. Nearness is the cosine. Of the
    nearest, those that are in-neighbours already get no second edge.

    Args:
        graph: on the CPU.
        embeddings: [num_nodes, dim], floating point, finite content embeddings.
        low, high: quantiles, 0 <= low <= high <= 1.
        num_neighbors: new in-neighbours of each cold node, at most the number of candidates.
        nodes: [n], integers, the nodes among which quantiles, cold nodes and candidates are taken, such as the items of
            a bipartite graph; None for all.
        search: ``exact``, one product of [cold, candidates] in blocks, equal products to the lower candidate; or
            ``hnsw``, approximate through an index of hnswlib, for candidates by the hundred thousand. Both give the
            same graph every time.
        weight: of the new edges, where the graph has weights; None takes the mean weight.
        time: of the new edges, where the graph has times; None takes the earliest, from when on content is known.

    Returns:
        A graph whose rows begin with the old edges, numbered by their old positions, then the new ones after those.

    Raises:
        ValueError: if an argument is out of its range.
        ImportError: if hnswlib is needed and missing.

    Source: LiGNN (Borisyuk et al. 2024), graph densification.
    """
    nodes = _check(graph, embeddings, low, high, num_neighbors, nodes, search, weight)
    if nodes.numel() == 0:
        return graph
    degree = graph.in_degree()[nodes]
    low_degree, high_degree = (degree.double().quantile(share) for share in (low, high))
    cold, candidates = nodes[degree < low_degree], nodes[degree > high_degree]
    if not len(cold) or not len(candidates):
        return graph
    unit = torch.nn.functional.normalize(embeddings.detach().float(), dim=1)
    count = min(num_neighbors, len(candidates))
    nearest = (_exact if search == "exact" else _hnsw)(unit[cold], unit[candidates], count)
    new = torch.stack([candidates[nearest].flatten(), cold.repeat_interleave(count)])
    return _with_edges(graph, new[:, ~_is_there(graph, new, cold)], weight, time)


def _is_there(graph: CSR, new: Tensor, cold: Tensor) -> Tensor:
    """Which of the new edges, all into cold nodes, the graph has already."""
    is_cold = torch.zeros(graph.num_nodes, dtype=torch.bool).index_fill_(0, cold, value=True)
    old = graph.to_edge_index()
    old, new = (edges[1] * graph.num_nodes + edges[0] for edges in (old[:, is_cold[old[1]]], new))
    return torch.isin(new, old)


def _exact(cold: Tensor, candidates: Tensor, count: int) -> Tensor:
    """[num_cold, count]: the candidates of the largest products, best first."""
    best = [
        (part @ candidates.T).sort(dim=1, descending=True, stable=True).indices[:, :count]
        for part in cold.split(_BLOCK)
    ]
    return torch.cat(best)


def _hnsw(cold: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The same, approximately, by a hierarchical graph of Malkov and Yashunin 2016."""
    try:
        import hnswlib
    except ImportError as error:
        raise ImportError("densify: search='hnsw' needs hnswlib (pip install 'gossamer[recsys]')") from error
    index = hnswlib.Index(space="ip", dim=candidates.shape[1])
    index.init_index(
        max_elements=len(candidates), M=_HNSW_LINKS, ef_construction=max(_HNSW_BUILD, count), random_seed=0
    )
    index.add_items(candidates.numpy(), num_threads=1)  # more threads would link in another order every time
    index.set_ef(max(2 * count, 100))
    labels, _ = index.knn_query(cold.numpy(), k=count, num_threads=torch.get_num_threads())
    return torch.from_numpy(labels.astype("int64"))


def _with_edges(graph: CSR, new: Tensor, weight: float | None, time: int | None) -> CSR:
    def longer(old: Tensor | None, value: float | int | None, default: Tensor | None) -> Tensor | None:
        if old is None:
            return None
        filling = default if value is None else value
        return torch.cat([old, torch.as_tensor(filling, dtype=old.dtype).expand(new.shape[1])])

    edge_index = torch.cat([graph.to_edge_index(), new], 1)
    empty = graph.num_edges == 0
    mean = None if graph.weight is None else torch.tensor(1.0) if empty else graph.weight.detach().double().mean()
    earliest = None if graph.time is None else torch.tensor(0) if empty else graph.time.min()
    weights = None if graph.weight is None else graph.weight.detach()
    return CSR.from_edge_index(
        edge_index, graph.num_nodes, weight=longer(weights, weight, mean), time=longer(graph.time, time, earliest)
    )


def _check(
    graph: CSR,
    embeddings: Tensor,
    low: float,
    high: float,
    num_neighbors: int,
    nodes: Tensor | None,
    search: str,
    weight: float | None,
) -> Tensor:
    """The nodes in question, each once and ascending."""
    if graph.device.type != "cpu":
        raise ValueError(f"densify: graph must be on the CPU, got {graph}")
    shape = list(embeddings.shape)
    if len(shape) != 2 or shape[0] != graph.num_nodes or not bool(embeddings.isfinite().all()):
        raise ValueError(f"densify: embeddings must be finite [{graph.num_nodes}, dim], got {shape}")
    if not 0 <= low <= high <= 1:
        raise ValueError(f"densify: low and high must be 0 <= low <= high <= 1, got {low} and {high}")
    if num_neighbors < 1:
        raise ValueError(f"densify: num_neighbors must be at least 1, got {num_neighbors}")
    if search not in ("exact", "hnsw"):
        raise ValueError(f"densify: search must be exact or hnsw, got {search!r}")
    if weight is not None and not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"densify: weight must be finite and at least 0, got {weight}")
    if nodes is None:
        return torch.arange(graph.num_nodes)
    if nodes.dim() != 1 or nodes.is_floating_point() or not bool(((nodes >= 0) & (nodes < graph.num_nodes)).all()):
        raise ValueError(f"densify: nodes must be a vector of ids in [0, {graph.num_nodes}), got {nodes}")
    return nodes.long().unique()
