"""ForwardGNN with the state of the layer above as an input: labels reach a layer from the top, over time steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.forward_gnn import ForwardLayer, local_optimizers, step_locally
from gossamer.graph.local_objectives import SingleForward

__all__ = ["TopDownLayer", "TopToInput", "top_down_gnn"]

_SILENT_STEPS = 2  # as the authors' code: states need some steps to carry labels down


class TopDownLayer(ForwardLayer):
    """h = relu(conv(below / |below|, above / |above|)), side by side; no gradient leaves it through either.

    Args:
        below_channels, above_channels: widths of the states of the layer below and of the layer above.
        out_channels: width of h.
        conv: ``gcn`` or ``sage``.

    Source: Park et al. 2024, Forward Learning of Graph Neural Networks, section 3.4 (top to input).
    """

    @typed
    def __init__(
        self, below_channels: int, above_channels: int, out_channels: int, *, conv: Literal["gcn", "sage"] = "gcn"
    ) -> None:
        super().__init__(below_channels + above_channels, out_channels, conv=conv)

    def forward(self, graph: Any, below: Tensor, above: Tensor) -> Tensor:  # type: ignore[override]
        states = [x.detach() / (x.detach().norm(dim=1, keepdim=True) + 1e-8) for x in (below, above)]
        return F.relu(self.conv(graph, torch.cat(states, 1)))


@typed
def top_down_gnn(
    in_channels: int,
    hidden_channels: int,
    num_classes: int,
    num_layers: int,
    *,
    conv: Literal["gcn", "sage"] = "gcn",
) -> list[TopDownLayer]:
    """A stack of TopDownLayers between features (``objective.in_channels`` wide) and labels.

    Raises:
        ValueError: if num_layers is below 1 or conv is unknown.
    """
    if num_layers < 1:
        raise ValueError(f"top_down_gnn: num_layers must be at least 1, got {num_layers}")
    widths = [in_channels, *[hidden_channels] * num_layers, num_classes]
    return [TopDownLayer(widths[i], widths[i + 2], hidden_channels, conv=conv) for i in range(num_layers)]


class TopToInput:
    """Time steps of a stack whose layers read the states of both neighbours.

    The lowest state is that of the features, the highest that of the labels (one-hot on training and class nodes,
    1 / C on the others). A time step updates layers 0, 2, 4, ... and then, from their new states, layers 1, 3, 5, ...;
    in training every layer learns from its own loss as it is updated. States start from one pass upwards that
    sees zeros above.

    Over stages of a pipeline the two half steps would run on all stages at once: within a half step no layer reads
    another one's new state, and between two half steps each border carries one state, up or down. So no stage waits
    to be filled, but each waits twice per step for its neighbours; the ``local`` schedule, in which nothing comes
    down, does not express it.

    Args:
        layers: of ``top_down_gnn``; trained in place.
        objective: what for.
        optimizers: one for every layer; None makes those of ``local_optimizers``.

    Attributes:
        states: the features, what every layer gave last, and the labels.

    Source: Park et al. 2024, Forward Learning of Graph Neural Networks, section 3.4, with the alternating updates of
    the authors' code.
    """

    @typed
    def __init__(
        self,
        layers: Sequence[TopDownLayer],
        objective: SingleForward,
        *,
        optimizers: Sequence[torch.optim.Optimizer] | None = None,
    ) -> None:
        self.layers, self.objective = layers, objective
        self.optimizers = local_optimizers(layers) if optimizers is None else optimizers
        self.states = self.first_states()

    @torch.no_grad()
    def first_states(self) -> list[Tensor]:
        """Features, one pass upwards with the current weights, and labels."""
        (graph, x), labels = self.objective.train_views[0], self.objective.label_state
        widths = [*(layer.out_channels for layer in self.layers[1:]), labels.shape[1]]
        states = [x]
        for layer, width in zip(self.layers, widths):
            states.append(layer(graph, states[-1], x.new_zeros(len(x), width)))
        return [*states, labels]

    def train(self, num_steps: int) -> list[list[float]]:
        """Some time steps, each with an update of every layer; returns for every step the losses of the layers."""
        graph, history = self.objective.train_views[0].graph, []
        for _ in range(num_steps):
            losses = [0.0] * len(self.layers)
            for i in _alternating(len(self.layers)):
                out = self.layers[i](graph, self.states[i], self.states[i + 2])
                losses[i] = step_locally(self.objective.loss([out]), self.optimizers[i])
                self.states[i + 1] = out.detach()
            history.append(losses)
        return history

    @torch.no_grad()
    def predict(self, num_steps: int = 10) -> Tensor:
        """[num_nodes, num_classes]: the votes of all layers, summed over time steps that start anew.

        Args:
            num_steps: at least 3; the first two do not vote.

        Raises:
            ValueError: if it is below 3.
        """
        if num_steps <= _SILENT_STEPS:
            raise ValueError(f"TopToInput.predict: num_steps must be at least {_SILENT_STEPS + 1}, got {num_steps}")
        graph, states, votes = self.objective.test_views[0].graph, self.first_states(), []
        for step in range(num_steps):
            for i in _alternating(len(self.layers)):
                states[i + 1] = self.layers[i](graph, states[i], states[i + 2])
                if step >= _SILENT_STEPS:
                    votes.append(self.objective.scores([states[i + 1]]))
        return torch.stack(votes).sum(0)


def _alternating(num_layers: int) -> list[int]:
    return [*range(0, num_layers, 2), *range(1, num_layers, 2)]
