"""What one worker does: its layers, its rows of the graph, and the forward and backward pass of one chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gossamer.distributed.backend import Backend
from gossamer.distributed.chunks import AGGREGATION, ChunkedGraph
from gossamer.distributed.recompute import run_in_segments
from gossamer.distributed.split import SplitBackward
from gossamer.graph.drew_stack import frozen_statistics
from gossamer.graph.layers import State

__all__ = ["NodeData", "Seed", "Worker", "floating"]

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class NodeData:
    """Features (on the first stage only), labels and masks of the worker's nodes, numbered chunk by chunk.

    num_marked is the number of nodes in each mask over all ways.
    """

    features: Tensor | None
    labels: Tensor
    masks: dict[str, Tensor]
    num_marked: dict[str, int]


class Worker:
    """One stage; the executor calls it chunk by chunk, with the chunk at position m of the epoch's order as
    micro-batch m.

    Args:
        backend: the parameters of the stage.
        chunked: the graph with the buffers of the stage's aggregations.
        data: node data.
        loss: (outputs, labels) -> summed loss.
        incoming, outgoing: states of zero rows at the borders of the stage; ``incoming`` is empty on the first.
        is_last: whether the outgoing state is the model's output.
    """

    def __init__(
        self,
        backend: Backend,
        chunked: ChunkedGraph,
        data: NodeData,
        loss: Loss,
        incoming: State,
        outgoing: State,
        is_last: bool,
    ) -> None:
        self.backend = backend
        self.chunked = chunked
        self.data = data
        self.incoming = incoming
        self._outgoing = outgoing
        self._is_last = is_last
        self._loss = loss
        self._num_train = data.num_marked["train"]
        self._in_flight: dict[int, _Stored] = {}
        self._deferred: dict[int, SplitBackward] = {}
        self.begin_epoch([])

    def begin_epoch(self, order: list[int]) -> None:
        """Take the chunks in this order and count from zero."""
        self._order = order
        self.loss_sum = 0.0
        self.num_correct = 0

    def empty_inputs(self, micro_batch: int) -> State:
        return self.empty_state(self.incoming, self._rows(micro_batch))

    def empty_gradients(self, micro_batch: int) -> State:
        return self.empty_state(floating(self._outgoing), self._rows(micro_batch))

    def empty_state(self, like: State, rows: slice) -> State:
        """Room for the rows of a state."""
        device = self.data.labels.device
        return tuple(torch.empty(rows.stop - rows.start, *t.shape[1:], dtype=t.dtype, device=device) for t in like)

    def forward(self, micro_batch: int, inputs: State | None) -> State:
        """Run the stage on one chunk; returns the state to send on, nothing on the last stage."""
        inputs = self.first_state(micro_batch, inputs)
        later = self.chunked.recompute and not self._in_segments
        stored = _Stored(inputs, torch.get_rng_state() if later else None)
        with torch.set_grad_enabled(not later):
            state = self._run(micro_batch, inputs)
            outputs = (self._measure(micro_batch, state[0]),) if self._is_last else state
        if not later:
            stored.outputs = outputs
        self._in_flight[micro_batch] = stored
        return () if self._is_last else state

    def first_state(self, micro_batch: int, inputs: State | None) -> State:
        """What enters the stage: the features of a chunk, or what has arrived, as leaves."""
        if inputs is None:
            assert self.data.features is not None
            return (self.data.features[self._rows(micro_batch)],)
        return tuple(t.requires_grad_(t.is_floating_point()) for t in inputs)

    def backward(self, micro_batch: int, gradients: State | None) -> State:
        """Collect the weight gradients of one chunk; returns the input gradients, nothing on the first stage."""
        stored = self._in_flight.pop(micro_batch)
        outputs = stored.outputs or self._recompute(micro_batch, stored)
        self.backend.backward(outputs[0] if gradients is None else Seed.apply(gradients, *floating(outputs)))
        if not self.incoming:
            return ()
        return tuple(torch.zeros_like(t) if t.grad is None else t.grad for t in floating(stored.inputs))

    def backward_input(self, micro_batch: int, gradients: State | None) -> State:
        """p1 of one chunk: its input gradients alone; ``backward_weight`` must follow before ``update``."""
        stored = self._in_flight.pop(micro_batch)
        outputs = floating(stored.outputs or self._recompute(micro_batch, stored))
        inputs = floating(stored.inputs) if self.incoming else ()
        split = SplitBackward(outputs, inputs, once=(AGGREGATION,))
        found = split.input_gradients(gradients)
        self._deferred[micro_batch] = split
        return tuple(torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found))

    def backward_weight(self, micro_batches: Sequence[int]) -> None:
        """p2 of some chunks: their weight gradients, summed in the order given and collected at once."""
        total: dict[Tensor, Tensor] = {}
        for m in micro_batches:
            for parameter, gradient in self._deferred.pop(m).weight_gradients().items():
                if parameter in total:
                    total[parameter].add_(gradient)
                else:
                    total[parameter] = gradient.clone()
        if total:
            self.backend.backward(Seed.apply(tuple(total.values()), *total))

    def update(self) -> None:
        self.backend.step()
        self.chunked.channel.count_weight_sync(self.backend.sync_bytes)

    @torch.no_grad()
    def infer(self, inputs: State | None, *, keep: bool = False) -> State:
        """Run the stage on the worker's part of the graph, exactly; ``keep`` leaves the rows for training to read."""
        assert inputs is not None or self.data.features is not None
        state = self.backend.module(self.chunked.whole_view(keep=keep), *(inputs or (self.data.features,)))
        return state if isinstance(state, tuple) else (state,)

    @torch.no_grad()
    def score(self, outputs: Tensor) -> list[float]:
        """Summed loss and number of right classes of every mask in turn."""
        values = []
        for mask in self.data.masks.values():
            chosen, labels = outputs[mask], self.data.labels[mask]
            values += [self._loss(chosen, labels).item(), float(_num_correct(chosen, labels))]
        return values

    def _rows(self, micro_batch: int) -> slice:
        chunk = self._order[micro_batch]
        return slice(self.chunked.bounds[chunk], self.chunked.bounds[chunk + 1])

    @property
    def _in_segments(self) -> bool:
        """Whether autograd itself recomputes: where aggregations can run again, with the same rows."""
        return self.chunked.recompute and not self.chunked.keeps_outputs

    def _run(self, micro_batch: int, inputs: State, *, replay: bool = False) -> State:
        if self._in_segments:
            view_from = partial(self.chunked.view, self._order[micro_batch])
            return run_in_segments(self.backend.module, lambda site: view_from(first_site=site), inputs)
        state = self.backend.module(self.chunked.view(self._order[micro_batch], replay=replay), *inputs)
        return state if isinstance(state, tuple) else (state,)

    def _measure(self, micro_batch: int, outputs: Tensor, *, count: bool = True) -> Tensor:
        """The chunk's share of the mean training loss; ``count`` adds it to the epoch's sums."""
        rows = self._rows(micro_batch)
        mask = self.data.masks["train"][rows]
        chosen, labels = outputs[mask], self.data.labels[rows][mask]
        loss = self._loss(chosen, labels)
        if count:
            self.loss_sum += loss.item()
            self.num_correct += _num_correct(chosen, labels)
        return loss * (self.backend.divisor / self._num_train)

    def _recompute(self, micro_batch: int, stored: _Stored) -> State:
        again = frozen_statistics([self.backend.module])
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), again:
            assert stored.random_state is not None
            torch.set_rng_state(stored.random_state)
            state = self._run(micro_batch, stored.inputs, replay=True)
            return (self._measure(micro_batch, state[0], count=False),) if self._is_last else state


@dataclass
class _Stored:
    """What the backward pass of one micro-batch needs."""

    inputs: State
    random_state: Tensor | None
    outputs: State | None = None


class Seed(torch.autograd.Function):
    """A zero whose gradient with respect to ``outputs`` is ``gradients``: it starts a backward pass inside the
    network through an engine that takes scalars only."""

    @staticmethod
    def forward(ctx: Any, gradients: State, *outputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.gradients)


def floating(state: State) -> State:
    """The tensors of a state that carry gradients."""
    return tuple(t for t in state if t.is_floating_point())


def _num_correct(outputs: Tensor, labels: Tensor) -> int:
    """Number of right classes; 0 where the labels are not classes."""
    if labels.dim() != 1 or labels.is_floating_point():
        return 0
    return int((outputs.argmax(dim=-1) == labels).sum())
