"""What the planner must know about a machine, measured in about a second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gossamer.graph import CSR, GCNConv, GraphSequential, ReLUDropout, aggregate

__all__ = ["Calibration", "calibrate"]

_REPEATS = 5
_MESSAGE = 1 << 22


@dataclass(frozen=True)
class Calibration:
    """Costs of one layer on one worker, and of the links between workers.

    Attributes:
        forward_node, forward_edge: seconds per node and per edge of one layer's forward pass.
        backward_node, backward_edge: of its backward pass.
        call: seconds per layer and chunk, whatever their size (forward, and again backward).
        byte: seconds per byte that a worker sends.
        latency: seconds from a send to its arrival, whatever its size.
        num_cores: how many workers can compute at the same time.
    """

    forward_node: float
    forward_edge: float
    backward_node: float
    backward_edge: float
    call: float = 1e-4
    byte: float = 1e-9
    latency: float = 1e-4
    num_cores: int = 1

    def forward(self, num_nodes: float, num_edges: float) -> float:
        """Seconds of one layer on some rows."""
        return self.call + self.forward_node * num_nodes + self.forward_edge * num_edges

    def backward(self, num_nodes: float, num_edges: float) -> float:
        """Seconds of the backward pass of one layer on some rows."""
        return self.call + self.backward_node * num_nodes + self.backward_edge * num_edges


def calibrate(
    graph: CSR, hidden_dim: int, *, layer: nn.Module | None = None, num_cores: int | None = None
) -> Calibration:
    """Time a layer on the graph and, in a process group, a message between two workers.

    Worker 0 measures while the others wait, and all get its numbers.

    Args:
        graph: what will be trained on.
        hidden_dim: width of the layers.
        layer: a graph layer of one tensor that keeps the width; None takes GCNConv, ReLU and dropout.
        num_cores: workers that can compute at once; None takes the cores of this process times the machines, over
            the threads of torch.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    values: dict[str, float] = {}
    if not several or dist.get_rank() == 0:
        values = _measure_layer(graph, hidden_dim, layer)
    if several:
        received = [values]
        dist.broadcast_object_list(received)
        values = received[0] | _measure_link(graph.device)
    cores = _num_cores() if num_cores is None else num_cores
    return Calibration(**values, num_cores=cores)


def _num_cores() -> int:
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    machines = max(1, world // int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    if torch.cuda.is_available():
        return torch.cuda.device_count() * machines
    return max(1, len(os.sched_getaffinity(0)) // torch.get_num_threads()) * machines


def _measure_layer(graph: CSR, hidden_dim: int, layer: nn.Module | None) -> dict[str, float]:
    """Per node and per edge; what an empty graph takes is the cost of a call."""
    layer = layer or GraphSequential(GCNConv(hidden_dim, hidden_dim), ReLUDropout(0.5))
    layer = layer.to(graph.device)
    empty = CSR(graph.rowptr[:2] * 0, graph.col[:0], num_nodes=1)
    call, call_back = _layer_seconds(layer, empty, hidden_dim)
    forward, backward = _layer_seconds(layer, graph, hidden_dim)
    x = torch.randn(graph.num_nodes, hidden_dim, device=graph.device)
    edges = min(_best(lambda: aggregate(graph, x)), 0.9 * forward, 0.9 * backward)
    num_nodes, num_edges = graph.num_nodes, max(graph.num_edges, 1)
    return {
        "forward_node": max(forward - call - edges, 0.0) / num_nodes,
        "forward_edge": edges / num_edges,
        "backward_node": max(backward - call_back - edges, 0.0) / num_nodes,
        "backward_edge": edges / num_edges,
        "call": max(call, call_back),
    }


def _layer_seconds(layer: nn.Module, graph: CSR, hidden_dim: int) -> tuple[float, float]:
    """Seconds of a forward and of a backward pass."""
    x = torch.randn(graph.num_nodes, hidden_dim, device=graph.device, requires_grad=True)
    forward = _best(lambda: layer(graph, x))

    def both() -> None:
        out: Tensor = layer(graph, x)
        out.backward(x)

    return forward, max(_best(both) - forward, 0.0)


def _measure_link(device: torch.device) -> dict[str, float]:
    """Ranks 0 and 1 play ping-pong; every rank gets the result."""
    found = [{"byte": 0.0, "latency": 0.0}]
    if dist.get_rank() < 2:
        small, large = (torch.zeros(n, dtype=torch.uint8, device=device) for n in (8, _MESSAGE))
        latency = _best(lambda: _ping(small)) / 2
        found = [{"byte": max(_best(lambda: _ping(large)) / 2 - latency, 0.0) / _MESSAGE, "latency": latency}]
    dist.broadcast_object_list(found)
    return found[0]


def _ping(message: Tensor) -> None:
    peer = 1 - dist.get_rank()
    first, second = (dist.send, dist.recv) if peer == 1 else (dist.recv, dist.send)
    first(message, peer)
    second(message, peer)


def _best(function: Callable[[], object]) -> float:
    """The fastest of some calls, the first not counted: what disturbs a call only makes it slower."""
    function()
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
