"""The least work of every operator: bytes that must move, each array once, and FLOPs. Speed is held against it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gossamer.graph import CSR

__all__ = ["Cost", "aggregate_cost"]


@dataclass(frozen=True)
class Cost:
    """Minimum bytes and FLOPs of one call."""

    bytes: int
    flops: int


def aggregate_cost(graph: CSR, x: Tensor) -> Cost:
    """One gather of a source row per edge, the structure, and the result written once.

    Gathers are counted one by one: a cache that holds the hubs can beat this floor, which takes all bytes from memory.
    """
    structure = _num_bytes(graph.rowptr) + _num_bytes(graph.col)
    weight = 0 if graph.weight is None else _num_bytes(graph.weight)
    gathered = graph.num_edges * x.shape[1] * x.element_size()
    return Cost(gathered + structure + weight + _num_bytes(x), 2 * graph.num_edges * x.shape[1])


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
