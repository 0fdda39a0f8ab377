"""The one executor of pipeline schedules."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from gossamer.distributed.channel import Channel
from gossamer.distributed.schedule import Action, Event, Kind

__all__ = ["StageWorker", "execute"]

_RECEIVES_AHEAD = 2
_DIRECTION = {Kind.RECEIVE_ACTIVATION: +1, Kind.RECEIVE_GRADIENT: -1}


class StageWorker(Protocol):
    """What a stage does for each action; a state is a tuple of tensors."""

    def empty_inputs(self, micro_batch: int) -> tuple[Tensor, ...]:
        """Room for an activation from the previous stage."""

    def empty_gradients(self, micro_batch: int) -> tuple[Tensor, ...]:
        """Room for an output gradient from the next stage."""

    def forward(self, micro_batch: int, inputs: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        """Run the stage; ``inputs`` is None on the first stage."""

    def backward(self, micro_batch: int, gradients: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        """Gradients of the inputs; ``gradients`` is None on the last stage."""

    def backward_input(self, micro_batch: int, gradients: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        """p1: as ``backward``, with the weight gradients left for ``backward_weight``."""

    def backward_weight(self, micro_batches: Sequence[int]) -> None:
        """p2: the weight gradients of micro-batches that are through p1."""

    def update(self) -> None:
        """Apply the collected weight gradients."""


def execute(
    actions: Sequence[Action],
    worker: StageWorker,
    channel: Channel,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Event]:
    """Run the actions of one stage in order, with receives posted ahead of their turn.

    Where the schedule cuts the stage into pieces, ``forward`` is called once per piece (the inputs come with the first,
    the last returns the state) and so is ``backward``.

    Returns:
        Start and end of every action by ``clock``, with the stage of the channel.
    """
    receives = iter([a for a in actions if a.kind in _DIRECTION])
    arrived: dict[int, tuple[Tensor, ...]] = {}
    leaving: dict[int, tuple[Tensor, ...]] = {}

    def post_next() -> None:
        action = next(receives, None)
        if action is not None:
            step, (m,) = _DIRECTION[action.kind], action.micro_batches
            empty = worker.empty_inputs if step > 0 else worker.empty_gradients
            channel.expect(m, lambda: empty(m), step)

    def run(action: Action) -> None:
        m = action.micro_batches[0] if action.micro_batches else -1
        if action.kind in _DIRECTION:
            arrived[m] = channel.receive(m, _DIRECTION[action.kind])
            post_next()
        elif action.kind is Kind.FORWARD:
            leaving[m] = worker.forward(m, arrived.pop(m, None))
        elif action.kind is Kind.BACKWARD:
            leaving[m] = worker.backward(m, arrived.pop(m, None))
        elif action.kind is Kind.BACKWARD_INPUT:
            leaving[m] = worker.backward_input(m, arrived.pop(m, None))
        elif action.kind is Kind.BACKWARD_WEIGHT:
            worker.backward_weight(action.micro_batches)
        elif action.kind is Kind.SEND_ACTIVATION:
            channel.send(leaving.pop(m), +1)
        elif action.kind is Kind.SEND_GRADIENT:
            channel.send(leaving.pop(m), -1)
        elif action.kind is Kind.STEP:
            channel.flush()
            with channel.naming_lost_worker():
                worker.update()

    for _ in range(_RECEIVES_AHEAD):
        post_next()
    events = []
    for action in actions:
        start = clock()
        run(action)
        events.append(Event(channel.grid.stage, action, start, clock()))
    return events
