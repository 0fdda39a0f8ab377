"""Deep graph models as plain stacks of layers, from the input features to the logits."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from torch import Generator, nn

from gossamer._arguments import typed
from gossamer.graph.dropout import stream_seed
from gossamer.graph.layers import (
    ForgetInitial,
    GCN2Conv,
    GCNConv,
    GraphLayer,
    GraphSequential,
    KeepInitial,
    NodeDropout,
    ReLUDropout,
    ResidualBlock,
    SAGEConv,
    reset_linear,
)

__all__ = ["GCN", "GCNII", "GraphSAGE", "ResGCN"]


class _Model(GraphSequential):
    """A stack whose i-th layer, where it drops, has a random stream of its own."""

    def __init__(self, layers: Iterable[nn.Module], seed: int) -> None:
        super().__init__(*layers)
        for index, module in enumerate(m for m in self.modules() if isinstance(m, NodeDropout)):
            module.seed = stream_seed(seed, index)
        self.reset_parameters()

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw all weights anew: uniform on +-sqrt(5 / (fan_in + fan_out)), biases zero, steps of dropout zero."""
        for module in self.modules():
            if isinstance(module, GCNConv | SAGEConv | GCN2Conv):
                module.reset_parameters(generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, NodeDropout):
                module.step = 0
        for linear in (layer for layer in self if isinstance(layer, nn.Linear)):
            reset_linear(linear, generator)


class GCN(_Model):
    """x -> [conv -> relu -> dropout] * (num_layers - 1) -> conv -> logits, with conv a GCNConv.

    Args:
        in_channels: width of the input features.
        hidden_channels: width between layers.
        out_channels: number of classes.
        num_layers: number of convolutions, at least 1.
        dropout: probability of a drop.
        seed: seed of all dropout masks.

    Source: Kipf and Welling 2017, Semi-Supervised Classification with Graph Convolutional Networks.
    """

    conv: type[GCNConv] | type[SAGEConv] = GCNConv

    @typed
    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        dropout: float = 0.5,
        *,
        seed: int = 0,
    ) -> None:
        _check_num_layers(self, num_layers)
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        layers: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            layers += [self.conv(width, next_width), ReLUDropout(dropout)]
        super().__init__(layers[:-1], seed)


class GraphSAGE(GCN):
    """x -> [conv -> relu -> dropout] * (num_layers - 1) -> conv -> logits, with conv a SAGEConv (mean).

    The arguments are those of GCN.

    Source: Hamilton et al. 2017, Inductive Representation Learning on Large Graphs.
    """

    conv = SAGEConv


class GCNII(_Model):
    """x -> dropout -> linear -> relu -> [dropout -> conv -> relu] * num_layers -> dropout -> linear -> logits.

    conv is a GCN2Conv; its x_0 is the output of the first relu, and travels through the stack as the second tensor of
    the state.

    Args:
        in_channels: width of the input features.
        hidden_channels: width between layers.
        out_channels: number of classes.
        num_layers: number of convolutions, at least 1.
        dropout: probability of a drop.
        alpha: share of x_0 in every convolution.
        theta: strength of the weights: layer l has beta = ln(theta / l + 1). The paper calls it lambda.
        bias: whether the two linear layers have a bias; the GNNPipe experiments have none.
        seed: seed of all dropout masks.

    Source: Chen et al. 2020, Simple and Deep Graph Convolutional Networks.
    """

    @typed
    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        dropout: float = 0.5,
        *,
        alpha: float = 0.1,
        theta: float = 0.5,
        bias: bool = False,
        seed: int = 0,
    ) -> None:
        _check_num_layers(self, num_layers)
        layers: list[nn.Module] = [NodeDropout(dropout), nn.Linear(in_channels, hidden_channels, bias=bias)]
        layers += [nn.ReLU(), KeepInitial(), NodeDropout(dropout)]
        for layer in range(1, num_layers + 1):
            layers += [GCN2Conv(hidden_channels, alpha=alpha, theta=theta, layer=layer), ReLUDropout(dropout)]
        layers += [ForgetInitial(), nn.Linear(hidden_channels, out_channels, bias=bias)]
        super().__init__(layers, seed)


class ResGCN(_Model):
    """x -> linear -> [x + conv(dropout(relu(norm(x))))] * num_layers -> norm -> relu -> dropout -> linear -> logits.

    conv is a SAGEConv (mean), norm a LayerNorm: ResGCN+ as the GNNPipe experiments define it. The arguments are those
    of GCN.

    Source: Li et al. 2020, DeeperGCN: All You Need to Train Deeper GCNs.
    """

    @typed
    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        dropout: float = 0.5,
        *,
        seed: int = 0,
    ) -> None:
        _check_num_layers(self, num_layers)
        layers: list[nn.Module] = [nn.Linear(in_channels, hidden_channels)]
        for _ in range(num_layers):
            conv: GraphLayer = SAGEConv(hidden_channels, hidden_channels)
            layers.append(ResidualBlock(conv, hidden_channels, dropout=dropout))
        layers += [nn.LayerNorm(hidden_channels), ReLUDropout(dropout), nn.Linear(hidden_channels, out_channels)]
        super().__init__(layers, seed)


def _check_num_layers(model: Any, num_layers: int) -> None:
    if num_layers < 1:
        raise ValueError(f"{type(model).__name__}: num_layers must be at least 1, got {num_layers}")
