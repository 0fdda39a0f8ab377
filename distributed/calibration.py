"""What the planner must know about a machine, measured in about a second."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gossamer._arguments import typed
from gossamer.distributed.channel import Channel
from gossamer.distributed.chunks import ChunkedGraph
from gossamer.distributed.grid import Grid
from gossamer.distributed.layout import spread, take_part
from gossamer.graph import CSR, GCNConv, GraphSequential, ReLUDropout, aggregate

__all__ = ["Calibration", "calibrate"]

_REPEATS = 7
_CHUNKS = 16  # of the graph, to learn what a call costs
_MESSAGE = 1 << 22


@dataclass(frozen=True)
class Calibration:
    """Costs of one layer on one worker, and of the links between workers.

    Attributes:
        forward_node, forward_edge: seconds per node and per edge of one layer's forward pass.
        backward_node, backward_edge: of its backward pass.
        call: seconds per layer and chunk, whatever their size (forward, and again backward).
        byte: seconds per byte that a worker sends or receives.
        latency: seconds from a send to its arrival, whatever its size.
        num_cores: how many workers can compute at the same time.
        message: seconds that a message of any size takes from each of the two workers.
        halo: seconds that ways add to a layer besides the bytes of the rows that they exchange (forward, and again
            backward): the split into interior and boundary.
        history: seconds per node and layer of what several chunks need once per epoch: history and stale gradients.
        update: seconds per layer of the optimizer's step.
    """

    forward_node: float
    forward_edge: float
    backward_node: float
    backward_edge: float
    call: float = 1e-4
    byte: float = 1e-9
    latency: float = 1e-4
    num_cores: int = 1
    message: float = 0.0
    halo: float = 0.0
    history: float = 0.0
    update: float = 0.0

    def forward(self, num_nodes: float, num_edges: float) -> float:
        """Seconds of one layer on some rows."""
        return self.call + self.forward_node * num_nodes + self.forward_edge * num_edges

    def backward(self, num_nodes: float, num_edges: float) -> float:
        """Seconds of the backward pass of one layer on some rows."""
        return self.call + self.backward_node * num_nodes + self.backward_edge * num_edges


@typed
def calibrate(
    graph: CSR, hidden_dim: int, *, layer: nn.Module | None = None, num_cores: int | None = None
) -> Calibration:
    """Time a layer on the graph and, in a process group, a message between two workers.

    Worker 0 measures while the others wait, and all get its numbers. What one thread does on a CPU is measured in CPU
    time, and so are messages within one machine: other programs slow the clock on the wall, and not the machine.

    Args:
        graph: what will be trained on.
        hidden_dim: width of the layers.
        layer: a graph layer of one tensor that keeps the width; None takes GCNConv, ReLU and dropout.
        num_cores: workers that can compute at once; None takes the cores of this process times the machines, over
            the threads of torch.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    layer = layer or GraphSequential(GCNConv(hidden_dim, hidden_dim), ReLUDropout(0.5))
    layer = layer.to(graph.device)
    values: dict[str, float] = {}
    if not several or dist.get_rank() == 0:
        values = _measure_layer(graph, hidden_dim, layer)
    if several:
        values = _from_rank_0(values)
        values |= _measure_link(graph.device)
        values |= _measure_halo(graph, hidden_dim, layer, Calibration(**values, num_cores=1))
    cores = _num_cores() if num_cores is None else num_cores
    return Calibration(**values, num_cores=cores)


def _num_cores() -> int:
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    machines = _num_machines(world)
    if torch.cuda.is_available():
        return torch.cuda.device_count() * machines
    return max(1, len(os.sched_getaffinity(0)) // torch.get_num_threads()) * machines


def _num_machines(world: int) -> int:
    return max(1, world // int(os.environ.get("LOCAL_WORLD_SIZE", world)))


def _from_rank_0(values: dict[str, float]) -> dict[str, float]:
    received = [values]
    dist.broadcast_object_list(received)
    return received[0]


def _measure_layer(graph: CSR, hidden_dim: int, layer: nn.Module) -> dict[str, float]:
    """Per node and per edge of the whole graph, and from some chunks what a call costs that is too small for both."""
    num_chunks = min(_CHUNKS, graph.num_nodes)
    whole, pieces = (_chunked(graph, 1), _chunked(graph, num_chunks))
    forward, backward = _layer_seconds(layer, whole, hidden_dim)
    small, small_back = (seconds / num_chunks for seconds in _layer_seconds(layer, pieces, hidden_dim))
    call = max(small - forward / num_chunks, small_back - backward / num_chunks, 0.0) / (1 - 1 / (num_chunks + 1))
    call = max(call, 1e-6)
    x = torch.randn(graph.num_nodes, hidden_dim, device=graph.device)
    edges = min(_best(lambda: aggregate(graph, x), graph.device), 0.9 * forward, 0.9 * backward)
    num_nodes, num_edges = graph.num_nodes, max(graph.num_edges, 1)
    return {
        "forward_node": max(forward - call - edges, 0.0) / num_nodes,
        "forward_edge": edges / num_edges,
        "backward_node": max(backward - call - edges, 0.0) / num_nodes,
        "backward_edge": edges / num_edges,
        "call": call,
        "history": _best(lambda: _turn_epoch(pieces), graph.device) / num_nodes,
        "update": _update_seconds(layer),
    }


def _chunked(graph: CSR, num_chunks: int) -> ChunkedGraph:
    part = take_part(graph, *spread(graph, 1, num_chunks), None)
    return ChunkedGraph(part, Channel(Grid(), graph.device))


def _layer_seconds(layer: nn.Module, chunked: ChunkedGraph, hidden_dim: int) -> tuple[float, float]:
    """Seconds of the forward pass of all chunks of this worker, and of their backward pass in reverse."""
    rows = torch.randn(chunked.part.num_own, hidden_dim, device=chunked.graph.device)
    inputs = [rows[a:b].clone().requires_grad_() for a, b in pairwise(chunked.bounds)]

    def forward() -> list[Tensor]:
        return [layer(chunked.view(c), x) for c, x in enumerate(inputs)]

    def both() -> None:
        for out in reversed(forward()):
            out.backward(torch.ones_like(out))

    seconds = _best(forward, rows.device)
    return seconds, max(_best(both, rows.device) - seconds, 0.0)


def _turn_epoch(chunked: ChunkedGraph) -> None:
    chunked.begin_epoch(1, list(range(chunked.num_chunks)))
    chunked.end_epoch()


def _update_seconds(layer: nn.Module) -> float:
    layers = [copy.deepcopy(layer) for _ in range(8)]
    parameters = [p for each in layers for p in each.parameters()]
    if not parameters:
        return 0.0
    optimizer = torch.optim.Adam(parameters)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    return _best(optimizer.step, parameters[0].device) / len(layers)


def _measure_link(device: torch.device) -> dict[str, float]:
    """Ranks 0 and 1 play ping-pong; every rank gets the result."""
    found = {}
    if dist.get_rank() < 2:
        small, large = (torch.zeros(n, dtype=torch.uint8, device=device) for n in (8, _MESSAGE))
        clock = time.process_time if device.type == "cpu" and _num_machines(dist.get_world_size()) == 1 else None
        latency = _best(lambda: _ping(small), device, time.perf_counter) / 2
        message = _best(lambda: _ping(small), device, clock or time.thread_time) / 2
        seconds = _best(lambda: _ping(large), device, clock or time.perf_counter) / 2
        found = {"byte": max(seconds - (message if clock else latency), 0.0) / _MESSAGE}
        found |= {"latency": latency, "message": message}
    return _from_rank_0(found)


def _measure_halo(graph: CSR, hidden_dim: int, layer: nn.Module, known: Calibration) -> dict[str, float]:
    """Ranks 0 and 1 run the layer as two ways; what it takes beyond the rows and the bytes."""
    rank, world = dist.get_rank(), dist.get_world_size()
    channel = Channel(Grid(1, world, 0, rank), graph.device)
    found = {}
    if rank < 2 <= graph.num_nodes:
        part = take_part(graph, *spread(graph, 2, 1), rank)
        chunked = ChunkedGraph(part, channel)
        seconds = sum(_layer_seconds(layer, chunked, hidden_dim))
        num_own, num_edges = part.num_own, part.graph.num_edges
        alone = known.forward(num_own, num_edges) + known.backward(num_own, num_edges)
        found = {"halo": max(seconds - alone, 0.0) / 2}
    return _from_rank_0(found)


def _ping(message: Tensor) -> None:
    peer = 1 - dist.get_rank()
    first, second = (dist.send, dist.recv) if peer == 1 else (dist.recv, dist.send)
    first(message, peer)
    second(message, peer)


def _best(function: Callable[[], object], device: torch.device, clock: Callable[[], float] | None = None) -> float:
    """The fastest of some calls, the first not counted: what disturbs a call only makes it slower."""
    if clock is None:
        clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    function()
    seconds = []
    for _ in range(_REPEATS):
        start = clock()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return min(seconds)
