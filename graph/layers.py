"""Graph layers that can be stacked, sliced into pipeline stages and run on chunks of a graph.

What travels from layer to layer is the state: a tuple of node tensors, each with one row per node of the graph (or of
the chunk). A layer is called as ``layer(graph, *state)`` and returns the next state; one tensor stands for a 1-tuple.
``graph`` is a CSR, or a view that offers ``aggregate``, ``gcn_aggregate``, ``node_ids`` and ``step``; layers pass
messages through the functions ``aggregate`` and ``gcn_aggregate`` alone and never look into the graph.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gossamer._arguments import typed
from gossamer.graph.aggregate import aggregate, gcn_aggregate
from gossamer.graph.dropout import node_dropout, relu_dropout

__all__ = [
    "GraphLayer",
    "GraphSequential",
    "GCNConv",
    "SAGEConv",
    "GCN2Conv",
    "ResidualBlock",
    "KeepInitial",
    "ForgetInitial",
    "NodeDropout",
    "ReLUDropout",
    "State",
    "check_features",
    "init_uniform_",
    "reset_linear",
]

State = tuple[Tensor, ...]


class GraphLayer(nn.Module):
    """Base of the modules that are called with the graph: forward(graph, *state) -> next state."""


class GraphSequential(nn.Sequential, GraphLayer):
    """Layers one after the other; a slice of it is a GraphSequential again.

    Graph layers get the graph and the whole state. Any other module maps the first tensor of the state; the rest
    passes by.
    """

    def forward(self, graph: Any, *state: Tensor) -> Tensor | State:
        for layer in self:
            if isinstance(layer, GraphLayer):
                result = layer(graph, *state)
                state = result if isinstance(result, tuple) else (result,)
            else:
                state = (layer(state[0]), *state[1:])
        return state[0] if len(state) == 1 else state

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):  # a model class has a signature of its own, its slices have not
            return GraphSequential(*list(self._modules.values())[index])
        return super().__getitem__(index)


def init_uniform_(weight: Tensor, generator: Generator | None = None) -> Tensor:
    """Fill with the uniform distribution on +-sqrt(5 / (fan_in + fan_out))."""
    bound = math.sqrt(5 / max(1, sum(weight.shape)))
    return nn.init.uniform_(weight, -bound, bound, generator=generator)


def reset_linear(linear: nn.Linear, generator: Generator | None = None) -> None:
    """init_uniform_ the weight, zero the bias."""
    init_uniform_(linear.weight, generator)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


class GCNConv(GraphLayer):
    """out = D^-1/2 (A + I) D^-1/2 x W^T + b, with D the in-degree counting the self loop.

    The product with W comes first where it makes rows shorter (out_channels < in_channels), else the aggregation: the
    two orders give the same value, and the aggregation moves the fewer bytes. At equal width the aggregation comes
    first, because the first layer of a model then needs no aggregation backwards.

    Args:
        in_channels: width of x.
        out_channels: width of the result.
        bias: whether to add b.

    Source: Kipf and Welling 2017, Semi-Supervised Classification with Graph Convolutional Networks, equation 2.
    """

    @typed
    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__()
        self.lin = nn.Linear(in_channels, out_channels, bias=False)
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the parameters anew (init_uniform_; biases are zero)."""
        init_uniform_(self.lin.weight, generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        if self.lin.out_features >= self.lin.in_features:
            return F.linear(gcn_aggregate(graph, x), self.lin.weight, self.bias)
        out = gcn_aggregate(graph, self.lin(x))
        return out if self.bias is None else out + self.bias


class SAGEConv(GraphLayer):
    """out = mean of x over in-neighbours W_l^T + x W_r^T + b.

    W_l comes before the mean where it makes rows shorter, as in GCNConv.

    Args:
        in_channels: width of x.
        out_channels: width of the result.
        bias: whether to add b.

    Source: Hamilton et al. 2017, Inductive Representation Learning on Large Graphs, section 3.3.
    """

    @typed
    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__()
        self.lin_l = nn.Linear(in_channels, out_channels, bias=bias)
        self.lin_r = nn.Linear(in_channels, out_channels, bias=False)
        self.reset_parameters()

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the parameters anew (init_uniform_; biases are zero)."""
        for linear in (self.lin_l, self.lin_r):
            reset_linear(linear, generator)

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        own = F.linear(x, self.lin_r.weight, self.lin_l.bias)
        if self.lin_l.out_features >= self.lin_l.in_features:
            return torch.addmm(own, aggregate(graph, x, reduce="mean"), self.lin_l.weight.T)
        return own + aggregate(graph, F.linear(x, self.lin_l.weight), reduce="mean")


class GCN2Conv(GraphLayer):
    """out = s ((1 - beta) I + beta W) with s = (1 - alpha) D^-1/2 (A + I) D^-1/2 x + alpha x_0.

    The state is (x, x_0); x_0 is passed on. beta = ln(theta / layer + 1).

    Args:
        channels: width of x and x_0.
        alpha: share of the initial x_0, in [0, 1].
        theta: strength of the weight, shared by all layers.
        layer: number of this layer, from 1.

    Source: Chen et al. 2020, Simple and Deep Graph Convolutional Networks, equation 5.
    """

    @typed
    def __init__(self, channels: int, *, alpha: float = 0.1, theta: float = 0.5, layer: int = 1) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = math.log(theta / layer + 1)
        self.weight1 = nn.Parameter(torch.empty(channels, channels))
        self.reset_parameters()

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the parameters anew (init_uniform_; biases are zero)."""
        init_uniform_(self.weight1, generator)

    def forward(self, graph: Any, x: Tensor, x_0: Tensor) -> State:
        mixed = gcn_aggregate(graph, x, residual=x_0, alpha=self.alpha)
        identity = torch.eye(self.weight1.shape[0], dtype=x.dtype, device=x.device)
        weight = torch.add((1 - self.beta) * identity, self.weight1, alpha=self.beta)
        return mixed @ weight, x_0

    def extra_repr(self) -> str:
        return f"{self.weight1.shape[0]}, alpha={self.alpha}, beta={self.beta:.4g}"


class ResidualBlock(GraphLayer):
    """out = x + conv(dropout(relu(layer_norm(x)))): the pre-activation block of ResGCN+.

    Args:
        conv: a graph layer that keeps the width.
        channels: width of x.
        dropout: probability of a drop.
        seed: seed of the dropout.

    Source: Li et al. 2020, DeeperGCN: All You Need to Train Deeper GCNs, section 3.3.
    """

    @typed
    def __init__(self, conv: GraphLayer, channels: int, *, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.act = ReLUDropout(dropout, seed=seed)
        self.conv = conv

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        return x + self.conv(graph, self.act(graph, self.norm(x)))


class KeepInitial(GraphLayer):
    """(x,) -> (x, x): from here on the second tensor of the state is x_0."""

    def forward(self, graph: Any, x: Tensor) -> State:
        return x, x


class ForgetInitial(GraphLayer):
    """(x, x_0) -> (x,)."""

    def forward(self, graph: Any, x: Tensor, x_0: Tensor) -> Tensor:
        return x


class NodeDropout(GraphLayer):
    """Drops elements of the first tensor of the state, the same ones for any chunking, threads and recomputation.

    The mask depends on (seed, step, node id, feature). Node ids are ``graph.node_ids`` where the graph has them, else
    the row numbers; the step is ``graph.step`` where the graph has it, else a counter of this module, which every
    forward in training mode advances (give the graph a ``step`` to recompute with torch.utils.checkpoint).

    Args:
        p: probability of a drop in [0, 1], rounded to a multiple of 2^-16.
        seed: random seed; every instance of a model needs one of its own (stream_seed makes them).
    """

    step: int

    @typed
    def __init__(self, p: float = 0.5, *, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"{type(self).__name__}: p must be in [0, 1], got {p}")
        self.p = p
        self.seed = seed
        self.step = 0

    def forward(self, graph: Any, x: Tensor, *rest: Tensor) -> Tensor | State:
        out = node_dropout(x, self.p, training=self.training, **self._key(graph))
        return (out, *rest) if rest else out

    def _key(self, graph: Any) -> dict[str, Any]:
        step = getattr(graph, "step", None)
        if step is None:
            step = self.step
            self.step += self.training
        return {"seed": self.seed, "step": int(step), "node_ids": getattr(graph, "node_ids", None)}

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.step)

    def set_extra_state(self, state: Tensor) -> None:
        self.step = int(state)

    def extra_repr(self) -> str:
        return f"p={self.p}, seed={self.seed}"


class ReLUDropout(NodeDropout):
    """ReLU, then dropout as in NodeDropout, in one pass over memory."""

    def forward(self, graph: Any, x: Tensor, *rest: Tensor) -> Tensor | State:
        out = relu_dropout(x, self.p, training=self.training, **self._key(graph))
        return (out, *rest) if rest else out


def check_features(function: str, x: Tensor, encoder: nn.Module) -> None:
    """x is what a linear encoder takes; another module says itself what it takes."""
    if not isinstance(encoder, nn.Linear):
        return
    if x.dim() != 2 or x.shape[1] != encoder.in_features:
        raise ValueError(f"{function}: x must be [N, {encoder.in_features}], got {list(x.shape)}")
    if x.dtype != encoder.weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"{function}: x must be {encoder.weight.dtype} like the weights, got {x.dtype}")
