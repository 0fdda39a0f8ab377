"""A cluster on paper: time, bytes and memory of one epoch on 8 to 1024 workers, before there is one.

The bytes are the closed forms of the planner and the time is that of its schedules, with links that differ inside a
machine and between machines. Every way is taken to have an equal share of the nodes, edges and halo, times an
imbalance; the machines fill up in the order of the ranks, so that the ways of a stage are neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from gossamer._arguments import typed
from gossamer.distributed.calibration import Calibration
from gossamer.distributed.planner import plan_kind
from gossamer.distributed.schedule import Costs, Timeline, gnnpipe, simulate
from gossamer.distributed.stages import split_layers
from gossamer.distributed.volumes import NUMBER, graph_level_bytes, layer_level_bytes, weight_sync_bytes

__all__ = ["Cluster", "Link", "ScaleEstimate", "ScaleJob", "WorkerMemory", "simulate_scale"]

_KEPT_ROWS = 2  # per node and layer for the backward pass: what the aggregation gave and what the activation gave
_ADAM = 4  # numbers per weight: the weight, its gradient and two moments


@dataclass(frozen=True)
class Link:
    """bandwidth in bytes per second and direction, latency in seconds."""

    bandwidth: float
    latency: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """Machines of several workers.

    Attributes:
        workers_per_machine: ranks [0, workers_per_machine) share the first machine, and so on.
        inside: what one worker can send to the others of its machine.
        between: what one machine, with all its workers, can send to the other machines.
        overlap: whether transfers run beside the computation; if not, a worker waits for each (a barrier per chunk).
        max_busy: workers that can compute at the same time; None for all.
    """

    workers_per_machine: int
    inside: Link
    between: Link
    overlap: bool = True
    max_busy: int | None = None


def _all_remote_nodes(num_ways: int) -> float:
    """The halo of a graph that cannot be cut: every way reads every node of the others."""
    return float(num_ways - 1)


@dataclass(frozen=True)
class ScaleJob:
    """What is trained.

    Attributes:
        num_nodes, num_edges: of the graph.
        num_layers: layers that aggregate.
        hidden_dim: width of the layers, 4-byte numbers.
        calibration: of one worker; its link and cores are not used.
        halo_ratio: number of ways -> pairs of a way and a remote node that it reads, over the number of nodes.
        num_states: tensors that travel from layer to layer; 2 for GCNII.
        num_weights: of the whole model; None takes num_layers * hidden_dim^2.
        num_features: width of the input, kept by the first stage.
        input_node: seconds per node that the first stage spends on the input, forward and again backward.
        imbalance: size of the largest way, or chunk, over the mean.
        keeps_history: whether aggregations read historical rows (several chunks, one snapshot per some epochs).
        recompute: whether layers run again in the backward pass.
    """

    num_nodes: int
    num_edges: int
    num_layers: int
    hidden_dim: int
    calibration: Calibration
    halo_ratio: Callable[[int], float] = _all_remote_nodes
    num_states: int = 1
    num_weights: int | None = None
    num_features: int = 0
    input_node: float = 0.0
    imbalance: float = 1.0
    keeps_history: bool = True
    recompute: bool = False

    @property
    def weights(self) -> int:
        """num_weights, or what stands for it."""
        return self.num_layers * self.hidden_dim**2 if self.num_weights is None else self.num_weights


@dataclass(frozen=True)
class WorkerMemory:
    """Bytes on the largest worker.

    Attributes:
        graph: its rows of the graph and of the transposed graph.
        features: its rows of the input (on the first stage).
        rows: current, historical and gradient rows of its aggregations, with their halo.
        activations: what the backward pass needs besides.
        weights: its weights with gradients and the moments of Adam.
    """

    graph: int
    features: int
    rows: int
    activations: int
    weights: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.graph + self.features + self.rows + self.activations + self.weights


@dataclass(frozen=True)
class ScaleEstimate:
    """One epoch on paper.

    Attributes:
        num_ways, num_stages, num_chunks: how the workers are used.
        seconds: of the epoch.
        sync_seconds: the part of it at the end, in which the ways sum up their gradients.
        bubble: idle share of the stages before that.
        layer_bytes, graph_bytes, sync_bytes: over all workers.
        worker_bytes: what the busiest worker sends.
        inside_bytes: what the busiest worker sends to others of its machine.
        between_bytes: what the busiest machine sends to others.
        memory: of the largest worker.
    """

    num_ways: int
    num_stages: int
    num_chunks: int
    seconds: float
    sync_seconds: float
    bubble: float
    layer_bytes: int
    graph_bytes: int
    sync_bytes: int
    worker_bytes: int
    inside_bytes: int
    between_bytes: int
    memory: WorkerMemory

    @property
    def kind(self) -> str:
        """pipeline, graph, hybrid, or alone for one worker."""
        return plan_kind(self.num_ways, self.num_stages)

    @property
    def total_bytes(self) -> int:
        """Over all workers."""
        return self.layer_bytes + self.graph_bytes + self.sync_bytes


@typed
def simulate_scale(
    job: ScaleJob, cluster: Cluster, num_workers: int, *, num_ways: int = 1, num_chunks: int | None = None
) -> ScaleEstimate:
    """Predict time, bytes and memory of one epoch on a cluster.

    Args:
        job: what is trained.
        cluster: on what.
        num_workers: at least 1.
        num_ways: workers that share a stage; 1 is a pipeline, num_workers graph parallelism.
        num_chunks: None takes the engine's default: 4 per stage, 1 in graph parallelism.

    Raises:
        ValueError: if num_ways does not divide num_workers, or there are more stages than layers or chunks.

    Source: GNNPipe (arXiv 2308.10087) for the bytes and the schedule.
    """
    if num_workers < 1:
        raise ValueError(f"simulate_scale: num_workers must be at least 1, got {num_workers}")
    if num_ways < 1 or num_workers % num_ways != 0:
        raise ValueError(f"simulate_scale: num_ways must divide num_workers ({num_workers}), got {num_ways}")
    num_stages = num_workers // num_ways
    if num_stages > job.num_layers:
        limit = f"at least num_workers / num_layers ({num_workers} / {job.num_layers})"
        raise ValueError(f"simulate_scale: num_ways must be {limit}, got {num_ways}")
    default = 4 * num_stages if num_stages > 1 else 1
    chunks = default if num_chunks is None else num_chunks
    if chunks != 1 and chunks < num_stages:
        raise ValueError(f"simulate_scale: num_chunks must be 1 or at least {num_stages}, got {chunks}")
    return _Plan(job, cluster, num_ways, num_stages, chunks).estimate()


@dataclass(frozen=True)
class _Plan:
    job: ScaleJob
    cluster: Cluster
    num_ways: int
    num_stages: int
    num_chunks: int

    def estimate(self) -> ScaleEstimate:
        job, timeline = self.job, self._timeline()
        layer = layer_level_bytes(self.num_stages, job.num_nodes, job.hidden_dim, job.num_states)
        graph = graph_level_bytes(job.num_layers, self._num_halo, job.hidden_dim)
        sync = weight_sync_bytes(self.num_ways, job.weights)
        inside, between = self._link_bytes()
        return ScaleEstimate(
            self.num_ways, self.num_stages, self.num_chunks,
            seconds=self._makespan(timeline) + self._sync_seconds, sync_seconds=self._sync_seconds,
            bubble=timeline.bubble, layer_bytes=layer, graph_bytes=graph, sync_bytes=sync,
            worker_bytes=round(self._border_bytes * self._most_borders + self._halo_bytes + self._sync_bytes),
            inside_bytes=inside, between_bytes=between, memory=self._memory(),
        )  # fmt: skip

    @cached_property
    def _num_halo(self) -> float:
        return self.job.halo_ratio(self.num_ways) * self.job.num_nodes if self.num_ways > 1 else 0.0

    @property
    def _row_bytes(self) -> int:
        return self.job.hidden_dim * NUMBER

    @cached_property
    def _layers(self) -> list[int]:
        """Of every stage."""
        return [len(run) for run in split_layers([1.0] * self.job.num_layers, self.num_stages)]

    # Where the links are.

    @property
    def _near(self) -> int:
        """Ways of one stage on one machine."""
        return min(self.num_ways, self.cluster.workers_per_machine)

    @property
    def _far_share(self) -> float:
        """Share of the halo of a way that other machines own (each way reads all others alike)."""
        return (self.num_ways - self._near) / (self.num_ways - 1) if self.num_ways > 1 else 0.0

    @cached_property
    def _crosses(self) -> list[bool]:
        """Per border of stages, whether it lies between machines."""
        size, ways = self.cluster.workers_per_machine, self.num_ways
        ranks = [stage * ways for stage in range(self.num_stages)]
        return [any((a + w) // size != (a + w + ways) // size for w in range(ways)) for a in ranks[:-1]]

    # Bytes of one epoch that one worker sends.

    @property
    def _border_bytes(self) -> float:
        """Over one border in one direction."""
        job = self.job
        return job.num_states * job.num_nodes / self.num_ways * job.imbalance * self._row_bytes

    @property
    def _most_borders(self) -> int:
        return min(self.num_stages - 1, 2)

    @property
    def _halo_bytes(self) -> float:
        """Rows for other ways, forwards and backwards."""
        return 2 * max(self._layers) * self._num_halo / self.num_ways * self.job.imbalance * self._row_bytes

    @property
    def _sync_bytes(self) -> float:
        return weight_sync_bytes(self.num_ways, self.job.weights) / self.num_ways / self.num_stages

    def _link_bytes(self) -> tuple[int, int]:
        """Of the busiest worker inside its machine, of the busiest machine to others."""
        size = min(self.cluster.workers_per_machine, self.num_ways * self.num_stages)
        borders_inside = max([self._crosses[s : s + 2].count(False) for s in range(len(self._crosses))], default=0)
        inside = self._border_bytes * borders_inside + self._halo_bytes * (1 - self._far_share)
        ring_inside = self._near > 1
        leaving = sum(self._crosses) > 0
        ways_out = self._near * min(2, sum(self._crosses)) if leaving else 0
        between = self._border_bytes * ways_out + size * self._halo_bytes * self._far_share
        if self._far_share > 0:
            between += self._sync_bytes * size / self._near
        return round(inside + ring_inside * self._sync_bytes), round(between)

    # Seconds.

    def _timeline(self) -> Timeline:
        swap = self._swap_seconds
        passes = [self._with(seconds, swap) for seconds in self._layer_seconds]
        stages = [tuple(n * seconds for n in self._layers) for seconds in passes]
        stages = [(costs[0] + self._input_seconds, *costs[1:]) for costs in stages]
        occupancy, latency = self._border_seconds
        schedule = gnnpipe(self.num_stages, self.num_chunks)
        if self.cluster.overlap or self.num_stages == 1:
            return simulate(schedule, Costs(stages[0], stages[1], 0.0, latency, 0.0, occupancy))
        wait = max(a + b for a, b in zip(occupancy, latency))  # all stages wait for the slowest border
        forward, backward = (tuple(seconds + wait for seconds in costs) for costs in stages)
        return simulate(schedule, Costs(forward, backward, 0.0))

    def _makespan(self, timeline: Timeline) -> float:
        """Where workers share cores: no shorter than their work over the cores."""
        if self.cluster.max_busy is None:
            return timeline.makespan
        return max(timeline.makespan, self.num_ways * sum(timeline.busy) / self.cluster.max_busy)

    @property
    def _share(self) -> float:
        """Of all nodes and edges, in one chunk of one way."""
        return self.job.imbalance / self.num_ways / self.num_chunks

    @property
    def _input_seconds(self) -> float:
        return self.job.num_nodes * self._share * self.job.input_node

    @property
    def _layer_seconds(self) -> tuple[float, float]:
        """Forward and backward of one layer on one chunk."""
        nodes, edges = self.job.num_nodes * self._share, self.job.num_edges * self._share
        return self.job.calibration.forward(nodes, edges), self.job.calibration.backward(nodes, edges)

    def _with(self, compute: float, transfer: float) -> float:
        return max(compute, transfer) if self.cluster.overlap else compute + transfer

    @property
    def _swap_seconds(self) -> float:
        """The exchange of one chunk's halo in one layer; all workers of a machine share its link to others."""
        if self.num_ways == 1:
            return 0.0
        rows = self._num_halo / self.num_ways / self.num_chunks * self.job.imbalance * self._row_bytes
        near = _transfer(self.cluster.inside, rows * (1 - self._far_share))
        far = rows * self._far_share * min(self.cluster.workers_per_machine, self.num_ways * self.num_stages)
        return max(near, _transfer(self.cluster.between, far))

    @property
    def _border_seconds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per border: how long a message keeps its link busy, and its latency."""
        message, cluster = self._border_bytes / self.num_chunks, self.cluster
        links = [cluster.between if far else cluster.inside for far in self._crosses]
        sizes = [message * self._near if far else message for far in self._crosses]
        return (
            tuple(size / link.bandwidth for size, link in zip(sizes, links)),
            tuple(link.latency for link in links),
        )

    @property
    def _sync_seconds(self) -> float:
        """A ring over the ways of a stage; the rings of the stages on one machine share its link."""
        if self.num_ways == 1:
            return 0.0
        link, rings = self.cluster.inside, 1.0
        if self._far_share > 0:
            link, rings = self.cluster.between, self.cluster.workers_per_machine / self._near
        return self._sync_bytes * rings / link.bandwidth + 2 * (self.num_ways - 1) * link.latency

    # Memory.

    def _memory(self) -> WorkerMemory:
        job = self.job
        own = job.num_nodes / self.num_ways * job.imbalance
        halo = self._num_halo / self.num_ways * job.imbalance
        edges = job.num_edges / self.num_ways * job.imbalance
        rows, kept = self._rows_of_chunks(own, halo) if self.num_chunks > 1 else self._rows_of_one_chunk(own, halo)
        border = own * job.num_states * (self.num_stages > 1)
        return WorkerMemory(
            graph=math.ceil(2 * (8 * (own + halo) + 4 * edges)),
            features=math.ceil(own * job.num_features * NUMBER),
            rows=math.ceil(rows * self._row_bytes),
            activations=math.ceil((kept + border) * self._row_bytes),
            weights=math.ceil(_ADAM * NUMBER * job.weights / self.num_stages),
        )

    def _rows_of_chunks(self, own: float, halo: float) -> tuple[float, float]:
        """Rows of hidden_dim numbers that the aggregations of the largest stage and the backward pass keep."""
        layers, again = max(self._layers), self.job.recompute
        copies = 2 if self.job.keeps_history else 1
        kept = own / self.num_chunks if again else own
        return layers * (copies * (own + halo) + own * (1 + again)), layers * _KEPT_ROWS * kept

    def _rows_of_one_chunk(self, own: float, halo: float) -> tuple[float, float]:
        """One chunk is all: aggregations share their rows. Recomputed, some states and one segment of layers are kept,
        or, where ways would have to exchange their rows again, the outputs of all aggregations."""
        layers, again = max(self._layers), self.job.recompute
        replayed = layers * own if again and self.num_ways > 1 else 0.0
        modules = 2 * layers  # a convolution and an activation
        segment = math.ceil(math.sqrt(modules))
        in_segments = (math.ceil(modules / segment) + segment / 2 * _KEPT_ROWS) * own
        return 2 * own + halo + replayed, in_segments if again and self.num_ways == 1 else layers * _KEPT_ROWS * own


def _transfer(link: Link, num_bytes: float) -> float:
    return num_bytes / link.bandwidth + link.latency if num_bytes > 0 else 0.0
