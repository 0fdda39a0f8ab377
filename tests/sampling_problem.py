"""Graphs, ways to sample them and the bound of a chi-square test, for the tests of sampling."""

import pytest
import torch
from torch import Tensor

from gossamer.graph import CSR, neighbor_sample

__all__ = ["MODES", "chi_square_bound", "copies", "generator", "random_graph", "sample"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_graph(num_nodes: int, num_edges: int, seed: int = 0, *, max_time: int = 100) -> CSR:
    """Edges of skewed degree, with weights and times; some nodes have no edge."""
    g = generator(seed)
    source = torch.randint(num_nodes, (num_edges,), generator=g)
    target = (torch.rand(num_edges, generator=g) ** 2 * num_nodes * 0.9).long()
    weight = torch.rand(num_edges, generator=g)
    time = torch.randint(max_time, (num_edges,), generator=g)
    return CSR.from_edge_index(torch.stack([source, target]), num_nodes, weight=weight, time=time)


def copies(weights: list[float], num_copies: int) -> CSR:
    """Many targets with the same sources and weights, times 0, 1, 2, ..."""
    n = len(weights)
    rowptr = torch.cat([torch.arange(num_copies + 1) * n, torch.full((n,), num_copies * n)])
    return CSR(
        rowptr,
        torch.arange(n).add(num_copies).repeat(num_copies),
        num_nodes=num_copies + n,
        weight=torch.tensor(weights).repeat(num_copies),
        time=torch.arange(n).repeat(num_copies),
    )


def chi_square_bound(freedom: int) -> float:
    """Exceeded with a probability of about 1e-6 (Wilson and Hilferty)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.75 * (2 / (9 * freedom)) ** 0.5) ** 3


MODES = [
    pytest.param({}, id="uniform"),
    pytest.param({"replace": True}, id="replace"),
    pytest.param({"weighted": True}, id="weighted"),
    pytest.param({"weighted": True, "replace": True}, id="weighted, replace"),
    pytest.param({"disjoint": True}, id="disjoint"),
    pytest.param({"weighted": True, "disjoint": True}, id="weighted, disjoint"),
    pytest.param({"timed": True}, id="temporal"),
    pytest.param({"timed": True, "weighted": True}, id="temporal, weighted"),
    pytest.param({"timed": True, "temporal": "last"}, id="last"),
    pytest.param({"timed": True, "temporal": "last", "weighted": True}, id="last, weighted"),
    pytest.param({"timed": True, "temporal": "recency"}, id="recency"),
    pytest.param(
        {"timed": True, "temporal": "recency", "weighted": True, "window": 30}, id="recency, weighted, window"
    ),
]


def sample(graph: CSR, seeds: Tensor, fanouts: list[float], options: dict, seed: int = 5):
    options = dict(options)
    if options.pop("timed", False):
        options["seed_time"] = (seeds * 7) % 100
    return neighbor_sample(graph, seeds, fanouts, seed=seed, **options)
