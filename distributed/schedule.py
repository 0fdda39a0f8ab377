"""Pipeline schedules as values: pure functions make them, ``simulate`` prices them, one executor runs them.

A schedule is a list of actions per stage, in program order. Sends do not wait; a receive waits for its send.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise, product

from gossamer._arguments import typed

__all__ = [
    "Action",
    "Costs",
    "Event",
    "Kind",
    "Schedule",
    "Timeline",
    "check_schedule",
    "gnnpipe",
    "gpipe",
    "local",
    "naive",
    "one_f_one_b",
    "simulate",
]


class Kind(Enum):
    """What one action does with one micro-batch."""

    RECEIVE_ACTIVATION = "receive activation"
    FORWARD = "forward"
    SEND_ACTIVATION = "send activation"
    RECEIVE_GRADIENT = "receive gradient"
    BACKWARD = "backward"  # both gradients at once
    BACKWARD_INPUT = "backward input"  # p1: the gradient of the stage's input, on the critical path
    BACKWARD_WEIGHT = "backward weight"  # p2: the gradient of the parameters, local and deferrable
    SEND_GRADIENT = "send gradient"
    STEP = "step"


@dataclass(frozen=True)
class Action:
    """One step of one stage; ``micro_batches`` is empty for STEP and has several entries for a merged p2.

    ``piece`` is the part of the stage that a forward or backward action runs: piece p stands between the stage's
    aggregations p and p + 1, counted from 1. Only ``exact_schedule`` cuts stages into pieces.
    """

    kind: Kind
    micro_batches: tuple[int, ...] = ()
    piece: int = 0


@dataclass(frozen=True)
class Schedule:
    """The actions of every stage, ``stages[s]`` in the order in which stage s runs them.

    Attributes:
        needs: needs[m] are the micro-batches whose rows an aggregation of m reads; empty where they are independent
            or read what is there (history).
        aggregations: of every stage, which has one piece more; empty where stages run whole.
    """

    name: str
    num_stages: int
    num_micro_batches: int
    split_backward: bool
    stages: tuple[tuple[Action, ...], ...]
    needs: tuple[tuple[int, ...], ...] = ()
    aggregations: tuple[int, ...] = ()

    def num_pieces(self, stage: int) -> int:
        """Into how many pieces a stage is cut."""
        return 1 + self.aggregations[stage] if self.aggregations else 1

    def share(self, stage: int, piece: int) -> float:
        """The share of a stage's cost that falls to a piece: that of its aggregation."""
        num_aggregations = self.num_pieces(stage) - 1
        return 1.0 if num_aggregations == 0 else float(piece > 0) / num_aggregations


@typed
def naive(num_stages: int, *, split_backward: bool = False) -> Schedule:
    """One micro-batch, one stage busy at a time. Source: 2BP (arXiv 2405.18047), the naive schedule."""
    return _fill_and_drain("naive", num_stages, 1, split_backward, reverse=False)


@typed
def gpipe(num_stages: int, num_micro_batches: int, *, split_backward: bool = False) -> Schedule:
    """All forwards, then all backwards in the same order. Source: GPipe; split as in 2BP section 4.1."""
    return _fill_and_drain("gpipe", num_stages, num_micro_batches, split_backward, reverse=False)


@typed
def gnnpipe(num_stages: int, num_chunks: int, *, split_backward: bool = False) -> Schedule:
    """All forwards, then all backwards in the reverse order, because chunks depend on each other.

    Micro-batch i is the chunk at position i of the epoch's order. Source: GNNPipe (arXiv 2308.10087).
    """
    return _fill_and_drain("gnnpipe", num_stages, num_chunks, split_backward, reverse=True)


@typed
def one_f_one_b(num_stages: int, num_micro_batches: int, *, split_backward: bool = False) -> Schedule:
    """Stage s runs S - s forwards, then one backward and one forward in turn, then the remaining backwards.

    With ``split_backward`` each cool-down backward is followed by one weight gradient; the rest is merged at
    the end. Source: PipeDream-flush; split as in 2BP section 4.1.
    """
    check_positive("one_f_one_b", num_stages=num_stages, num_micro_batches=num_micro_batches)
    stages = []
    for stage in range(num_stages):
        warm_up = min(num_stages - stage, num_micro_batches)
        actions = [a for m in range(warm_up) for a in forward_actions(m, stage, num_stages)]
        pending: deque[int] = deque()
        for m in range(num_micro_batches):
            actions += _backward(m, stage, num_stages, split_backward)
            pending.append(m)
            if warm_up + m < num_micro_batches:
                actions += forward_actions(warm_up + m, stage, num_stages)
            elif split_backward and m < num_micro_batches - 1:
                actions.append(Action(Kind.BACKWARD_WEIGHT, (pending.popleft(),)))
        stages.append(_finish(actions, pending if split_backward else ()))
    return Schedule("one_f_one_b", num_stages, num_micro_batches, split_backward, tuple(stages))


@typed
def local(num_stages: int, num_micro_batches: int) -> Schedule:
    """Every stage learns from a loss of its own: activations go up, nothing comes down.

    A stage waits for the forward passes below it once and never again: with forward, input and weight gradient at equal
    cost the bubble is (S - 1) / (3 M + S - 1). Source: ForwardGNN (arXiv 2403.11004).
    """
    check_positive("local", num_stages=num_stages, num_micro_batches=num_micro_batches)
    stages = []
    for stage in range(num_stages):
        actions = [
            action
            for m in range(num_micro_batches)
            for action in (*forward_actions(m, stage, num_stages), Action(Kind.BACKWARD, (m,)))
        ]
        stages.append(_finish(actions, ()))
    return Schedule("local", num_stages, num_micro_batches, False, tuple(stages))


def _fill_and_drain(name: str, num_stages: int, num_micro_batches: int, split: bool, *, reverse: bool) -> Schedule:
    check_positive(name, num_stages=num_stages, num_micro_batches=num_micro_batches)
    forward_order = range(num_micro_batches)
    backward_order = forward_order[::-1] if reverse else forward_order
    stages = []
    for stage in range(num_stages):
        actions = [a for m in forward_order for a in forward_actions(m, stage, num_stages)]
        actions += [a for m in backward_order for a in _backward(m, stage, num_stages, split)]
        stages.append(_finish(actions, backward_order if split else ()))
    return Schedule(name, num_stages, num_micro_batches, split, tuple(stages))


def forward_actions(m: int, stage: int, num_stages: int) -> Iterator[Action]:
    """Receive, run and send on one micro-batch, as far as the stage has neighbours."""
    if stage > 0:
        yield Action(Kind.RECEIVE_ACTIVATION, (m,))
    yield Action(Kind.FORWARD, (m,))
    if stage < num_stages - 1:
        yield Action(Kind.SEND_ACTIVATION, (m,))


def _backward(m: int, stage: int, num_stages: int, split: bool) -> Iterator[Action]:
    if stage < num_stages - 1:
        yield Action(Kind.RECEIVE_GRADIENT, (m,))
    yield Action(Kind.BACKWARD_INPUT if split else Kind.BACKWARD, (m,))
    if stage > 0:
        yield Action(Kind.SEND_GRADIENT, (m,))


def _finish(actions: list[Action], merged: deque[int] | range | tuple[()]) -> tuple[Action, ...]:
    if merged:
        actions.append(Action(Kind.BACKWARD_WEIGHT, tuple(merged)))
    return (*actions, Action(Kind.STEP))


def check_positive(function: str, **counts: int) -> None:
    """Raise ValueError for a count below 1, in the name of a function."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{function}: {name} must be at least 1, got {value}")


_MATCHING_SEND = {
    Kind.RECEIVE_ACTIVATION: (Kind.SEND_ACTIVATION, -1),
    Kind.RECEIVE_GRADIENT: (Kind.SEND_GRADIENT, +1),
}
_SENDS = (Kind.SEND_ACTIVATION, Kind.SEND_GRADIENT)
_TRANSFERS = (*_MATCHING_SEND, *_SENDS)


def check_schedule(schedule: Schedule) -> None:
    """Raise ValueError unless every stage runs each micro-batch once forward, once backward (its input gradient
    before its weight gradient), steps last, and no receive waits for ever."""
    backward = Kind.BACKWARD_INPUT if schedule.split_backward else Kind.BACKWARD
    for stage, actions in enumerate(schedule.stages):
        kinds = [Kind.FORWARD, backward] + [Kind.BACKWARD_WEIGHT] * schedule.split_backward
        expected = list(product(range(schedule.num_pieces(stage)), range(schedule.num_micro_batches)))
        seen = {kind: [(a.piece, m) for a in actions if a.kind is kind for m in a.micro_batches] for kind in kinds}
        if any(sorted(order) != expected for order in seen.values()):
            raise ValueError(f"check_schedule: stage {stage} must run every micro-batch once, got {seen}")
        position = {(a.kind, (a.piece, m)): i for i, a in enumerate(actions) for m in a.micro_batches}
        if any(position[a, task] >= position[b, task] for a, b in pairwise(kinds) for task in expected):
            raise ValueError(f"check_schedule: stage {stage} must run forward, then backward, in this order")
        if [a.kind for a in actions].index(Kind.STEP) != len(actions) - 1:
            raise ValueError(f"check_schedule: stage {stage} must end with its one step")
        _check_dependencies(schedule, stage, position)
    simulate(schedule, Costs())


def _check_dependencies(schedule: Schedule, stage: int, position: dict[tuple[Kind, tuple[int, int]], int]) -> None:
    """Piece p of a micro-batch follows piece p - 1 of those that it needs, and precedes it in the backward pass."""
    tasks = product(range(1, schedule.num_pieces(stage)), range(schedule.num_micro_batches))
    for piece, m in tasks:
        for needed in {m, *(schedule.needs[m] if schedule.needs else ())}:
            before, after = (piece - 1, needed), (piece, m)
            forward = position[Kind.FORWARD, before] < position[Kind.FORWARD, after]
            if not forward or position[Kind.BACKWARD, after] > position[Kind.BACKWARD, before]:
                raise ValueError(
                    f"check_schedule: stage {stage} must run piece {piece} of micro-batch {m} after piece {piece - 1} "
                    f"of micro-batch {needed}, and before it in the backward pass"
                )


@dataclass(frozen=True)
class Costs:
    """Seconds (or any unit) per micro-batch and stage; a tuple gives one value per stage.

    Args:
        forward, backward_input, backward_weight: compute; a fused backward costs the sum of the last two.
        transfer: from the start of a send to the moment its receiver may go on; of several, one per border of stages.
        occupancy: what a message keeps the link of its border busy; the next one in its direction waits.
        step: the optimizer.
    """

    forward: float | tuple[float, ...] = 1.0
    backward_input: float | tuple[float, ...] = 1.0
    backward_weight: float | tuple[float, ...] = 1.0
    transfer: float | tuple[float, ...] = 0.0
    step: float = 0.0
    occupancy: float | tuple[float, ...] = 0.0


@dataclass(frozen=True)
class Event:
    """One action with its stage, start and end."""

    stage: int
    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What a simulated or measured schedule does over time; receives last as long as they wait."""

    num_stages: int
    events: tuple[Event, ...]

    @property
    def makespan(self) -> float:
        """From the start of the first event to the end of the last."""
        return max(event.end for event in self.events) - min(event.start for event in self.events)

    @property
    def busy(self) -> tuple[float, ...]:
        """Compute time of every stage."""
        totals = [0.0] * self.num_stages
        for event in self.events:
            if event.action.kind not in _TRANSFERS:
                totals[event.stage] += event.end - event.start
        return tuple(totals)

    @property
    def bubble(self) -> float:
        """Idle fraction over all stages: 1 - sum(busy) / (num_stages * makespan)."""
        return 1.0 - sum(self.busy) / (self.num_stages * self.makespan)

    @property
    def exposed(self) -> float:
        """Time that stages spend in sends, and in receives whose send had begun: transfers that nothing hides."""
        sends = {(e.action.kind, e.stage, e.action.micro_batches): e for e in self.events if e.action.kind in _SENDS}
        total = sum(send.end - send.start for send in sends.values())
        for event in self.events:
            if event.action.kind in _MATCHING_SEND:
                kind, offset = _MATCHING_SEND[event.action.kind]
                send = sends[kind, event.stage + offset, event.action.micro_batches]
                total += max(0.0, event.end - max(event.start, send.start))
        return total


@typed
def simulate(schedule: Schedule, costs: Costs) -> Timeline:
    """Run a schedule on paper: a stage is busy while it computes and idle while it waits for a receive.

    Returns:
        The timeline; its ``makespan`` and ``bubble`` are in the unit of ``costs``.

    Raises:
        ValueError: if the schedule deadlocks (a receive whose send never comes).
    """
    clock = [0.0] * schedule.num_stages
    arrival: dict[tuple[Kind, int, int], float] = {}
    links: dict[tuple[Kind, int], float] = {}
    events: list[Event] = []
    waiting = [deque(actions) for actions in schedule.stages]
    progress = True
    while progress:
        progress = False
        for stage, actions in enumerate(waiting):
            while actions and _ready(actions[0], stage, arrival):
                action = actions.popleft()
                share = schedule.share(stage, action.piece)
                event = _run(action, stage, clock, arrival, links, costs, share)
                events.append(event)
                progress = True
    blocked = {stage: actions[0] for stage, actions in enumerate(waiting) if actions}
    if blocked:
        raise ValueError(f"simulate: schedule must not deadlock, got blocked stages {blocked}")
    return Timeline(schedule.num_stages, tuple(events))


def _ready(action: Action, stage: int, arrival: dict[tuple[Kind, int, int], float]) -> bool:
    if action.kind not in _MATCHING_SEND:
        return True
    kind, offset = _MATCHING_SEND[action.kind]
    return (kind, stage + offset, action.micro_batches[0]) in arrival


def _run(
    action: Action, stage: int, clock: list[float], arrival: dict, links: dict, costs: Costs, share: float
) -> Event:
    if action.kind in _MATCHING_SEND:
        kind, offset = _MATCHING_SEND[action.kind]
        clock[stage] = max(clock[stage], arrival[kind, stage + offset, action.micro_batches[0]])
        return Event(stage, action, clock[stage], clock[stage])
    if action.kind in _SENDS:
        border = stage if action.kind is Kind.SEND_ACTIVATION else stage - 1
        free = max(clock[stage], links.get((action.kind, border), 0.0)) + _at(costs.occupancy, border)
        links[action.kind, border] = free
        arrival[action.kind, stage, action.micro_batches[0]] = free + _at(costs.transfer, border)
        return Event(stage, action, clock[stage], clock[stage])
    start = clock[stage]
    clock[stage] += costs.step if action.kind is Kind.STEP else share * _cost(action, stage, costs)
    return Event(stage, action, start, clock[stage])


def _at(value: float | tuple[float, ...], index: int) -> float:
    return value[index] if isinstance(value, tuple) else value


def _cost(action: Action, stage: int, costs: Costs) -> float:
    per_micro_batch = {
        Kind.FORWARD: _at(costs.forward, stage),
        Kind.BACKWARD: _at(costs.backward_input, stage) + _at(costs.backward_weight, stage),
        Kind.BACKWARD_INPUT: _at(costs.backward_input, stage),
        Kind.BACKWARD_WEIGHT: _at(costs.backward_weight, stage),
    }
    if action.kind is Kind.STEP:
        return costs.step
    return per_micro_batch[action.kind] * len(action.micro_batches)
