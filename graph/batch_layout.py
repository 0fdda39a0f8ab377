"""Where the tensors of a batch lie in a slot of shared memory: the layout is written before them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Layout", "layout_of", "place", "read_layout"]

_ALIGNMENT = 64
_SIZES = struct.Struct("<qq")  # bytes of the layout, bytes of the batch

# The name, dtype and shape of each tensor: what a layout is made of.
Described = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]


class Layout(NamedTuple):
    """Name, dtype, shape, number of elements and offset of every tensor; ``head`` is written to the slot."""

    tensors: tuple[tuple[str, torch.dtype, tuple[int, ...], int, int], ...]
    offsets: list[int]
    sizes: list[int]  # bytes
    head: bytes
    num_bytes: int


def layout_of(batch: Mapping[str, Tensor]) -> Layout:
    """The layout of a batch."""
    return place(tuple([(name, tensor.dtype, tensor.shape) for name, tensor in batch.items()]))


@lru_cache(maxsize=256)
def place(described: Described) -> Layout:
    """Lay tensors out one after the other, each at a multiple of 64 bytes."""
    text = json.dumps([[name, str(dtype).removeprefix("torch."), shape] for name, dtype, shape in described]).encode()
    offset = _aligned(_SIZES.size + len(text))
    tensors, sizes = [], []
    for name, dtype, shape in described:
        count = 1
        for size in shape:
            count *= size
        tensors.append((name, dtype, shape, count, offset))
        sizes.append(count * dtype.itemsize)
        offset = _aligned(offset + sizes[-1])
    offsets = [entry[-1] for entry in tensors]
    return Layout(tuple(tensors), offsets, sizes, _SIZES.pack(len(text), offset) + text, offset)


def read_layout(buffer: memoryview) -> Layout:
    """The layout that was written to the start of a slot."""
    (size, _) = _SIZES.unpack_from(buffer)
    return _parse(bytes(buffer[_SIZES.size : _SIZES.size + size]))


@lru_cache(maxsize=256)
def _parse(text: bytes) -> Layout:
    return place(tuple((name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in json.loads(text)))


def _aligned(num_bytes: int) -> int:
    return num_bytes + -num_bytes % _ALIGNMENT
