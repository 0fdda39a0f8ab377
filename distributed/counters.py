"""Bytes that cross between workers, in the four classes that GNNPipe reports."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Counters"]


@dataclass
class Counters:
    """Bytes sent, summed over all workers.

    Attributes:
        layer_level: activations and their gradients between stages.
        graph_level: rows exchanged between workers that share a layer (zero in a pure pipeline).
        weight_sync: gradients or weights exchanged between replicas (zero in a pure pipeline).

    Source: GNNPipe (arXiv 2308.10087), the communication counters of its code.
    """

    layer_level: int = 0
    graph_level: int = 0
    weight_sync: int = 0

    @property
    def total(self) -> int:
        """All bytes."""
        return self.layer_level + self.graph_level + self.weight_sync

    def __add__(self, other: Counters) -> Counters:
        return Counters(*(a + b for a, b in zip(self.as_tuple(), other.as_tuple())))

    def as_tuple(self) -> tuple[int, ...]:
        """The three classes in the order of the fields."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def as_dict(self) -> dict[str, int]:
        """The three classes and their total, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"total": self.total}
