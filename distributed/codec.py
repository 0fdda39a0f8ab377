"""What crosses a stage boundary: tensors as they are, or rows of 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.graph import dequantize_rows, quantize_rows

__all__ = ["RowCodec"]

State = tuple[Tensor, ...]


@dataclass
class RowCodec:
    """Rows of floating-point matrices as codes and a scale each, rounded without bias; other tensors as they are.

    Attributes:
        bits: 8 or 4.
        seed: of the rounding; messages take steps from 0 on.
    """

    bits: int
    seed: int
    num_encoded: int = 0

    def encode(self, tensors: Sequence[Tensor]) -> State:
        """What travels."""
        wire: list[Tensor] = []
        for tensor in tensors:
            if _is_rows(tensor):
                wire += quantize_rows(tensor, self.bits, seed=self.seed, step=self.num_encoded)
                self.num_encoded += 1
            else:
                wire.append(tensor)
        return tuple(wire)

    def buffers(self, like: Sequence[Tensor]) -> State:
        """Room for what travels for tensors of these shapes."""
        wire: list[Tensor] = []
        for tensor in like:
            if _is_rows(tensor):
                row_bytes = (tensor.shape[1] * self.bits + 7) // 8
                wire.append(tensor.new_empty(len(tensor), row_bytes, dtype=torch.uint8))
                wire.append(tensor.new_empty(len(tensor), dtype=torch.float32))
            else:
                wire.append(tensor)
        return tuple(wire)

    def decode(self, wire: Sequence[Tensor], like: Sequence[Tensor]) -> State:
        """The tensors again."""
        parts, tensors = iter(wire), []
        for tensor in like:
            part = next(parts)
            if _is_rows(tensor):
                part = dequantize_rows(part, next(parts), tensor.shape[1], self.bits, dtype=tensor.dtype)
            tensors.append(part)
        return tuple(tensors)


def _is_rows(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dim() == 2
