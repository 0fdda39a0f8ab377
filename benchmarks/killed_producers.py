"""Kill processes that write to a SharedMemoryQueue, and see what a reader meets."""

from __future__ import annotations

import multiprocessing
import random
import time
from typing import NamedTuple

import torch

from gossamer.graph import SharedMemoryQueue

FORK = multiprocessing.get_context("fork")
NUM_SLOTS = 3


class Survival(NamedTuple):
    longest: float  # seconds that the reader waited for a batch
    num_torn: int  # batches that are not what one producer put
    num_lost: int  # slots that are not free at the end
    num_recovered: int  # slots taken back from the dead


def write_patterns(queue: SharedMemoryQueue, number: int) -> None:
    """Batches of 256 KiB whose elements all equal the batch's number, for ever."""
    torch.set_num_threads(1)
    x = torch.empty(1 << 15, dtype=torch.int64)
    while True:
        number += 1
        queue.put({"x": x.fill_(number), "number": torch.tensor(number)})


def survive(num_kills: int) -> Survival:
    """Kill producers at random moments of their first 20 ms, beside one that lives."""
    queue = SharedMemoryQueue(NUM_SLOTS, 1 << 19)
    generator, longest, num_torn = random.Random(0), 0.0, 0
    steady = FORK.Process(target=write_patterns, args=(queue, 0), daemon=True)
    steady.start()
    try:
        for _ in range(num_kills):
            victim = FORK.Process(target=write_patterns, args=(queue, 1 << 32), daemon=True)
            victim.start()
            stop = time.monotonic() + generator.uniform(0, 0.02)
            while victim.is_alive():
                if time.monotonic() > stop:
                    victim.kill()
                start = time.monotonic()
                batch = queue.get(timeout=10)
                longest = max(longest, time.monotonic() - start)
                num_torn += not bool((batch["x"] == batch["number"]).all())
                del batch
            victim.join()
    finally:
        steady.kill()
        steady.join()
    queue.recover()
    while queue.counts()["ready"]:
        queue.get(timeout=0)
    counts = queue.counts()
    return Survival(longest, num_torn, NUM_SLOTS - counts["free"], counts["recovered"])
