"""Shells on disk: sizes of rows and steps from row to column in the narrowest integers that hold them."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer._files import read_sealed, write_sealed
from gossamer.graph.csr import CSR

__all__ = ["load_shells", "save_shells"]

# A sealed file, which begins with: nodes, shells, pairs, bytes per row size, bytes per step.
_MAGIC = b"gossamer shells 1"
_HEADER = struct.Struct("<qqqqq")


@typed
def save_shells(path: str | os.PathLike[str], shells: Sequence[CSR]) -> None:
    """Write the shells of k_hop; the file appears whole or not at all.

    Args:
        path: of the file; an older one is replaced.
        shells: graphs with equal num_nodes, without weights; at least one.

    Raises:
        ValueError: if there is no shell, or they differ in num_nodes.
    """
    if not shells:
        raise ValueError("save_shells: shells must be at least 1 graph, got 0")
    if len(sizes := {shell.num_nodes for shell in shells}) > 1:
        raise ValueError(f"save_shells: shells must have equal num_nodes, got {sorted(sizes)}")
    degrees = _narrowest(torch.cat([shell.in_degree() for shell in shells]), signed=False)
    steps = _narrowest(torch.cat([shell.col.long() - shell._rows for shell in shells]), signed=True)
    counts = (shells[0].num_nodes, len(shells), steps.size, degrees.itemsize, steps.itemsize)
    write_sealed(path, _MAGIC, _HEADER.pack(*counts) + degrees.tobytes() + steps.tobytes())


@typed
def load_shells(path: str | os.PathLike[str]) -> list[CSR]:
    """Read what save_shells wrote.

    Raises:
        ValueError: if the file is not one of save_shells, or not as it was written.
    """
    content = read_sealed(path, _MAGIC, "load_shells", "save_shells")
    num_nodes, num_shells, num_pairs, size_bytes, step_bytes = _HEADER.unpack_from(content)
    num_rows = num_nodes * num_shells
    sizes = numpy.frombuffer(content, f"<u{size_bytes}", num_rows, _HEADER.size)
    steps = numpy.frombuffer(content, f"<i{step_bytes}", num_pairs, _HEADER.size + num_rows * size_bytes)
    rowptr = torch.zeros(num_rows + 1, dtype=torch.int64)
    torch.cumsum(torch.from_numpy(sizes.astype(numpy.int64)), 0, out=rowptr[1:])
    rows = torch.arange(num_nodes, dtype=torch.int32).repeat(num_shells).repeat_interleave(rowptr.diff())
    col = rows + torch.from_numpy(steps.astype(numpy.int32))
    shells = []
    for k in range(num_shells):
        pointers = rowptr[k * num_nodes : (k + 1) * num_nodes + 1]
        begin, end = int(pointers[0]), int(pointers[-1])
        shells.append(CSR(pointers - begin, col[begin:end], num_nodes=num_nodes))
    return shells


def _narrowest(values: Tensor, *, signed: bool) -> numpy.ndarray:
    """The values as the narrowest little-endian integers that hold all of them."""
    low, high = (int(v) for v in values.aminmax()) if values.numel() else (0, 0)
    for size in (1, 2, 4, 8):
        bound = 2 ** (8 * size - signed)
        if high < bound and low >= (-bound if signed else 0):
            break
    return values.cpu().numpy().astype(f"<{'i' if signed else 'u'}{size}")
