"""DRew as a stack of layers: the shells of a graph as one, and states that travel from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gossamer._arguments import typed
from gossamer.graph.csr import CSR
from gossamer.graph.drew_layers import DRewGatedGCNConv, DRewGCNConv
from gossamer.graph.k_hop import k_hop
from gossamer.graph.layers import GraphLayer, GraphSequential, State

__all__ = ["DRewLayer", "HopGraph", "stack_layers"]


class HopGraph:
    """The shells of ``k_hop`` where a stack of layers expects a graph.

    Args:
        shells: at least one graph, all with the same nodes.

    Attributes:
        shells: the graphs, hop 1 first.
        weight: None, as shells have none.

    Raises:
        TypeError: if a shell is not a CSR.
        ValueError: if there is no shell, or they differ in their nodes or have weights.
    """

    weight = None

    @typed
    def __init__(self, shells: Sequence[CSR]) -> None:
        self.shells = list(shells)
        for shell in self.shells:
            if not isinstance(shell, CSR):
                raise TypeError(f"HopGraph: shells must be CSRs, got {type(shell).__name__}")
        sizes = sorted({shell.num_nodes for shell in self.shells})
        if len(sizes) != 1:
            raise ValueError(f"HopGraph: shells must be graphs of the same nodes, at least 1, got sizes {sizes}")
        if any(shell.weight is not None for shell in self.shells):
            raise ValueError("HopGraph: shells must have no weights, got a weighted graph")

    @classmethod
    def of(cls, graph: CSR, max_hops: int) -> HopGraph:
        """The shells 1..max_hops of a graph."""
        return cls(k_hop(graph, max_hops))

    @property
    def num_nodes(self) -> int:
        """Number of nodes, the same in every shell."""
        return self.shells[0].num_nodes

    def to(self, device: torch.device | str) -> HopGraph:
        """The shells on a device."""
        return HopGraph([shell.to(device) for shell in self.shells])

    def __repr__(self) -> str:
        return f"HopGraph(num_nodes={self.num_nodes}, num_edges={[shell.num_edges for shell in self.shells]})"


class DRewLayer(GraphLayer):
    """A DRew layer in a stack: (x[t], x[t - 1], ...) -> (x[t + 1], x[t], ...), newest first.

    Args:
        conv: a DRew layer without bond features.
        num_kept: how many states go on, the new one included: the rest is read by no later layer.
    """

    @typed
    def __init__(self, conv: nn.Module, num_kept: int) -> None:
        super().__init__()
        self.conv, self.num_kept = conv, num_kept

    def forward(self, graph: Any, *states: Tensor) -> Tensor | State:
        shells = getattr(graph, "shells", None)
        if shells is None:
            raise TypeError(f"DRewLayer: graph must be a HopGraph or a view of one, got {type(graph).__name__}")
        if shells and not isinstance(shells[0], CSR):
            self._require_aggregations()
        out = self.conv(shells, states[::-1])
        return (out, *states[: self.num_kept - 1])

    def _require_aggregations(self) -> None:
        """A pipeline has no edges to look at, only aggregations."""
        conv = self.conv
        if isinstance(conv, DRewGatedGCNConv) or (isinstance(conv, DRewGCNConv) and not conv.reference_quirks):
            quirks = " without reference_quirks" if isinstance(conv, DRewGCNConv) else ""
            raise ValueError(
                f"DRewLayer: conv must be gcn with reference_quirks or gin in a pipeline, got {type(conv).__name__}"
                f"{quirks}"
            )

    def extra_repr(self) -> str:
        return f"num_kept={self.num_kept}"


def stack_layers(encoder: nn.Module, convs: Sequence[Any], head: nn.Module) -> GraphSequential:
    """encoder, DRew layers and head as a stack that can be cut anywhere; the parameters are those of the modules."""
    oldest = [conv.source(t, conv.num_hops) for t, conv in enumerate(convs)]  # state that a layer reads at most
    layers: list[nn.Module] = [encoder]
    for t, conv in enumerate(convs):
        newest = t + 1
        layers.append(DRewLayer(conv, newest + 1 - min(oldest[t + 1 :], default=newest)))
    return GraphSequential(*layers, head)
