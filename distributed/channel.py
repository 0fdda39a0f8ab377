"""All traffic between workers: collected, committed and counted in this one place."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gossamer.distributed.codec import RowCodec
from gossamer.distributed.counters import Counters
from gossamer.distributed.grid import Grid

__all__ = ["Channel", "WorkerLost", "first_line", "lost_connection"]

T = TypeVar("T")
_MAX_SENDS_IN_FLIGHT = 4
_BROKEN = re.compile(r"gloo|nccl|connection|broken pipe", re.IGNORECASE)


class WorkerLost(RuntimeError):
    """Another worker left the job; the message names it."""


def first_line(error: BaseException) -> str:
    """What an error says; torch's go on with a stack of its own."""
    return (str(error).splitlines() or [""])[0]


def lost_connection(error: RuntimeError) -> str | None:
    """The first line of an error of a broken connection; None for any other error."""
    reason = first_line(error)
    return reason if _BROKEN.search(reason) else None


class _Pending(NamedTuple):
    peer: int
    handles: list[dist.Work | None]
    tensors: tuple[Tensor, ...]  # kept alive until the transfer is over


class Channel:
    """Transfers of one worker: with the same way of the two neighbouring stages, and with the other ways of its stage.

    Sends return at once. Receives are posted ahead of their use with ``expect`` and finished with ``receive``, so
    that a transfer overlaps with the computation before it. One process group per direction keeps the two
    directions from waiting for each other; one more serves the ways. With a ``codec`` states and gradients travel
    encoded between stages, and are counted so.
    """

    def __init__(self, grid: Grid, device: torch.device) -> None:
        self.grid = grid
        self.device = device
        self.codec: RowCodec | None = None
        self._counters = Counters()
        several = grid.num_workers > 1
        self._groups = {step: dist.new_group() if several else None for step in (+1, -1, 0)}
        self._sends: deque[_Pending] = deque()
        self._receives: dict[tuple[int, int], tuple[_Pending, tuple[Tensor, ...]]] = {}

    def send(self, tensors: Sequence[Tensor], step: int) -> None:
        """Start sending to the next (+1) or the previous (-1) stage."""
        tensors = tuple(t.detach().contiguous() for t in tensors)
        if self.codec is not None:
            tensors = self.codec.encode(tensors)
        peer, group = self.grid.rank_of(self.grid.stage + step, self.grid.way), self._groups[step]
        with self.naming_lost_worker(peer):
            handles = [dist.isend(t, peer, group=group, tag=i) for i, t in enumerate(tensors)]
        self._sends.append(_Pending(peer, handles, tensors))
        while len(self._sends) > _MAX_SENDS_IN_FLIGHT:
            self._finish(self._sends.popleft())
        self._counters.layer_level += sum(t.numel() * t.element_size() for t in tensors)

    def expect(self, key: int, empty: Callable[[], tuple[Tensor, ...]], step: int) -> None:
        """Post the receive of message ``key`` that travels in direction ``step`` into new tensors from ``empty``."""
        peer, group = self.grid.rank_of(self.grid.stage - step, self.grid.way), self._groups[step]
        tensors = like = empty()
        if self.codec is not None:
            tensors = self.codec.buffers(like)
        with self.naming_lost_worker(peer):
            handles = [dist.irecv(t, peer, group=group, tag=i) for i, t in enumerate(tensors)]
        self._receives[key, step] = _Pending(peer, handles, tensors), like

    def receive(self, key: int, step: int) -> tuple[Tensor, ...]:
        """Wait for message ``key``."""
        pending, like = self._receives.pop((key, step))
        self._finish(pending)
        return pending.tensors if self.codec is None else self.codec.decode(pending.tensors, like)

    def flush(self) -> None:
        """Wait until every send is over."""
        while self._sends:
            self._finish(self._sends.popleft())

    def swap(self, leaving: Sequence[Tensor], arriving: Sequence[Tensor]) -> Callable[[], None]:
        """Start to exchange rows with the other ways of this stage; empty tensors do not travel.

        Args:
            leaving: what each way shall get; this worker's own entry is not used.
            arriving: where each way's rows go; this worker's own entry is not used.

        Returns:
            What waits until all of it is over.
        """
        group, pending = self._groups[0], []
        for way, (out, into) in enumerate(zip(leaving, arriving)):
            peer = self.grid.rank_of(self.grid.stage, way)
            if way == self.grid.way:
                continue
            with self.naming_lost_worker(peer):
                if into.numel() > 0:
                    pending.append(_Pending(peer, [dist.irecv(into, peer, group=group)], (into,)))
                if out.numel() > 0:
                    pending.append(_Pending(peer, [dist.isend(out, peer, group=group)], (out,)))
                    self._counters.graph_level += out.numel() * out.element_size()

        def wait() -> None:
            for each in pending:
                self._finish(each)

        return wait

    def count_weight_sync(self, num_bytes: int) -> None:
        """Count the weights or gradients that a backend has sent for this worker."""
        self._counters.weight_sync += num_bytes

    def take_counters(self) -> Counters:
        """Bytes that this worker has sent since the last call."""
        taken, self._counters = self._counters, Counters()
        return taken

    def sum_over_workers(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over all workers (control traffic, not counted)."""
        if self.grid.num_workers == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        with self.naming_lost_worker():
            dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: T) -> list[T]:
        """What every worker has, in the order of the ranks (control traffic, not counted)."""
        found: list[T] = [value] * self.grid.num_workers
        if self.grid.num_workers > 1:
            with self.naming_lost_worker():
                dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait until all workers are here."""
        self.sum_over_workers([0.0])

    def _finish(self, pending: _Pending) -> None:
        with self.naming_lost_worker(pending.peer):
            for handle in pending.handles:
                if handle is not None:  # None in a process outside the group
                    handle.wait()

    @contextmanager
    def naming_lost_worker(self, peer: int | None = None) -> Iterator[None]:
        """Turn the error of a broken connection into one that names the worker at its other end."""
        try:
            yield
        except WorkerLost:
            raise
        except RuntimeError as error:
            reason = lost_connection(error)
            if reason is None:
                raise
            if peer is None and self.grid.num_workers == 2:
                peer = 1 - self.grid.rank
            who = "another worker" if peer is None else f"worker {peer} ({self.grid.name(peer)})"
            raise WorkerLost(
                f"{self.grid.name(self.grid.rank)}: lost the connection to {who}; it died or left the job. "
                f"Resume from the last checkpoint. ({reason})"
            ) from error
