"""DRew: layer t looks min(t + 1, max_hops) hops far, and at hop k sees the state of max(k - delay, 0) layers ago."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from gossamer._arguments import typed
from gossamer.graph.csr import CSR
from gossamer.graph.drew_layers import DRewGatedGCNConv, DRewGCNConv, DRewGINConv
from gossamer.graph.drew_stack import run_layers
from gossamer.graph.hop_graph import stack_layers
from gossamer.graph.layers import GraphSequential, check_features

__all__ = ["DRew", "drew_width"]

_MOST_LAYERS = 1024  # layer t has weights for up to t + 1 hops
_CONVS: dict[str, type[nn.Module]] = {"gcn": DRewGCNConv, "gin": DRewGINConv, "gatedgcn": DRewGatedGCNConv}


class DRew(nn.Module):
    """features -> Linear -> num_layers DRew layers -> Linear: message passing that looks one hop further every layer.

    The states of all layers are kept while the stack runs: num_layers + 1 tensors [N, hidden_channels], fewer where
    ``delay`` or ``max_hops`` let no later layer read them.

    Args:
        in_channels: width of the input features.
        hidden_channels: width of the states; see drew_width for a budget of parameters.
        out_channels: width of the result.
        num_layers: number of DRew layers, in [1, 1024].
        conv: gcn, gin or gatedgcn.
        delay: nu; 1 reads hop k from k - 1 layers ago, math.inf everything from the current state.
        max_hops: last hop that any layer reads; None for num_layers.
        recompute: keep no messages for the backward pass. Layers are computed again, about sqrt(num_layers) of them
            at a time; between these segments stay the states that a later layer reads, without delay one per segment.
            The fused gcn and gin compute one layer at a time again where there is a delay.
        options: what the layers of ``conv`` take besides.

    Source: Gutteridge et al. 2023, DRew: Dynamically Rewired Message Passing with Delay. Recomputation in segments:
    Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.
    """

    @typed
    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        *,
        conv: str = "gcn",
        delay: float = 1,
        max_hops: int | None = None,
        recompute: bool = False,
        **options: object,
    ) -> None:
        super().__init__()
        if conv not in _CONVS:
            raise ValueError(f"DRew: conv must be gcn, gin or gatedgcn, got {conv!r}")
        if hidden_channels < 1:
            raise ValueError(f"DRew: hidden_channels must be at least 1, got {hidden_channels}")
        if not 1 <= num_layers <= _MOST_LAYERS:
            raise ValueError(f"DRew: num_layers must be in [1, {_MOST_LAYERS}], got {num_layers}")
        self.encoder = nn.Linear(in_channels, hidden_channels)
        self.convs = nn.ModuleList(
            _CONVS[conv](hidden_channels, t, delay=delay, max_hops=max_hops, **options) for t in range(num_layers)
        )
        self.head = nn.Linear(hidden_channels, out_channels)
        self.recompute = recompute
        self.num_hops = min(num_layers, max_hops or num_layers)  # shells that forward needs

    def forward(self, x: Tensor, shells: Sequence[CSR], edge_attr: Tensor | None = None) -> Tensor:
        """Node features and the shells of ``k_hop(graph, model.num_hops)`` -> [N, out_channels].

        Args:
            x: [N, in_channels].
            shells: at least ``num_hops`` graphs of N nodes.
            edge_attr: what ``hop_edge_attr`` gives, for layers with edge_channels or edge_types.
        """
        check_features("DRew", x, self.encoder)
        return self.head(run_layers(list(self.convs), self.encoder(x), shells, edge_attr, recompute=self.recompute))

    @property
    def layers(self) -> GraphSequential:
        """The same model as a stack over a HopGraph, for pipelines: layers of its own, the parameters of this one."""
        return stack_layers(self.encoder, list(self.convs), self.head)


@typed
def drew_width(
    num_layers: int,
    *,
    conv: str = "gcn",
    max_hops: int | None = None,
    matrices: int = 0,
    vectors: int = 0,
    budget: int = 500_000,
) -> int:
    """The width d, at least 1, that solves a d^2 + b d = 0.99 budget, with a the number of d x d matrices.

    Args:
        num_layers: number of DRew layers.
        conv: gcn, gin or gatedgcn.
        max_hops: last hop that any layer reads; None for num_layers.
        matrices: d x d matrices besides those of the layers.
        vectors: b, the number of vectors of d parameters: norms, rows of the encoder and of the head.
        budget: number of parameters.

    Raises:
        ValueError: if conv is none of these, or a number below its least: 0 for matrices and vectors, 1 for the others.

    Source: the published configurations of Gutteridge et al. 2023.
    """
    if conv not in _CONVS:
        raise ValueError(f"drew_width: conv must be gcn, gin or gatedgcn, got {conv!r}")
    bounds = {"num_layers": (num_layers, 1), "budget": (budget, 1), "matrices": (matrices, 0), "vectors": (vectors, 0)}
    if max_hops is not None:
        bounds["max_hops"] = (max_hops, 1)
    for name, (value, least) in bounds.items():
        if value < least:
            raise ValueError(f"drew_width: {name} must be at least {least}, got {value}")
    hops = sum(min(t + 1, max_hops or t + 1) for t in range(num_layers))
    matrices += {"gcn": hops, "gin": hops + num_layers, "gatedgcn": 2 * hops + 2 * num_layers}[conv]
    width = (math.sqrt(vectors**2 + 4 * matrices * 0.99 * budget) - vectors) / (2 * matrices)
    return max(round(width), 1)
