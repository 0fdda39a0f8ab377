"""The models of train_long_range.py: a stack over k-hop shells between an encoder of the nodes and a readout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gossamer.graph import SPN, DRew, drew_width, k_hop

from graph_sets import GraphBatch
from long_range_configs import LongRangeConfig
from long_range_data import Task
from ring_transfer import ring_width

__all__ = ["LongRangeModel", "build_model"]

POSITIONAL_WIDTH = 16


class NodeEncoder(nn.Module):
    """Features, or the sum of the embeddings of categories, with the positional encoding behind them.

    Signs of eigenvectors mean nothing: in training every column of a batch gets a random one.

    Args:
        task: says what the columns of x are.
        width: of the result.
        num_positional: columns of the positional encoding; 0 for none.
    """

    def __init__(self, task: Task, width: int, num_positional: int = 0) -> None:
        super().__init__()
        self.positional = nn.Linear(num_positional, POSITIONAL_WIDTH) if num_positional else None
        width -= POSITIONAL_WIDTH if num_positional else 0
        first = torch.tensor([0, *task.categories]).cumsum(0)
        self.register_buffer("first", first[:-1] if task.categories else None)
        if task.categories:
            self.features: nn.Module = nn.EmbeddingBag(int(first[-1]), width, mode="sum")
        else:
            self.features = nn.Linear(task.graphs.x.shape[1], width)

    def forward(self, batch: GraphBatch) -> Tensor:
        own = self.features(batch.x if self.first is None else batch.x + self.first)
        if self.positional is None:
            return own
        places = batch.positional
        if self.training:
            places = places * torch.randint(0, 2, places.shape[1:], device=places.device).mul(2).sub(1)
        return torch.cat([own, self.positional(places)], 1)


class LongRangeModel(nn.Module):
    """encoder -> stack -> linear head -> readout.

    Args:
        encoder: of the nodes.
        stack: a DRew or an SPN; its first linear layer makes room for the encoder.
        readout: "mean" of every graph, its "first" node, or every "node".
    """

    def __init__(self, encoder: NodeEncoder, stack: DRew | SPN, readout: str) -> None:
        super().__init__()
        stack.encoder = encoder
        self.stack, self.readout = stack, readout

    def forward(self, batch: GraphBatch) -> Tensor:
        """[num_graphs, num_outputs], or a row per node."""
        out = self.stack(batch, k_hop(batch.graph, self.stack.num_hops))
        if self.readout == "mean":  # the head is linear, so that it may come before the mean
            return torch.segment_reduce(out, "mean", lengths=batch.sizes)
        return out[batch.sizes.cumsum(0) - batch.sizes] if self.readout == "first" else out


def build_model(config: LongRangeConfig, task: Task) -> LongRangeModel:
    """The model of a configuration, of the width that its budget gives."""
    if config.layers < 1:
        raise ValueError(f"build_model: layers must be at least 1, got {config.layers}")
    width = solve_width(config, task) if config.width is None else config.width
    if width < 1:
        raise ValueError(f"build_model: width must be at least 1 (budget {config.budget}), got {width}")
    if config.positional and width <= POSITIONAL_WIDTH:
        raise ValueError(
            f"build_model: width must be above {POSITIONAL_WIDTH} beside a positional encoding, got {width}"
        )
    encoder = NodeEncoder(task, width, config.positional)
    return LongRangeModel(encoder, _stack(config, width, task.num_outputs or width), task.readout)


def solve_width(config: LongRangeConfig, task: Task) -> int:
    """The width d of a d^2 + b d = 0.99 budget, with a matrices and b vectors of d parameters.

    The vectors are one per batch norm, the rows of the encoder and the columns of the head, as in the published
    configurations of DRew; a head as wide as the states is one matrix and one vector. RingTransfer has a rule of its
    own: the parameters of a GCN of width 256.
    """
    if config.dataset == "ring-transfer":
        return ring_width(config.layers, per_hop=config.model.startswith("drew") and not config.share_weights)
    inputs = sum(task.categories) or task.graphs.x.shape[1]
    norms = sum(isinstance(module, nn.BatchNorm1d) for module in _stack(config, 1, 1).modules())
    return drew_width(
        config.layers,
        conv=_conv(config),
        max_hops=1 if config.share_weights or config.model == "spn" else _max_hops(config),
        matrices=int(task.num_outputs is None),
        vectors=norms + inputs + (task.num_outputs or 1),
        budget=config.budget,
    )


def _conv(config: LongRangeConfig) -> str:
    return "gcn" if config.model == "spn" else config.model.removeprefix("drew_")


def _max_hops(config: LongRangeConfig) -> int | None:
    """A plain layer is the DRew layer that looks one hop far."""
    return config.max_hops if config.model.startswith("drew_") else 1


def _stack(config: LongRangeConfig, width: int, num_outputs: int) -> DRew | SPN:
    if config.model == "spn":
        max_hops = 10 if config.max_hops is None else config.max_hops
        return SPN(1, width, num_outputs, config.layers, max_hops=max_hops)
    options: dict[str, Any] = {"share_weights": config.share_weights, "learn_hop_weights": config.learn_hop_weights}
    if _conv(config) != "gcn":
        options["dropout"] = config.dropout
    return DRew(
        1, width, num_outputs, config.layers, conv=_conv(config), delay=float(config.delay),
        max_hops=_max_hops(config), recompute=config.recompute, **options,
    )  # fmt: skip
