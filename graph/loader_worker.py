"""The worker processes of SampleLoader: each makes every num_workers-th batch and puts it into a queue of its own."""

from __future__ import annotations

import signal
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch

from gossamer.graph.batch_layout import place
from gossamer.graph.loader_source import Batch, BatchSource, Plan
from gossamer.graph.queue import SharedMemoryQueue

__all__ = ["Worker"]

_LOOK = 0.1  # seconds between two looks whether the other process is alive
_MAX_RESTARTS = 5  # for one batch
_ERROR_BYTES = 1 << 16


class Worker:
    """A process, its queue and the pipe with its orders, from the side of the loader."""

    def __init__(
        self,
        source: BatchSource,
        number: int,
        num_workers: int,
        num_slots: int,
        slot_bytes: int,
        threads: int,
        context: str,
    ) -> None:
        self.source, self.number, self.num_workers, self.threads = source, number, num_workers, threads
        self._context: Any = torch.multiprocessing.get_context(context)
        self._queue = SharedMemoryQueue(num_slots, slot_bytes)
        self.num_restarts = 0
        self._failures = 0  # restarts since the last batch
        self._start(None)

    def follow(self, plan: Plan) -> None:
        """Make the batches of this plan from now on."""
        self._plan = plan
        try:
            self._orders.send(plan)
        except OSError:  # it has ended: get() starts it again
            return

    def get(self, index: int) -> Batch:
        """Batch ``index`` of the plan; a worker that was killed is started again from there."""
        while True:
            try:
                batch = self._queue.get(timeout=_LOOK)
            except TimeoutError:
                if not self.process.is_alive() and not self._queue.counts()["ready"]:
                    self._restart(index)
                continue
            if "_error" in batch:
                raise RuntimeError(
                    f"SampleLoader: worker {self.number} failed\n" + bytes(batch["_error"].tolist()).decode()
                )
            if batch["_plan"].tolist() != [self._plan.version, index]:
                continue
            if "_needed_bytes" in batch:
                self._enlarge(int(batch["_needed_bytes"]), index)
                continue
            self._failures = 0
            counts = self._queue.counts()
            if counts["reading_here"] >= self._queue.num_slots - 1:  # the user keeps them: leave the worker its slots
                return {name: tensor.clone() for name, tensor in batch.items()}
            return batch

    def close(self) -> None:
        self._queue.close()
        self._orders.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()

    def _start(self, plan: Plan | None) -> None:
        orders, self._orders = self._context.Pipe(duplex=False)
        arguments = (self._queue, orders, self.source, self.number, self.num_workers, self.threads)
        self.process = self._context.Process(target=work, args=arguments, daemon=True)
        self.process.start()
        orders.close()
        if plan is not None:
            self.follow(plan)

    def _restart(self, index: int) -> None:
        self._failures += 1
        if self._failures > _MAX_RESTARTS:
            raise RuntimeError(
                f"SampleLoader: worker {self.number} must survive batch {index}, "
                f"got exit code {self.process.exitcode} {self._failures} times"
            )
        self.num_restarts += 1
        self._orders.close()
        self._start(self._plan._replace(start=index))

    def _enlarge(self, needed_bytes: int, index: int) -> None:
        self.close()
        self._queue = SharedMemoryQueue(self._queue.num_slots, needed_bytes + needed_bytes // 2)
        self._start(self._plan._replace(start=index))


def work(
    queue: SharedMemoryQueue, orders: Connection, source: BatchSource, number: int, num_workers: int, threads: int
) -> None:
    """Follow orders until the process that gives them ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the loader's process decides
    torch.set_num_threads(threads)
    plan, index = None, 0
    try:
        while not queue.orphaned:
            plan_is_done = plan is None or index >= plan.stop
            if orders.poll(_LOOK if plan_is_done else 0):
                plan = orders.recv()
                index = plan.start + (number - plan.start) % num_workers
            elif plan is not None and not plan_is_done:
                _produce(queue, source, plan, index)
                index += num_workers
    except EOFError:  # the loader was closed, or its process has ended
        return


def _produce(queue: SharedMemoryQueue, source: BatchSource, plan: Plan, index: int) -> None:
    try:
        batch = source.sample(plan, index) if source.transform is None else source.make(plan, index)
        shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()}
        gathered = source.features if source.transform is None else {}
        num_nodes = batch["node"].numel()
        shapes |= {f"x:{name}": (rows.dtype, (num_nodes, *rows.shape[1:])) for name, rows in gathered.items()}
        needed = place(tuple((name, *shape) for name, shape in shapes.items())).num_bytes
    except Exception:  # whatever the user's transform raises must reach the consumer, who would wait for this batch
        error = traceback.format_exc().encode()[-_ERROR_BYTES:]
        return queue.put({"_error": torch.frombuffer(bytearray(error), dtype=torch.uint8)})
    if needed > queue.slot_bytes:
        return queue.put({"_plan": batch["_plan"], "_needed_bytes": torch.tensor(needed)})
    with queue.write(shapes) as out:
        for name, tensor in batch.items():
            out[name].copy_(tensor)
        for name, rows in gathered.items():
            torch.index_select(rows, 0, batch["node"], out=out[f"x:{name}"])
