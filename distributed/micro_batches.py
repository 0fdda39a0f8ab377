"""A pipeline stage of independent micro-batches: any module, any schedule of the executor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.distributed.split import SplitBackward, saved_bytes

__all__ = ["MicroBatchWorker"]

State = tuple[Tensor, ...]


class MicroBatchWorker:
    """One stage that maps a state (a tensor, or a tuple of them) to a state, with micro-batches cut from a batch.

    Gradients are added to ``parameter.grad`` as one backward pass after the other would add them.

    Args:
        module: the stage; called with the tensors of the state that arrives and, behind them, those of ``inputs``.
        like: one micro-batch of the state that arrives and of the one that leaves; the values do not count.
        inputs: by micro-batch, what the stage takes beside the state that arrives: on the first stage all of it.
        loss: on the last stage, (*state, micro-batch) -> scalar, the micro-batch's share of the loss; None elsewhere.
        step: called by ``update``, for example an optimizer's ``step``.
        checkpoints: submodules; with a split backward the gradients that arrive at their outputs wait for p2, and
            those inside are computed again (derivative checkpointing; see SplitBackward).

    Attributes:
        loss_sum: of the micro-batches so far.
    """

    def __init__(
        self,
        module: nn.Module,
        like: tuple[Tensor | State, Tensor | State],
        *,
        inputs: Sequence[Tensor | State] = (),
        loss: Callable[..., Tensor] | None = None,
        step: Callable[[], object] = lambda: None,
        checkpoints: Sequence[nn.Module] = (),
    ) -> None:
        self.module = module
        self.loss_sum = 0.0
        self._like = tuple(_state(state) for state in like)
        self._inputs = inputs
        self._loss = loss
        self._step = step
        self._in_flight: dict[int, tuple[State, State, list[Tensor]]] = {}
        self._deferred: dict[int, SplitBackward] = {}
        self._marked: list[Tensor] | None = None  # while a forward runs; recomputation passes the hooks again
        for submodule in checkpoints:
            submodule.register_forward_hook(self._mark)

    def begin_batch(self, inputs: Sequence[Tensor | State]) -> None:
        """Take other micro-batches, and count the loss from zero."""
        self._inputs, self.loss_sum = inputs, 0.0

    @property
    def kept_bytes(self) -> int:
        """Bytes that wait for a backward pass now, of micro-batches between forward and p2."""
        in_flight = sum(saved_bytes(outputs) for _, outputs, _ in self._in_flight.values())
        return in_flight + sum(split.waiting_bytes for split in self._deferred.values())

    def empty_inputs(self, micro_batch: int) -> State:
        return tuple(torch.empty_like(t) for t in self._like[0])

    def empty_gradients(self, micro_batch: int) -> State:
        return tuple(torch.empty_like(t) for t in self._like[1] if t.is_floating_point())

    def forward(self, micro_batch: int, inputs: State | None) -> State:
        arrived = tuple(t.requires_grad_(t.is_floating_point()) for t in inputs or ())
        own = _state(self._inputs[micro_batch]) if self._inputs else ()
        marked: list[Tensor] = []
        self._marked = marked
        outputs = _state(self.module(*arrived, *own))
        self._marked = None
        if self._loss is not None:
            outputs = (self._loss(*outputs, micro_batch),)
            self.loss_sum += outputs[0].item()
        carrying = tuple(t for t in arrived if t.requires_grad)
        self._in_flight[micro_batch] = carrying, outputs, marked
        return () if self._loss is not None else outputs

    def backward(self, micro_batch: int, gradients: State | None) -> State:
        inputs, outputs, _ = self._in_flight.pop(micro_batch)
        torch.autograd.backward(*_paired(outputs, gradients))
        return tuple(torch.zeros_like(t) if t.grad is None else t.grad for t in inputs)

    def backward_input(self, micro_batch: int, gradients: State | None) -> State:
        inputs, outputs, marked = self._in_flight.pop(micro_batch)
        outputs, gradients = _paired(outputs, gradients)
        self._deferred[micro_batch] = split = SplitBackward(outputs, inputs, checkpoints=marked)
        found = split.input_gradients(gradients)
        return tuple(torch.zeros_like(t) if gradient is None else gradient for t, gradient in zip(inputs, found))

    def backward_weight(self, micro_batches: Sequence[int]) -> None:
        for m in micro_batches:
            for parameter, gradient in self._deferred.pop(m).weight_gradients().items():
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def update(self) -> None:
        self._step()

    def _mark(self, module: nn.Module, arguments: Any, output: Tensor | State) -> None:
        if self._marked is not None:
            self._marked += [t for t in _state(output) if t.requires_grad]


def _state(state: Tensor | State) -> State:
    return (state,) if isinstance(state, Tensor) else tuple(state)


def _paired(outputs: State, gradients: State | None) -> tuple[State, State | None]:
    """The outputs that need a gradient, and what arrived for them."""
    if gradients is None:
        return outputs, None
    floating = [t for t in outputs if t.is_floating_point()]
    pairs = [(t, gradient) for t, gradient in zip(floating, gradients) if t.requires_grad]
    return tuple(t for t, _ in pairs), tuple(gradient for _, gradient in pairs)
