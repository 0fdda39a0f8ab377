"""The schedule of the exact mode: a dependency graph between chunks instead of history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gossamer._arguments import typed
from gossamer.distributed.schedule import Action, Kind, Schedule, check_positive, forward_actions

__all__ = ["exact_schedule"]


@typed
def exact_schedule(needs: Sequence[Sequence[int]], aggregations: Sequence[int]) -> Schedule:
    """Synchronous full-graph training in chunks: an aggregation waits for the chunks that it reads, for no others.

    The chunks enter in the order of their numbers. After each, every aggregation goes as far as the chunks before it
    allow (the wave front), the last ones first to reach the next stage. Every aggregation takes the chunks in order,
    so that sums over chunks do not depend on the number of stages; the backward pass is the forward pass in reverse.

    Args:
        needs: needs[m] are the chunks with in-neighbours of chunk m; m itself may be left out.
        aggregations: how many every stage has, 0 or more.

    Raises:
        ValueError: if there is no chunk, no stage, or a number is out of range.
    """
    check_positive("exact_schedule", num_stages=len(aggregations), num_chunks=len(needs))
    _check_needs(needs, aggregations)
    last = [max(m, *chunks) if chunks else m for m, chunks in enumerate(needs)]
    stages: list[list[Action]] = [[] for _ in aggregations]
    for m, stage, piece in _wave_front(last, aggregations):
        forward = list(forward_actions(m, stage, len(aggregations)))
        if piece > 0 and stage > 0:
            del forward[0]  # received before the first piece
        if piece < aggregations[stage] and stage < len(aggregations) - 1:
            del forward[-1]  # sent after the last
        stages[stage] += [replace(a, piece=piece) if a.kind is Kind.FORWARD else a for a in forward]
    programs = tuple((*ran, *(_reversed(a) for a in ran[::-1]), Action(Kind.STEP)) for ran in stages)
    return Schedule(
        "exact", len(aggregations), len(needs), False, programs, tuple(map(tuple, needs)), tuple(aggregations)
    )


def _wave_front(last: Sequence[int], aggregations: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(chunk, stage, piece) in an order in which piece p of chunk m follows piece p - 1 of chunks 0 to last[m]."""
    levels = [(stage, piece) for stage, count in enumerate(aggregations) for piece in range(count + 1)]
    done = [0] * len(levels)
    for entering in range(len(last)):
        done[0] = entering + 1
        yield entering, *levels[0]
        for level in range(1, len(levels)):
            while (m := done[level]) < done[level - 1]:
                if levels[level][1] > 0 and last[m] >= done[level - 1]:
                    break
                done[level] += 1
                yield m, *levels[level]


def _reversed(action: Action) -> Action:
    mirrored = {
        Kind.RECEIVE_ACTIVATION: Kind.SEND_GRADIENT,
        Kind.FORWARD: Kind.BACKWARD,
        Kind.SEND_ACTIVATION: Kind.RECEIVE_GRADIENT,
    }
    return replace(action, kind=mirrored[action.kind])


def _check_needs(needs: Sequence[Sequence[int]], aggregations: Sequence[int]) -> None:
    if any(not 0 <= chunk < len(needs) for chunks in needs for chunk in chunks):
        raise ValueError(f"exact_schedule: needs must hold chunks in [0, {len(needs)}), got {needs}")
    if min(aggregations) < 0:
        raise ValueError(f"exact_schedule: aggregations must not be negative, got {list(aggregations)}")
