"""SampleLoader: batches of sampled neighbourhoods, made ahead by worker processes and read without a copy."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.batch_layout import layout_of
from gossamer.graph.csr import CSR
from gossamer.graph.loader_source import BatchSource, Plan, SampledBatch, unpack
from gossamer.graph.loader_worker import Worker
from gossamer.graph.sampling import check_fanout, check_seeds, neighbor_sample

__all__ = ["LoaderProgress", "SampleLoader"]

_SMALLEST_SLOT = 1 << 17  # room for the report of an error
_START_METHODS = ("fork", "spawn", "forkserver")


@dataclass(frozen=True)
class LoaderProgress:
    """How far a loader is: finished epochs, batches of this one, edges sampled, workers that were started again."""

    epoch: int
    batch: int
    num_batches: int
    num_edges: int
    num_restarts: int


class SampleLoader:
    """Iterates over batches of seeds with their sampled neighbourhoods and features, one epoch per ``for`` loop.

    A loop that is left before its last batch has not finished its epoch: the next one begins that epoch anew.
    Batch i of an epoch is a function of (seed, epoch, i): the same bytes for any number of workers and threads, after a
    resumption (``state_dict``), and when a worker was killed, which costs the time to start it again. Workers write
    their batches, features included, into shared memory, and the tensors of a batch lie there until they are dropped;
    who keeps many batches gets copies. ``fanouts`` may be set at any time and counts from the next batch on: what was
    made ahead with other fan-outs is made again.

    Args:
        graph: in-neighbours in CSR form, on the CPU.
        seeds: [num_seeds], int64 or int32, node ids in [0, graph.num_nodes).
        fanouts: as for ``neighbor_sample``.
        batch_size: seeds per batch, at least 1; the last batch may be smaller.
        seed: random seed.
        shuffle: draw a new order of the seeds in every epoch.
        num_workers: processes that make batches ahead; 0 makes them here, when they are asked for.
        seed_time: [num_seeds], int64, as for ``neighbor_sample``.
        features: [graph.num_nodes, ...] tensors by name; every batch gets the rows of its nodes.
        transform: called in the worker with the tensors of a batch by name (those of the subgraph and the features,
            and seed_index, epoch and fanouts); the tensors that it returns are added to, or replace, the features.
        prefetch: batches made ahead per worker, at least 1.
        threads: torch threads per worker; 1 with ``fork``, as the thread pool of OpenMP does not survive a fork.
        rank, world_size: this loader gives batches rank, rank + world_size, ...; an incomplete last round is left out.
        start_method: of the workers, ``fork``, ``spawn`` or ``forkserver``.
        options: ``replace``, ``weighted``, ``temporal``, ``window``, ``node_time`` and ``disjoint`` of
            ``neighbor_sample``.

    Raises:
        ValueError: if an argument is out of its range.
        RuntimeError: while iterating, if a batch cannot be made, with the worker's traceback; if one batch kills its
            worker again and again; if a newer ``for`` loop has taken over, or the loader was closed.

    Source: LiGNN (Borisyuk et al. 2024), section on the shared-memory queue.
    """

    @typed
    def __init__(
        self,
        graph: CSR,
        seeds: Tensor,
        fanouts: Sequence[float],
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        num_workers: int = 0,
        seed_time: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
        transform: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
        prefetch: int = 4,
        threads: int = 1,
        rank: int = 0,
        world_size: int = 1,
        start_method: str = "fork",
        **options: Any,
    ) -> None:
        _check_counts(batch_size=batch_size, prefetch=prefetch, threads=threads, world_size=world_size)
        if num_workers < 0:
            raise ValueError(f"SampleLoader: num_workers must be at least 0, got {num_workers}")
        if not 0 <= rank < world_size:
            raise ValueError(f"SampleLoader: rank must be in [0, {world_size}), got {rank}")
        if start_method not in _START_METHODS:
            raise ValueError(f"SampleLoader: start_method must be one of {_START_METHODS}, got {start_method!r}")
        if threads > 1 and start_method == "fork":
            raise ValueError(f"SampleLoader: threads must be 1 for start_method='fork', got {threads}")
        seeds = check_seeds("SampleLoader", seeds, graph.num_nodes)
        if seed_time is not None and seed_time.shape != seeds.shape:
            raise ValueError(
                f"SampleLoader: seed_time must be one integer for each of {seeds.numel()} seeds, "
                f"got {list(seed_time.shape)}"
            )
        self.fanouts = fanouts
        neighbor_sample(  # of no seeds: what it refuses is refused now, not in a worker
            graph, seeds[:0], self.fanouts, seed=seed, seed_time=None if seed_time is None else seed_time[:0], **options
        )
        self._source = BatchSource(
            graph, seeds, batch_size, seed, shuffle, rank, world_size,
            options, seed_time, _checked_features(features or {}, graph.num_nodes), transform,
        )  # fmt: skip
        self.num_workers = num_workers
        self._worker_options = (prefetch + 1, threads, start_method)
        self._workers: list[Worker] = []
        self._finalizer = weakref.finalize(self, _close, self._workers)
        self._epoch = self._next = self._first = self._version = self._num_edges = 0

    @property
    def fanouts(self) -> list[float]:
        """Edges kept per node and hop."""
        return list(self._fanouts)

    @fanouts.setter
    def fanouts(self, value: Sequence[float]) -> None:
        self._fanouts = tuple(check_fanout("SampleLoader", fanout) for fanout in value)

    def __len__(self) -> int:
        total = -(-self._source.seeds.numel() // self._source.batch_size)
        return total if self._source.world_size == 1 else total // self._source.world_size

    def __iter__(self) -> Iterator[SampledBatch]:
        first, self._first = self._first, 0
        self._next = first
        plan = self._new_plan()
        try:
            while self._next < len(self):
                if plan.fanouts != self._fanouts:
                    plan = self._new_plan()
                index = self._next
                batch = unpack(self._take(plan, index))
                self._next = index + 1
                self._num_edges += batch.subgraph.row.numel()
                yield batch
                del batch  # its memory is the user's alone
                if plan.version != self._version:
                    raise RuntimeError(
                        "SampleLoader: only the newest loop may go on, got a next step of an earlier one"
                    )
        finally:
            if self._next == len(self) and plan.version == self._version:  # also if the loop was left at its last batch
                self._epoch += 1
                self._next = 0

    def progress(self) -> LoaderProgress:
        """How far the loader is."""
        restarts = sum(worker.num_restarts for worker in self._workers)
        return LoaderProgress(self._epoch, self._next, len(self), self._num_edges, restarts)

    def state_dict(self) -> dict[str, Any]:
        """What a new loader with the same arguments needs to go on after the last batch that was given out."""
        return {"epoch": self._epoch, "batch": self._next, "fanouts": self.fanouts, "made_with": self._made_with()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; the number of workers may differ."""
        if missing := {"epoch", "batch", "fanouts", "made_with"} - state.keys():
            raise ValueError(f"SampleLoader.load_state_dict: state must hold {sorted(missing)}, got {sorted(state)}")
        if state["made_with"] != self._made_with():
            raise ValueError(
                f"SampleLoader.load_state_dict: state must be that of a loader with {self._made_with()}, "
                f"got {state['made_with']}"
            )
        if not 0 <= state["batch"] <= len(self):
            raise ValueError(f"SampleLoader.load_state_dict: batch must be in [0, {len(self)}], got {state['batch']}")
        self.fanouts = state["fanouts"]
        self._epoch, self._next = state["epoch"], state["batch"]
        self._first = self._next

    def close(self) -> None:
        """End the workers; tensors that are still in use stay valid. A new loop starts them again."""
        _close(self._workers)

    def __enter__(self) -> SampleLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _made_with(self) -> dict[str, Any]:
        source = self._source
        names = ("batch_size", "seed", "shuffle", "rank", "world_size")
        return {name: getattr(source, name) for name in names} | {"num_seeds": source.seeds.numel()}

    def _new_plan(self) -> Plan:
        self._version += 1
        plan = Plan(self._version, self._epoch, self._next, len(self), self._fanouts)
        if self.num_workers and not self._workers and plan.start < plan.stop:
            self._start_workers(plan)
        for worker in self._workers:
            worker.follow(plan)
        return plan

    def _start_workers(self, plan: Plan) -> None:
        """Make one batch here, to learn the size of batches; then start."""
        num_bytes = layout_of(self._source.make(plan, plan.start)).num_bytes
        slot_bytes = max(num_bytes + num_bytes // 2, _SMALLEST_SLOT)
        num_slots, threads, start_method = self._worker_options
        for number in range(self.num_workers):
            self._workers.append(
                Worker(self._source, number, self.num_workers, num_slots, slot_bytes, threads, start_method)
            )

    def _take(self, plan: Plan, index: int) -> dict[str, Tensor]:
        if not self.num_workers:
            return self._source.make(plan, index)
        if not self._workers:
            raise RuntimeError("SampleLoader: the loader must be open until its loop ends, got one that was closed")
        return self._workers[index % self.num_workers].get(index)


def _close(workers: list[Worker]) -> None:
    while workers:
        workers.pop().close()


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"SampleLoader: {name} must be at least 1, got {value}")


def _checked_features(features: Mapping[str, Tensor], num_nodes: int) -> dict[str, Tensor]:
    for name, rows in features.items():
        if not isinstance(rows, Tensor):
            raise TypeError(f"SampleLoader: features[{name!r}] must be a tensor, got {type(rows).__name__}")
        if rows.dim() == 0 or rows.shape[0] != num_nodes or rows.device.type != "cpu":
            raise ValueError(
                f"SampleLoader: features[{name!r}] must be [{num_nodes}, ...] on the CPU, "
                f"got {list(rows.shape)} on {rows.device}"
            )
    return {name: rows.detach() for name, rows in features.items()}
