"""SharedMemoryQueue between processes: bytes and batches per second, and 1000 killed producers.

Of small batches the slower side sets the pace: put() took 9 to 10 us, get() 5, nearly all of it Python around the slot.
Looking up the layout once, with its offsets, and asking the tensor fewer questions made 48 k batches/s 61 k.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gossamer.graph import SharedMemoryQueue

import harness
import killed_producers

CAPABILITY = "Sampling"
FORK = multiprocessing.get_context("fork")
ROUNDS = 5


def send(put: Callable[[Any], Any], batch: dict[str, torch.Tensor], count: int) -> None:
    torch.set_num_threads(1)
    for _ in range(count):
        put(batch)
    signal.pause()  # torch's queue hands out files that this process must serve: the other side ends it


def transfer(queue: Any, put: Callable[[Any], Any], batch: dict[str, torch.Tensor], count: int, warmup: int) -> float:
    """Seconds per batch from one process to another, wall clock; the first ``warmup`` batches are not counted."""
    process = FORK.Process(target=send, args=(put, batch, warmup + count), daemon=True)
    process.start()
    try:
        for _ in range(warmup):
            queue.get(timeout=60)
        start = time.perf_counter()
        for _ in range(count):
            queue.get(timeout=60)
        return (time.perf_counter() - start) / count
    finally:
        process.kill()
        process.join()


def _put_new(queue: Any, batch: dict[str, torch.Tensor]) -> None:
    queue.put({name: tensor.clone() for name, tensor in batch.items()})


def against_torch(num_bytes: int, num_slots: int, count: int, peer_count: int) -> dict[str, list[float]]:
    """Seconds per batch of ours and of torch.multiprocessing.Queue, taking turns.

    torch's queue moves a tensor into shared memory once and then only passes its handle on: it gets a new one for every
    batch, as a sampler makes it.
    """
    batch = {"x": torch.zeros(num_bytes // 4)}
    times: dict[str, list[float]] = {"ours": [], "torch": []}
    for _ in range(ROUNDS):
        ours = SharedMemoryQueue(num_slots, num_bytes + 4096)
        times["ours"].append(transfer(ours, ours.put, batch, count, 2 * num_slots))
        peer = torch.multiprocessing.get_context("fork").Queue(num_slots)
        put_new = partial(_put_new, peer)
        times["torch"].append(transfer(peer, put_new, batch, peer_count, 2))
        del ours, peer
    return {name: sorted(samples) for name, samples in times.items()}


def rate(times: dict[str, list[float]], amount: float) -> harness.Figure:
    """The median of ours; the detail has the range and torch's."""
    middle = ROUNDS // 2
    ours, peer = ([amount / t for t in times[name]] for name in ("ours", "torch"))
    detail = f"{ours[-1]:.3g} .. {ours[0]:.3g}; torch.multiprocessing.Queue {peer[middle]:.3g}"
    return harness.Figure(ours[middle], detail)


@harness.goal(CAPABILITY, "queue between two processes, 33 MB batches", at_least=4, unit="GB/s")
def queue_bandwidth() -> harness.Figure:
    return rate(against_torch(33_000_000, 4, 100, 20), 33e6 / 1e9)


@harness.goal(CAPABILITY, "queue between two processes, 4 KB batches", at_least=50, unit="k batches/s")
def queue_messages() -> harness.Figure:
    return rate(against_torch(4096, 64, 50_000, 2000), 1e-3)


def mapped_queues() -> int:
    """Segments of queues that this process still maps."""
    with open(f"/proc/{os.getpid()}/maps") as maps:
        return sum("gossamer-queue" in line for line in maps)


@harness.goal(CAPABILITY, "queue, 1000 producers killed: torn batches, lost slots, segments left", at_most=0, unit="")
def queue_kills() -> harness.Figure:
    before = mapped_queues()
    found = killed_producers.survive(1000)
    num_left = mapped_queues() - before
    bad = found.num_torn + found.num_lost + num_left + (found.longest > 1)
    detail = f"longest wait {found.longest * 1e3:.0f} ms (at most 1 s), {found.num_recovered} slots recovered"
    return harness.Figure(bad, detail)


if __name__ == "__main__":
    harness.main()
