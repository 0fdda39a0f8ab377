"""SDRF, FoSR and TwoHop as transforms of PyG data."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.csr_convert import graph_of, one_graph_of
from gossamer.graph.k_hop import k_hop
from gossamer.graph.rewiring import fosr, sdrf

__all__ = ["FoSR", "SDRF", "TwoHop"]


class SDRF:
    """Rewire PyG data, one graph at a time, by ``sdrf``: num_iterations edges come where the curvature is least.

    The edges that stay keep their order and features; those that come stand behind them in both directions, with zeros
    for features, ones for ``edge_weight`` and 1 for ``edge_type``, which is 0 for the others.

    Args:
        num_iterations, tau, removal_bound, seed: as for sdrf; every graph starts from the seed.
    """

    @typed
    def __init__(
        self, num_iterations: int, *, tau: float = 1.0, removal_bound: float | None = None, seed: int = 0
    ) -> None:
        self.num_iterations = num_iterations
        self.tau, self.removal_bound, self.seed = tau, removal_bound, seed

    def __call__(self, data: Any) -> Any:
        """A shallow copy of the data with its new edges."""
        added, removed = sdrf(
            one_graph_of("SDRF", data),
            self.num_iterations,
            tau=self.tau,
            removal_bound=self.removal_bound,
            seed=self.seed,
        )
        return _with_edges(data, torch.cat([added, added.flip(0)], 1), removed)

    def __repr__(self) -> str:
        return f"SDRF({self.num_iterations}, tau={self.tau}, removal_bound={self.removal_bound}, seed={self.seed})"


class FoSR:
    """Rewire PyG data, one graph at a time, by ``fosr``: num_edges edges come where they widen the spectral gap most.

    Edges and their features are treated as by SDRF; the paper's relational layers read ``edge_type``.

    Args:
        num_edges, num_power_iterations, seed: as for fosr; every graph starts from the seed.
    """

    @typed
    def __init__(self, num_edges: int, *, num_power_iterations: int = 50, seed: int = 0) -> None:
        self.num_edges, self.num_power_iterations, self.seed = num_edges, num_power_iterations, seed

    def __call__(self, data: Any) -> Any:
        """A shallow copy of the data with its new edges."""
        graph = one_graph_of("FoSR", data)
        added = fosr(graph, self.num_edges, num_power_iterations=self.num_power_iterations, seed=self.seed)
        return _with_edges(data, torch.cat([added, added.flip(0)], 1))

    def __repr__(self) -> str:
        return f"FoSR({self.num_edges}, num_power_iterations={self.num_power_iterations}, seed={self.seed})"


class TwoHop:
    """Add the edges source -> target between nodes at distance 2, and no self loop.

    Edges and their features are treated as by SDRF.
    """

    def __call__(self, data: Any) -> Any:
        """A shallow copy of the data with its new edges."""
        shell = k_hop(graph_of("TwoHop", data), 2)[1]
        return _with_edges(data, torch.stack([shell.col.long(), shell._rows]))

    def __repr__(self) -> str:
        return "TwoHop()"


def _with_edges(data: Any, added: Tensor, removed: Tensor | None = None) -> Any:
    """The data without the edges between removed pairs, both ways, and with the added ones at the end."""
    keep = torch.ones(data.num_edges, dtype=torch.bool)
    if removed is not None:
        ends, others = data.edge_index.sort(0).values, removed
        keep = ~torch.isin(ends[0] * data.num_nodes + ends[1], others[0] * data.num_nodes + others[1])
    names = [name for name in data.keys() if name != "edge_index" and data.is_edge_attr(name)]  # noqa: SIM118
    out = copy.copy(data)
    for name in names:
        value = data[name][keep]
        fill = 1 if name == "edge_weight" else 0
        out[name] = torch.cat([value, value.new_full((added.shape[1], *value.shape[1:]), fill)])
    out.edge_index = torch.cat([data.edge_index[:, keep], added.to(data.edge_index.dtype)], 1)
    kinds = torch.zeros(out.edge_index.shape[1], dtype=torch.int64)
    kinds[int(keep.sum()) :] = 1
    out.edge_type = kinds
    return out
