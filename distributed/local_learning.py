"""Layers with losses of their own as one more schedule of the executor: no backward pass crosses a stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from gossamer._arguments import typed
from gossamer.distributed import schedule
from gossamer.distributed.channel import Channel
from gossamer.distributed.counters import Counters
from gossamer.distributed.executor import StageWorker, execute
from gossamer.distributed.grid import Grid
from gossamer.distributed.stages import split_layers
from gossamer.graph import ForwardLayer, SingleForward
from gossamer.graph.forward_gnn import local_optimizers, run_layers, step_locally
from gossamer.graph.local_objectives import View

__all__ = ["LocalPipeline"]


class LocalPipeline(StageWorker):
    """ForwardGNN with its layers spread over the ranks of the default process group; epochs are the micro-batches.

    A stage hands the outputs of an epoch up and goes on: it never waits for the stages above. Weights are those that
    ``graph.train_together`` gives in one process, to the bit.

    Args:
        layers: all layers, of ``graph.forward_gnn``, the same on every rank; those of this rank are trained in place.
        objective: what for, the same on every rank.
        lr, weight_decay: of Adam.

    Attributes:
        layer_ids: the layers of this rank.
        counters: bytes sent by this rank so far.

    Raises:
        ValueError: if there are fewer layers than ranks.

    Source: Park et al. 2024, Forward Learning of Graph Neural Networks (arXiv 2403.11004), section 3.3.
    """

    @typed
    def __init__(
        self,
        layers: Sequence[ForwardLayer],
        objective: SingleForward,
        *,
        lr: float = 1e-3,
        weight_decay: float = 5e-4,
    ) -> None:
        self.stage, self.num_stages = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.layer_ids = split_layers([1.0] * len(layers), self.num_stages)[self.stage]
        self.counters = Counters()
        self._layers = [layers[i] for i in self.layer_ids]
        self._objective, self._view = objective, objective.train_views[0]
        self._optimizers = local_optimizers(self._layers, lr, weight_decay)
        self._channel = Channel(Grid(self.num_stages, 1, self.stage), self._view.x.device)
        self._input_width = self._layers[0].in_channels
        self._outputs: dict[int, list[Tensor]] = {}
        self._losses: list[list[float]] = []

    def train(self, num_epochs: int) -> list[list[float]]:
        """Train for a number of epochs; returns for each of them the losses of the layers of this rank.

        Ranks call it with the same number. Memory grows with the epochs that a stage is ahead of the next, at most 4.
        """
        self._losses = []
        execute(schedule.local(self.num_stages, num_epochs).stages[self.stage], self, self._channel)
        self.counters += self._channel.take_counters()
        return self._losses

    # The side of the executor.

    def empty_inputs(self, micro_batch: int) -> tuple[Tensor, ...]:
        return (self._view.x.new_empty(len(self._view.x), self._input_width),)

    def empty_gradients(self, micro_batch: int) -> tuple[Tensor, ...]:
        raise AssertionError("the local schedule receives no gradient")

    def forward(self, micro_batch: int, inputs: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        x = self._view.x if inputs is None else inputs[0]
        self._outputs[micro_batch] = outputs = run_layers(self._layers, View(self._view.graph, x))
        return (outputs[-1],)

    def backward(self, micro_batch: int, gradients: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        losses = [self._objective.loss([out]) for out in self._outputs.pop(micro_batch)]
        self._losses.append([step_locally(*pair) for pair in zip(losses, self._optimizers)])
        return ()

    def backward_input(self, micro_batch: int, gradients: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        raise AssertionError("the local schedule has no split backward")

    def backward_weight(self, micro_batches: Sequence[int]) -> None:
        raise AssertionError("the local schedule has no split backward")

    def update(self) -> None:
        """Every layer was updated in its backward."""
