"""A pipeline stage of independent micro-batches: any module, any schedule of the executor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gossamer.distributed.split import SplitBackward

__all__ = ["MicroBatchWorker"]


class MicroBatchWorker:
    """One stage that maps a tensor to a tensor, with micro-batches cut from a batch.

    Gradients are added to ``parameter.grad`` as one backward pass after the other would add them.

    Args:
        module: the stage; called with one tensor.
        like: one micro-batch of its input and one of its output; the values do not count.
        inputs: micro-batches of the model's input; empty but on the first stage.
        loss: on the last stage, (output, micro-batch) -> scalar, the micro-batch's share of the loss; None elsewhere.
        step: called by ``update``, for example an optimizer's ``step``.
    """

    def __init__(
        self,
        module: nn.Module,
        like: tuple[Tensor, Tensor],
        *,
        inputs: Sequence[Tensor] = (),
        loss: Callable[[Tensor, int], Tensor] | None = None,
        step: Callable[[], object] = lambda: None,
    ) -> None:
        self.module = module
        self.loss_sum = 0.0
        self._like = like
        self._inputs = inputs
        self._loss = loss
        self._step = step
        self._in_flight: dict[int, tuple[Tensor, Tensor]] = {}
        self._deferred: dict[int, SplitBackward] = {}

    def empty_inputs(self, micro_batch: int) -> tuple[Tensor, ...]:
        return (torch.empty_like(self._like[0]),)

    def empty_gradients(self, micro_batch: int) -> tuple[Tensor, ...]:
        return (torch.empty_like(self._like[1]),)

    def forward(self, micro_batch: int, inputs: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        x = self._inputs[micro_batch] if inputs is None else inputs[0].requires_grad_()
        output = self.module(x)
        if self._loss is not None:
            output = self._loss(output, micro_batch)
            self.loss_sum += output.item()
        self._in_flight[micro_batch] = x, output
        return () if self._loss is not None else (output,)

    def backward(self, micro_batch: int, gradients: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        x, output = self._in_flight.pop(micro_batch)
        torch.autograd.backward(output, None if gradients is None else gradients[0])
        return () if x.grad is None else (x.grad,)

    def backward_input(self, micro_batch: int, gradients: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        x, output = self._in_flight.pop(micro_batch)
        split = SplitBackward([output], [x] if x.requires_grad else [])
        self._deferred[micro_batch] = split
        found = split.input_gradients(gradients)
        return tuple(torch.zeros_like(x) if gradient is None else gradient for gradient in found)

    def backward_weight(self, micro_batches: Sequence[int]) -> None:
        for m in micro_batches:
            for parameter, gradient in self._deferred.pop(m).weight_gradients().items():
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def update(self) -> None:
        self._step()
