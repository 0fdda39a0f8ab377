"""SharedMemoryQueue: batches of tensors between processes, written in place and read without a copy."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from multiprocessing import reduction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph import queue_name
from gossamer.graph.batch_layout import Layout, layout_of, place, read_layout

if TYPE_CHECKING:
    from gossamer._host import Outcome, Slot

__all__ = ["SharedMemoryQueue"]


class SharedMemoryQueue:
    """A queue of batches (dictionaries of tensors) in shared memory, for any number of producers and consumers.

    A producer writes into a slot; a consumer gets tensors that lie in that slot, which is free again when the last of
    them is gone. Batches of one producer are taken in its order. A process may be killed at any moment: a batch that
    it was writing was never visible, its slots are found and freed within 0.1 s, and no lock can stay held. A batch
    that a consumer had taken ends with it.

    The memory has no name in a file system (memfd): the kernel takes it back when the last process that uses it ends,
    and the size of /dev/shm does not matter. Pages are taken when they are first written. Linux only.

    Give the queue to child processes as an argument (fork, spawn or forkserver), or name it and call ``attach``.

    Args:
        num_slots: batches in the queue, being written, waiting or being read; in [1, 65536].
        slot_bytes: size of the largest batch, with 64 bytes per tensor and a short description of them, at least 1.
        name: under which other processes of this user attach; free again when the creator ends.

    Raises:
        ValueError: if an argument is out of its range, or the name is in use.
        MemoryError: if the slots could not all be filled with the memory that is left.
    """

    @typed
    def __init__(self, num_slots: int, slot_bytes: int, *, name: str | None = None) -> None:
        if not 1 <= num_slots <= 65536:
            raise ValueError(f"SharedMemoryQueue: num_slots must be in [1, 65536], got {num_slots}")
        if slot_bytes < 1:
            raise ValueError(f"SharedMemoryQueue: slot_bytes must be at least 1, got {slot_bytes}")
        if (free := free_memory()) is not None and num_slots * slot_bytes > free:
            raise MemoryError(
                f"SharedMemoryQueue: num_slots * slot_bytes must be at most the free memory, {free} bytes, "
                f"got {num_slots} * {slot_bytes}"
            )
        self._segment = _host().Segment.create(num_slots, slot_bytes)
        self._server = None if name is None else queue_name.serve(name, self._segment.file)

    @classmethod
    def attach(cls, name: str, *, timeout: float = 5.0) -> SharedMemoryQueue:
        """The queue that a running process of this user created under this name."""
        return cls._of(queue_name.receive(name, timeout))

    @classmethod
    def _of(cls, file: int) -> SharedMemoryQueue:
        self = cls.__new__(cls)
        self._segment, self._server = _host().Segment.open(file), None
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (reduction.DupFd(self._segment.file),)

    @property
    def num_slots(self) -> int:
        """Batches that the queue has room for."""
        return self._segment.num_slots

    @property
    def slot_bytes(self) -> int:
        """Size of the largest batch."""
        return self._segment.slot_bytes

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called, in any process."""
        return self._segment.closed

    @property
    def orphaned(self) -> bool:
        """Whether the process that created the queue has ended."""
        return self._segment.orphaned

    def counts(self) -> dict[str, int]:
        """Slots that are free, writing, ready and reading now; batches put, taken, and lost with their processes."""
        return self._segment.counts()

    def put(self, batch: Mapping[str, Tensor], timeout: float | None = None) -> None:
        """Copy a batch into a free slot; waits while there is none.

        Args:
            batch: dense CPU tensors by name, of any dtype and shape.
            timeout: seconds to wait at most; None waits as long as the creator lives.

        Raises:
            ValueError: if the batch is larger than a slot.
            TypeError: if a name is no string, or a tensor is not dense, is quantized or not on the CPU.
            TimeoutError: if no slot became free in time.
            EOFError: if the queue is closed, or its creator has ended and no slot is free.
        """
        tensors = [_checked(name, tensor) for name, tensor in batch.items()]
        layout = layout_of(batch)
        self._check_size(layout)
        outcome = self._segment.put(
            layout.head,
            [tensor.data_ptr() for tensor in tensors],
            layout.offsets,
            layout.sizes,
            layout.num_bytes,
            _seconds("put", timeout),
        )
        if outcome != _host().Outcome.slot:
            raise self._failure("put", outcome, timeout)

    @contextlib.contextmanager
    def write(
        self, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], timeout: float | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Tensors in a free slot to write a batch to in place; leaving the block puts it, an exception drops it.

        The tensors must not be used after the block.

        Args:
            tensors: dtype and shape by name.
            timeout: as for ``put``, which also names the errors.
        """
        layout = place(tuple(_described(name, *described) for name, described in tensors.items()))
        self._check_size(layout)
        outcome, slot = self._segment.claim(_seconds("write", timeout))
        if slot is None:
            raise self._failure("write", outcome, timeout)
        try:
            slot.write(0, layout.head)
            yield _views(slot, layout)
        except BaseException:
            slot.release()
            raise
        slot.commit(layout.num_bytes)

    def get(self, timeout: float | None = None) -> dict[str, Tensor]:
        """The oldest batch, as tensors in the slot: no copy. The slot is free again when all of them are gone.

        Args:
            timeout: seconds to wait at most; None waits as long as the creator lives.

        Raises:
            TimeoutError: if no batch came in time.
            EOFError: if the queue is closed and empty, or its creator has ended and it is empty.
            RuntimeError: if every slot is held by batches that this process still uses, for a second.
        """
        outcome, slot = self._segment.take(_seconds("get", timeout))
        if slot is None:
            raise self._failure("get", outcome, timeout)
        return _views(slot, read_layout(memoryview(slot)))

    def recover(self) -> int:
        """Free the slots of processes that have ended, and return their number; who waits does so by itself."""
        return self._segment.recover()

    def close(self) -> None:
        """No more batches: ``put`` raises EOFError from now on, ``get`` when the queue is empty."""
        self._segment.close()
        if self._server is not None:
            self._server.close()

    def __enter__(self) -> SharedMemoryQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SharedMemoryQueue(num_slots={self.num_slots}, slot_bytes={self.slot_bytes}, {self.counts()})"

    def _check_size(self, layout: Layout) -> None:
        if layout.num_bytes > self.slot_bytes:
            raise ValueError(
                f"SharedMemoryQueue: batch must be at most slot_bytes = {self.slot_bytes}, got {layout.num_bytes}"
            )

    def _failure(self, function: str, outcome: Outcome, timeout: float | None) -> Exception:
        kinds, where = _host().Outcome, f"SharedMemoryQueue.{function}"
        if outcome == kinds.timeout:
            return TimeoutError(f"{where}: timeout must be longer for this queue, got {timeout} s; {self.counts()}")
        if outcome == kinds.closed:
            return EOFError(f"{where}: queue must be open, got a closed one")
        if outcome == kinds.orphaned:
            return EOFError(f"{where}: the process that created the queue must be running, got one that has ended")
        return RuntimeError(
            f"{where}: fewer batches must be in use than there are slots, got {self.num_slots} that this process still "
            "uses; drop or clone some, or take more slots"
        )


def free_memory() -> int | None:
    """Bytes that this process may still take, by the system and its control group; None if neither tells."""
    limits = []
    with contextlib.suppress(OSError, ValueError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(lines["MemAvailable"].split()[0]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(limits, default=None)


@lru_cache
def _host() -> Any:
    try:
        import gossamer._host as host
    except ImportError:
        raise OSError("SharedMemoryQueue: the system must be Linux, with gossamer built on it") from None
    return host


def _reopen(file: Any) -> SharedMemoryQueue:
    return SharedMemoryQueue._of(file.detach())


def _seconds(function: str, timeout: float | None) -> float:
    if timeout is None:
        return math.inf
    if not timeout >= 0:
        raise ValueError(f"SharedMemoryQueue.{function}: timeout must be None or at least 0, got {timeout}")
    return timeout


def _check_name(function: str, name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"SharedMemoryQueue.{function}: names must be strings, got {name!r}")


def _described(name: str, dtype: torch.dtype, shape: Sequence[int]) -> tuple[str, torch.dtype, tuple[int, ...]]:
    """What ``write`` is asked for, checked."""
    _check_name("write", name)
    if not isinstance(dtype, torch.dtype) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(
            f"SharedMemoryQueue.write: tensors[{name!r}] must be a dtype and sizes of at least 0, "
            f"got {dtype!r} and {shape}"
        )
    return name, dtype, tuple(shape)


def _checked(name: str, tensor: Tensor) -> Tensor:
    _check_name("put", name)
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or not tensor.is_cpu:
        got = f"{tensor.layout} on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"SharedMemoryQueue.put: batch[{name!r}] must be a dense tensor on the CPU, got {got}")
    if tensor.is_quantized:  # its bytes say nothing without their scale
        raise TypeError(f"SharedMemoryQueue.put: batch[{name!r}] must not be quantized, got {tensor.dtype}")
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _views(slot: Slot, layout: Layout) -> dict[str, Tensor]:
    """Tensors in a slot; each keeps the slot."""
    views = {}
    for name, dtype, shape, count, offset in layout.tensors:
        if count == 0:
            views[name] = torch.empty(shape, dtype=dtype)
            continue
        view = torch.frombuffer(slot, dtype=dtype, count=count, offset=offset)
        views[name] = view if len(shape) == 1 else view.view(shape)
    return views
