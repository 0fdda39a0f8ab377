"""ForwardGNN: graph networks whose layers learn from losses of their own, without a backward pass through the stack."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer._arguments import typed
from gossamer.graph.layers import GCNConv, GraphLayer, GraphSequential, SAGEConv
from gossamer.graph.local_objectives import LocalObjective, SingleForward, View

__all__ = [
    "ForwardLayer",
    "LayerTraining",
    "forward_gnn",
    "local_optimizers",
    "predict_locally",
    "train_greedily",
    "train_together",
]

_CONVS: dict[str, type[GCNConv] | type[SAGEConv]] = {"gcn": GCNConv, "sage": SAGEConv}


class ForwardLayer(GraphLayer):
    """h = relu(conv(x / (|x| + 1e-8))), row by row; no gradient leaves it through x.

    Args:
        in_channels: width of x.
        out_channels: width of h.
        conv: ``gcn`` or ``sage``.

    Source: Park et al. 2024, Forward Learning of Graph Neural Networks, section 3.
    """

    @typed
    def __init__(self, in_channels: int, out_channels: int, *, conv: Literal["gcn", "sage"] = "gcn") -> None:
        super().__init__()
        if conv not in _CONVS:
            raise ValueError(f"ForwardLayer: conv must be gcn or sage, got {conv!r}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.conv = _CONVS[conv](in_channels, out_channels)

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        x = x.detach()
        return F.relu(self.conv(graph, x / (x.norm(dim=1, keepdim=True) + 1e-8)))


@typed
def forward_gnn(
    in_channels: int, hidden_channels: int, num_layers: int, *, conv: Literal["gcn", "sage"] = "gcn"
) -> GraphSequential:
    """A stack of ForwardLayers, the first of them in_channels wide (``objective.in_channels``).

    Raises:
        ValueError: if num_layers is below 1 or conv is unknown.
    """
    if num_layers < 1:
        raise ValueError(f"forward_gnn: num_layers must be at least 1, got {num_layers}")
    widths = [in_channels, *[hidden_channels] * (num_layers - 1)]
    return GraphSequential(*(ForwardLayer(width, hidden_channels, conv=conv) for width in widths))


class LayerTraining(NamedTuple):
    """How the training of one layer went: epochs run, the loss of each, and the best validation accuracy."""

    num_epochs: int
    losses: list[float]
    best_accuracy: float


@typed
def local_optimizers(
    layers: Sequence[nn.Module], lr: float = 1e-3, weight_decay: float = 5e-4
) -> list[torch.optim.Optimizer]:
    """An Adam for every layer."""
    return [torch.optim.Adam(layer.parameters(), lr=lr, weight_decay=weight_decay) for layer in layers]


@typed
def train_greedily(
    layers: Sequence[nn.Module],
    objective: LocalObjective,
    labels: Tensor,
    val_mask: Tensor,
    *,
    max_epochs: int = 1000,
    patience: int = 100,
    evaluate_every: int = 2,
    lr: float = 1e-3,
    weight_decay: float = 5e-4,
) -> list[LayerTraining]:
    """Train one layer after the other to the end, each on the outputs of the finished ones.

    Every layer keeps the weights of its best validation accuracy, counted with the votes of the layers below.

    Args:
        layers: of ``forward_gnn``; trained in place.
        objective: what for.
        labels, val_mask: [num_nodes], int64 and bool.
        max_epochs: for each layer.
        patience: evaluations without a better accuracy after which a layer is done.
        evaluate_every: epochs between evaluations.
        lr, weight_decay: of Adam.

    Source: Park et al. 2024, algorithm 1.
    """
    train_views, test_views, found = objective.train_views, objective.test_views, []
    below: Tensor | float = 0.0
    for layer, optimizer in zip(layers, local_optimizers(layers, lr, weight_decay)):
        best, best_state, since, losses = -1.0, copy.deepcopy(layer.state_dict()), 0, []
        for epoch in range(1, max_epochs + 1):
            losses.append(step_locally(objective.loss([layer(*view) for view in train_views]), optimizer))
            if epoch % evaluate_every:
                continue
            accuracy = _accuracy(below + _vote(layer, objective, test_views)[0], labels, val_mask)
            since += 1
            if accuracy > best:
                best, best_state, since = accuracy, copy.deepcopy(layer.state_dict()), 0
            if since >= patience:
                break
        layer.load_state_dict(best_state)
        vote, outputs = _vote(layer, objective, test_views)
        below = below + vote
        with torch.no_grad():
            train_outputs = [layer(*view) for view in train_views]
        train_views = objective.next_train_views(train_views, train_outputs)
        test_views = objective.next_test_views(test_views, outputs)
        found.append(LayerTraining(len(losses), losses, best))
    return found


@typed
def train_together(
    layers: Sequence[nn.Module],
    objective: SingleForward,
    num_epochs: int,
    *,
    top_down: bool = False,
    optimizers: Sequence[torch.optim.Optimizer] | None = None,
    max_norm: float | None = None,
) -> list[list[float]]:
    """Train all layers in every epoch: a layer learns from what the layer below it gives in that epoch.

    Nothing flows back, so that stages of a pipeline need not wait for each other (``distributed.train_locally``).

    Args:
        layers: of ``forward_gnn``; trained in place.
        objective: what for.
        num_epochs: epochs.
        top_down: the loss of a layer is that of the mean of its output and those of all layers above it (which get no
            gradient from it), the paper's top-to-loss signal.
        optimizers: one for every layer, to go on with; None makes those of ``local_optimizers``.
        max_norm: clip the gradient of every layer to this norm; the paper takes 1 with top_down.

    Returns:
        For every epoch the losses of the layers.

    Source: Park et al. 2024, section 3.4.
    """
    if optimizers is None:
        optimizers = local_optimizers(layers)
    history = []
    for _ in range(num_epochs):
        outputs = run_layers(layers, objective.train_views[0])
        states = _with_outputs_above(outputs) if top_down else outputs
        losses = [
            step_locally(objective.loss([state]), optimizer, max_norm) for state, optimizer in zip(states, optimizers)
        ]
        history.append(losses)
    return history


@typed
@torch.no_grad()
def predict_locally(layers: Sequence[nn.Module], objective: LocalObjective, *, top_down: bool = False) -> Tensor:
    """[num_nodes, num_classes]: the summed votes of all layers; argmax is the prediction.

    ``top_down`` as in ``train_together``, for a SingleForward objective.
    """
    views = objective.test_views
    if top_down:
        states = _with_outputs_above(run_layers(layers, views[0]))
        return torch.stack([objective.scores([state]) for state in states]).sum(0)
    total: Tensor | float = 0.0
    for layer in layers:
        vote, outputs = _vote(layer, objective, views)
        total, views = total + vote, objective.next_test_views(views, outputs)
    assert isinstance(total, Tensor)
    return total


def run_layers(layers: Sequence[nn.Module], view: View) -> list[Tensor]:
    """The outputs of all layers."""
    outputs, x = [], view.x
    for layer in layers:
        x = layer(view.graph, x)
        outputs.append(x)
    return outputs


def _with_outputs_above(outputs: Sequence[Tensor]) -> list[Tensor]:
    """For every layer the mean of its output and, without gradient, those of all layers above."""
    above, states = torch.zeros_like(outputs[0]), []
    for number, out in enumerate(reversed(outputs), start=1):
        states.append((out + above) / number)
        above = above + out.detach()
    return states[::-1]


def step_locally(loss: Tensor, optimizer: torch.optim.Optimizer, max_norm: float | None = None) -> float:
    """Update the one layer that the loss depends on; returns the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if max_norm is not None:
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_norm)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def _vote(layer: nn.Module, objective: LocalObjective, views: Sequence[View]) -> tuple[Tensor, list[Tensor]]:
    outputs = [layer(*view) for view in views]
    return objective.scores(outputs), outputs


def _accuracy(scores: Tensor, labels: Tensor, mask: Tensor) -> float:
    return float((scores.argmax(1) == labels)[mask].float().mean())
