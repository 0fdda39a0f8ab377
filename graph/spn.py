"""SPN: every layer reads the nodes at distance 1..max_hops, from the current state, weighed by learned coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer._arguments import typed
from gossamer.graph.aggregate import aggregate
from gossamer.graph.csr import CSR
from gossamer.graph.layers import check_features

__all__ = ["MergedShells", "SPN", "SPNConv", "merge_shells"]


@dataclass(frozen=True, eq=False)
class MergedShells:
    """Shells as one graph, so that a layer that reads all of them is one product.

    Args:
        graph: the edges of all shells.
        hop: [graph.num_edges], int64, the hop of every edge from 0 for shell 1, in the edge order of the graph.
        scale: [graph.num_edges], float32, (d_i d_j)^-1/2 with d the in-degree within the edge's shell.
    """

    graph: CSR
    hop: Tensor
    scale: Tensor


@typed
def merge_shells(shells: Sequence[CSR]) -> MergedShells:
    """The shells of ``k_hop`` as one graph that knows the hop and the GCN normalisation of every edge.

    Raises:
        ValueError: if shells is empty, or they differ in num_nodes.
    """
    if not shells:
        raise ValueError("merge_shells: shells must be at least 1 graph, got 0")
    if len(sizes := {shell.num_nodes for shell in shells}) > 1:
        raise ValueError(f"merge_shells: shells must have equal num_nodes, got {sorted(sizes)}")
    edges = torch.cat([torch.stack([shell.col.long(), shell._rows.long()]) for shell in shells], 1)
    counts = torch.tensor([shell.num_edges for shell in shells], device=edges.device)
    hop = torch.arange(len(shells), device=edges.device).repeat_interleave(counts)
    scales = [shell.in_degree().clamp(min=1).float().rsqrt() for shell in shells]
    scale = torch.cat([s[shell._rows] * s[shell.col] for s, shell in zip(scales, shells)])
    graph = CSR.from_edge_index(edges, shells[0].num_nodes)
    assert graph.edge_ids is not None  # from_edge_index numbers the edges
    return MergedShells(graph, hop[graph.edge_ids], scale[graph.edge_ids])


class SPNConv(nn.Module):
    """x' = normalize(x + relu(norm((x + sum_k a_k S_k x) W^T))), k = 1..max_hops.

    S_k = D_k^-1/2 A_k D_k^-1/2 is the GCN normalisation of shell k, a the softmax of learned coefficients, norm a batch
    norm. Norm, residual and rows of length 1 are those of DRewGCNConv, so that the two differ in the hops alone.

    Args:
        channels: width of the states.
        max_hops: number of shells that the layer reads.
        l2_norm: give every row of the result length 1.

    Raises:
        ValueError: if channels or max_hops is below 1.

    Source: Abboud, Dimitrov and Ceylan 2022, Shortest Path Networks for Graph Property Prediction, section 4.
    """

    @typed
    def __init__(self, channels: int, max_hops: int, *, l2_norm: bool = True) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("max_hops", max_hops)):
            if value < 1:
                raise ValueError(f"SPNConv: {name} must be at least 1, got {value}")
        self.max_hops, self.l2_norm = max_hops, l2_norm
        self.lin = nn.Linear(channels, channels, bias=False)
        self.hop_weights = nn.Parameter(torch.zeros(max_hops))
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, shells: MergedShells, x: Tensor) -> Tensor:
        """Shells 1..max_hops as one graph and the states [N, channels] -> [N, channels]."""
        weight = shells.scale * self.hop_weights.softmax(0).to(shells.scale.dtype)[shells.hop]
        message = self.lin(x + aggregate(shells.graph, x, weight=weight))
        out = x + self.norm(message).relu()
        return F.normalize(out, dim=-1) if self.l2_norm else out


class SPN(nn.Module):
    """features -> Linear -> num_layers SPN layers -> Linear.

    Args:
        in_channels: width of the input features.
        hidden_channels: width of the states.
        out_channels: width of the result.
        num_layers: number of layers, at least 1.
        max_hops: last hop that every layer reads.
        l2_norm: as for SPNConv.

    Raises:
        ValueError: if hidden_channels, num_layers or max_hops is below 1.

    Source: Abboud, Dimitrov and Ceylan 2022, Shortest Path Networks for Graph Property Prediction.
    """

    @typed
    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        *,
        max_hops: int = 10,
        l2_norm: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("hidden_channels", hidden_channels), ("num_layers", num_layers)):
            if value < 1:
                raise ValueError(f"SPN: {name} must be at least 1, got {value}")
        self.encoder = nn.Linear(in_channels, hidden_channels)
        self.convs = nn.ModuleList(SPNConv(hidden_channels, max_hops, l2_norm=l2_norm) for _ in range(num_layers))
        self.head = nn.Linear(hidden_channels, out_channels)
        self.num_hops = max_hops  # shells that forward needs

    def forward(self, x: Tensor, shells: Sequence[CSR] | MergedShells) -> Tensor:
        """Node features [N, in_channels] and ``k_hop(graph, model.num_hops)`` -> [N, out_channels].

        ``merge_shells`` of these does as well, and saves the merge where a graph comes again.

        Raises:
            TypeError: if shells is a single graph.
            ValueError: if there are fewer than max_hops shells.
        """
        if isinstance(shells, CSR):
            raise TypeError("SPN: shells must be the list that k_hop gives, got a CSR")
        if not isinstance(shells, MergedShells):
            if len(shells) < self.num_hops:
                raise ValueError(f"SPN: shells must be at least {self.num_hops} graphs, got {len(shells)}")
            shells = merge_shells(shells[: self.num_hops])
        check_features("SPN", x, self.encoder)
        x = self.encoder(x)
        for conv in self.convs:
            x = conv(shells, x)
        return self.head(x)
