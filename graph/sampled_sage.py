"""GraphSAGE on a sampled neighbourhood: every layer computes only the nodes that later layers need."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from gossamer._arguments import typed
from gossamer.graph.csr import CSR
from gossamer.graph.layers import SAGEConv
from gossamer.graph.sampling import SampledSubgraph

__all__ = ["SampledSAGE"]


class SampledSAGE(nn.Module):
    """x -> [conv -> relu] * (num_layers - 1) -> conv, read at the seeds, with conv a SAGEConv (mean).

    On a ``SampledSubgraph`` with a hop per layer, layer l runs on the first num_layers - l hops: the seeds get the
    values that running every layer on all nodes would give them.

    Args:
        in_channels: width of the node features.
        hidden_channels: width between layers.
        out_channels: width of the result.
        num_layers: number of convolutions, at least 1.

    Source: Hamilton et al. 2017, Inductive Representation Learning on Large Graphs, Algorithm 2.
    """

    @typed
    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, num_layers: int) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"SampledSAGE: num_layers must be at least 1, got {num_layers}")
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.convs = nn.ModuleList(SAGEConv(width, next_width) for width, next_width in pairwise(widths))

    def forward(self, graph: SampledSubgraph | CSR, x: Tensor, num_seeds: int | None = None) -> Tensor:
        """The seeds' rows.

        Args:
            graph: the neighbourhood; a CSR runs every layer on all its nodes.
            x: [num_nodes, in_channels].
            num_seeds: leading nodes to return; None takes hop 0 of a SampledSubgraph, all nodes of a CSR.

        Returns:
            [num_seeds, out_channels].
        """
        for number, conv in enumerate(self.convs):
            view = graph if isinstance(graph, CSR) else graph.to_csr(len(self.convs) - number)
            x = conv(view, x[: view.num_nodes])
            x = x if number == len(self.convs) - 1 else x.relu()
        if num_seeds is None:
            num_seeds = graph.num_nodes if isinstance(graph, CSR) else graph.num_sampled_nodes[0]
        return x[:num_seeds]
