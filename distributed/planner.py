"""Pipeline, graph parallelism or hybrid: bytes and seconds of every way to use some workers, and the best of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gossamer._arguments import typed
from gossamer.distributed.calibration import Calibration, calibrate
from gossamer.distributed.dependencies import spread_in_order
from gossamer.distributed.exact_schedule import exact_schedule
from gossamer.distributed.schedule import Costs, Schedule, gnnpipe, simulate
from gossamer.distributed.stages import split_layers
from gossamer.distributed.volumes import NUMBER, graph_level_bytes, layer_level_bytes, weight_sync_bytes
from gossamer.graph import CSR, halo, partition

__all__ = ["Candidate", "ParallelPlan", "plan_kind", "plan_parallelism"]

_CHUNKS_PER_STAGE = (1, 2, 4, 8)
_EXACT_CHUNKS_PER_STAGE = (8, 16, 32)


def plan_kind(num_ways: int, num_stages: int) -> str:
    """pipeline, graph, hybrid, or alone for one worker."""
    if num_stages == num_ways == 1:
        return "alone"
    return "pipeline" if num_ways == 1 else "graph" if num_stages == 1 else "hybrid"


@dataclass(frozen=True)
class Candidate:
    """One way to use the workers; bytes and seconds are those of an epoch, over all workers.

    Attributes:
        busy: share of the workers' time in use while the schedule runs, as simulated.
        exact: in mode "exact"; one chunk is exact in any mode.
        refused: why it may not be chosen; empty if it may.
    """

    num_ways: int
    num_stages: int
    num_chunks: int
    layer_bytes: int
    graph_bytes: int
    sync_bytes: int
    seconds: float
    busy: float
    exact: bool = False
    refused: str = ""

    @property
    def kind(self) -> str:
        return plan_kind(self.num_ways, self.num_stages)

    @property
    def total_bytes(self) -> int:
        return self.layer_bytes + self.graph_bytes + self.sync_bytes


@dataclass(frozen=True)
class ParallelPlan:
    """What ``plan_parallelism`` chose, and why; ``print`` it for the table.

    Attributes:
        chosen: the fastest candidate that may be chosen.
        candidates: all of them, fastest first.
        num_layers: depth that was planned for.
        halo_ratio: halo over nodes with one part per worker.
        break_even: L*, the depth from which a pipeline moves fewer bytes than graph parallelism.
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    num_layers: int
    halo_ratio: float
    break_even: float

    @property
    def kind(self) -> str:
        """pipeline, graph, hybrid, or alone for one worker."""
        return self.chosen.kind

    @property
    def section(self) -> dict[str, Any]:
        """The fields of the ``gossamer`` section that carry the plan out."""
        section = {"num_ways": self.chosen.num_ways, "num_chunks": self.chosen.num_chunks}
        return section | ({"mode": "exact"} if self.chosen.exact else {})

    def __str__(self) -> str:
        head = (
            f"{'':2}{'kind':<9}{'ways':>5}{'stages':>7}{'chunks':>7}{'MB per epoch':>14}{'s per epoch':>13}{'busy':>7}"
        )
        lines = [
            f"halo / N = {self.halo_ratio:.2f}: a pipeline moves less from L* = {self.break_even:.1f} layers on, "
            f"there are {self.num_layers}",
            head,
        ]
        for c in self.candidates:
            mark = "->" if c is self.chosen else "  "
            place = f"{mark}{c.kind:<9}{c.num_ways:>5}{c.num_stages:>7}{c.num_chunks:>7}"
            lines.append(f"{place}{c.total_bytes / 1e6:>14.2f}{c.seconds:>13.4g}{c.busy:>7.0%}  {c.refused}".rstrip())
        return "\n".join(lines)


@typed
def plan_parallelism(
    graph: CSR,
    num_layers: int,
    hidden_dim: int,
    num_workers: int,
    *,
    num_states: int = 1,
    num_weights: int | None = None,
    exact: bool = False,
    calibration: Calibration | None = None,
) -> ParallelPlan:
    """Predict the bytes and the time of every way to use the workers, and choose the fastest.

    A pipeline is refused where its depth is below L* = num_states (S - 1) N / halo: graph parallelism moves fewer bytes
    there. A hybrid is refused where its S stages move more than as many more parts would: below
    num_states (S - 1) N / (halo of all workers - halo of its ways). Equal arguments give equal plans on every worker
    (``calibrate`` sees to it in a process group).

    Args:
        graph: N nodes.
        num_layers: layers that aggregate, each over hidden_dim numbers per node of 4 bytes.
        hidden_dim: width of the layers.
        num_workers: at least 1.
        num_states: tensors that travel from layer to layer; 2 for GCNII.
        num_weights: of the whole model; None takes num_layers * hidden_dim^2.
        exact: only what equals synchronous full-graph training: one chunk, or several in mode "exact", whose schedule
            is simulated with the dependencies between the chunks of this graph.
        calibration: of the machine; None calls ``calibrate``.

    Raises:
        ValueError: if a count is below 1, or there are more workers than nodes.

    Source: the volumes of GNNPipe (arXiv 2308.10087); time by the simulator of the schedules.
    """
    counts = {"num_layers": num_layers, "hidden_dim": hidden_dim, "num_workers": num_workers, "num_states": num_states}
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"plan_parallelism: {name} must be an int of at least 1, got {value!r}")
    if num_workers > graph.num_nodes:
        limit = f"at most the number of nodes ({graph.num_nodes})"
        raise ValueError(f"plan_parallelism: num_workers must be {limit}, got {num_workers}")
    model = _Model(
        graph.num_nodes, num_layers, hidden_dim, num_states,
        num_layers * hidden_dim**2 if num_weights is None else num_weights,
    )  # fmt: skip
    calibration = calibration or calibrate(graph, hidden_dim)
    cuts = {ways: _Cut.of(graph, ways) for ways in _divisors(num_workers)}
    num_halo = cuts[num_workers].num_halo
    candidates = []
    for ways, cut in cuts.items():
        num_stages = num_workers // ways
        break_even = _break_even(model, num_stages, num_halo - cut.num_halo)
        if num_stages <= num_layers:
            for schedule in _schedules(graph, ways, num_layers, num_stages, exact):
                candidates.append(_candidate(model, cut, schedule, calibration, break_even))
    candidates.sort(key=lambda c: c.seconds)
    chosen = next(c for c in candidates if not c.refused)
    break_even = _break_even(model, num_workers, num_halo)
    return ParallelPlan(chosen, tuple(candidates), num_layers, num_halo / graph.num_nodes, break_even)


def _break_even(model: _Model, num_stages: int, num_halo: int) -> float:
    """Depth from which the borders of some stages move fewer bytes than num_halo more rows per aggregation."""
    return model.num_states * (num_stages - 1) * model.num_nodes / num_halo if num_halo else float("inf")


@dataclass(frozen=True)
class _Model:
    num_nodes: int
    num_layers: int
    hidden_dim: int
    num_states: int
    num_weights: int


@dataclass(frozen=True)
class _Cut:
    """A partition into ways: what all read from others, and the largest part."""

    num_ways: int
    num_halo: int
    nodes: int
    edges: int
    halo: int

    @classmethod
    def of(cls, graph: CSR, num_ways: int) -> _Cut:
        part = partition(graph, num_ways)
        pairs = halo(graph, part)
        edges = part[graph._rows].bincount(minlength=num_ways)
        remote = pairs[0].bincount(minlength=num_ways)
        nodes = part.bincount(minlength=num_ways)
        return cls(num_ways, pairs.shape[1], int(nodes.max()), int(edges.max()), int(remote.max()))


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _schedules(graph: CSR, num_ways: int, num_layers: int, num_stages: int, exact: bool) -> Iterator[Schedule]:
    """One per number of chunks that is worth a look."""
    most = graph.num_nodes // num_ways
    if num_stages == 1 or exact:
        yield gnnpipe(num_stages, 1)
    if num_stages == 1:
        return
    for per_stage in _EXACT_CHUNKS_PER_STAGE if exact else _CHUNKS_PER_STAGE:
        num_chunks = num_stages * per_stage
        if num_chunks <= most and exact:
            needs = spread_in_order(graph, num_ways, num_chunks)[2]
            yield exact_schedule(needs, [len(run) for run in split_layers([1.0] * num_layers, num_stages)])
        elif num_chunks <= most:
            yield gnnpipe(num_stages, num_chunks)


def _candidate(model: _Model, cut: _Cut, schedule: Schedule, calibration: Calibration, break_even: float) -> Candidate:
    num_stages = schedule.num_stages
    below = num_stages > 1 and model.num_layers < break_even
    seconds, busy = _seconds(model, cut, schedule, calibration)
    return Candidate(
        cut.num_ways,
        num_stages,
        schedule.num_micro_batches,
        layer_bytes=layer_level_bytes(num_stages, model.num_nodes, model.hidden_dim, model.num_states),
        graph_bytes=graph_level_bytes(model.num_layers, cut.num_halo, model.hidden_dim),
        sync_bytes=weight_sync_bytes(cut.num_ways, model.num_weights),
        seconds=seconds,
        busy=busy,
        exact=bool(schedule.needs),
        refused=f"refused: {model.num_layers} layers are below its L* = {break_even:.1f}" if below else "",
    )


def _seconds(model: _Model, cut: _Cut, schedule: Schedule, c: Calibration) -> tuple[float, float]:
    """The simulated schedule of the largest way, or the work of all workers over the cores, whichever is longer; and
    the share of the workers' time that is in use."""
    num_stages, num_chunks = schedule.num_stages, schedule.num_micro_batches
    row_bytes = NUMBER * model.hidden_dim
    num_workers = num_stages * cut.num_ways
    nodes, edges = cut.nodes / num_chunks, cut.edges / num_chunks
    border = model.num_states * (nodes * row_bytes * c.byte + c.message) if num_stages > 1 else 0.0
    swap = cut.halo / num_chunks * row_bytes * c.byte + (c.latency if c.num_cores > num_workers else 0.0)
    halo = c.halo if cut.num_ways > 1 else 0.0
    per_layer = [
        halo + (_with_swap(seconds, swap, c, num_workers) if cut.num_ways > 1 else seconds)
        for seconds in (c.forward(nodes, edges), c.backward(nodes, edges))
    ]
    layers = [len(run) for run in split_layers([1.0] * model.num_layers, num_stages)]
    forward, backward = (tuple(n * seconds + border for n in layers) for seconds in per_layer)
    timeline = simulate(schedule, Costs(forward, backward, 0.0, transfer=c.latency))
    per_epoch = c.update + (c.history * cut.nodes if num_chunks > 1 and not schedule.needs else 0.0)
    sync = weight_sync_bytes(cut.num_ways, model.num_weights) / num_workers * c.byte
    busy = cut.num_ways * (sum(timeline.busy) + model.num_layers * per_epoch)
    alone = timeline.makespan + max(layers) * per_epoch
    return max(alone, busy / min(c.num_cores, num_workers)) + sync, 1.0 - timeline.bubble


def _with_swap(compute: float, swap: float, c: Calibration, num_workers: int) -> float:
    """Where cores are left to move the rows, the exchange hides behind the computation."""
    return max(compute, swap) if c.num_cores > num_workers else compute + swap
