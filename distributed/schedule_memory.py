"""What the micro-batches of a schedule keep in memory, and schedules that keep less: 2BP with p2 run earlier."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from gossamer._arguments import typed
from gossamer.distributed.schedule import Action, Kind, Schedule

__all__ = ["bound_waiting", "peak_bytes"]


@typed
def bound_waiting(schedule: Schedule, max_waiting: int) -> Schedule:
    """The schedule with at most ``max_waiting`` micro-batches of a stage between p1 and p2.

    When p1 of one more would exceed the bound, the stage runs p2 of the one that has waited longest first. The
    order of all p2 stays, so that sums of gradients keep their bits. A bound of 1 leaves room for the micro-batch whose
    p1 has just run; the time is then that of the fused schedule at most.

    Args:
        schedule: with ``split_backward``.
        max_waiting: at least 1.

    Raises:
        ValueError: if the schedule has no split backward, or the bound is below 1.

    Source: 2BP (arXiv 2405.18047), section 5: p2 run earlier bounds the memory.
    """
    if not schedule.split_backward:
        raise ValueError(f"bound_waiting: schedule must have a split backward, got {schedule.name} without")
    if max_waiting < 1:
        raise ValueError(f"bound_waiting: max_waiting must be at least 1, got {max_waiting}")
    stages = tuple(tuple(_bounded(actions, max_waiting)) for actions in schedule.stages)
    return replace(schedule, stages=stages)


def _bounded(actions: tuple[Action, ...], max_waiting: int) -> Iterator[Action]:
    order = deque(m for a in actions if a.kind is Kind.BACKWARD_WEIGHT for m in a.micro_batches)
    through: set[int] = set()  # p1 has run, p2 has not
    for action in actions:
        if action.kind is Kind.BACKWARD_INPUT:
            while len(through) == max_waiting and order[0] in through:
                yield Action(Kind.BACKWARD_WEIGHT, (order[0],))
                through.remove(order.popleft())
            through.update(action.micro_batches)
        elif action.kind is Kind.BACKWARD_WEIGHT:
            left = tuple(m for m in action.micro_batches if m in through)
            for m in left:
                order.remove(m)
                through.remove(m)
            if not left:
                continue
            action = Action(Kind.BACKWARD_WEIGHT, left)
        yield action


@typed
def peak_bytes(schedule: Schedule, *, in_flight: float, waiting: float) -> tuple[float, ...]:
    """The most bytes that each stage keeps for backward passes at a time.

    Args:
        schedule: any.
        in_flight: bytes of a micro-batch between its forward and its backward (or p1).
        waiting: bytes of a micro-batch between p1 and p2: inputs of operations with parameters, and the gradients that
            arrived at them.
    """
    return tuple(max(_kept(actions, in_flight, waiting)) for actions in schedule.stages)


def _kept(actions: tuple[Action, ...], in_flight: float, waiting: float) -> Iterator[float]:
    kept = 0.0
    change = {Kind.FORWARD: in_flight, Kind.BACKWARD: -in_flight, Kind.BACKWARD_INPUT: waiting - in_flight}
    change[Kind.BACKWARD_WEIGHT] = -waiting
    for action in actions:
        kept += change.get(action.kind, 0.0) * len(action.micro_batches)
        yield kept
