"""CompressedCSR: a graph of less than 2 bytes per edge that can be sampled as it is."""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.graph.csr import CSR, _col_dtype

__all__ = ["CompressedCSR"]

_FIELDS = ("codes", "offsets", "positions", "bases")
_FORMAT = "gossamer compressed graph 2"


class CompressedCSR:
    """The structure of a graph in Elias-Fano code: 2.3 + log2(num_nodes / degree) bits per edge, and 5 bytes per node.

    Within a row the columns ascend; weights, times and edge ids are not kept. ``neighbor_sample`` takes it in place of
    a CSR for uniform sampling, with the results that ``to_csr()`` would give. Made by ``CompressedCSR.from_csr`` and
    ``CompressedCSR.open``.

    Args:
        codes: [num_bytes], uint8, the rows one after the other (see csrc/sampling/elias_fano.h).
        offsets: [num_nodes // 8 + 2], int64, where every eighth row begins in codes.
        positions: [num_nodes + 1], int32 read as unsigned, where each row begins among the edges, from its base.
        bases: [num_nodes // 4096 + 1], int64.
        num_edges: number of edges.

    Source: Elias 1974, Efficient storage and retrieval by content and address of static files; Vigna 2013,
    Quasi-succinct indices.
    """

    def __init__(self, codes: Tensor, offsets: Tensor, positions: Tensor, bases: Tensor, num_edges: int) -> None:
        self.codes, self.offsets, self.positions, self.bases = codes, offsets, positions, bases
        self.num_nodes = positions.numel() - 1
        self.num_edges = num_edges
        self._tables: deque[Tensor] = deque()

    @classmethod
    def from_csr(cls, graph: CSR) -> CompressedCSR:
        """Compress a graph on the CPU; duplicates and self loops are kept.

        Raises:
            ValueError: if the graph is not on the CPU.
        """
        if graph.device.type != "cpu":
            raise ValueError(f"CompressedCSR.from_csr: graph must be on the CPU, got {graph.device}")
        codes, offsets, positions, bases = torch.ops.gossamer.compress_rows(graph.rowptr, _sorted_columns(graph))
        return cls(codes, offsets, positions, bases, graph.num_edges)

    def to_csr(self) -> CSR:
        """The graph with columns ascending in each row and edges numbered in this order."""
        rowptr, col = torch.ops.gossamer.decompress_rows(*self._tensors(), self.num_edges)
        return CSR._trusted(rowptr, col, self.num_nodes)

    @property
    def num_bytes(self) -> int:
        """Bytes of memory of the graph."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph to one file that ``CompressedCSR.open`` maps; it appears whole or not at all."""
        from gossamer.graph.csr_file import _whole_or_not_at_all

        content: dict[str, Any] = {"format": _FORMAT, "num_edges": self.num_edges}
        for name in _FIELDS:
            content |= {name: getattr(self, name), f"{name}_crc32": _checksum(getattr(self, name))}
        with _whole_or_not_at_all(Path(path)) as file:
            torch.save(content, file)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> CompressedCSR:
        """Map a saved graph into memory.

        Args:
            path: a file that ``save`` wrote.
            verify: read the file and compare its checksums; False trusts it, and an altered file may then crash the
                process.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is no such file, or altered.
        """
        name = "CompressedCSR.open: path must be a file written by CompressedCSR.save"
        os.stat(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            codes, offsets, positions, bases = tensors = [content[field] for field in _FIELDS]
            found = content["format"]
        except Exception as error:  # a damaged file raises anything
            raise ValueError(f"{name}, got another kind of file, or one cut short ({os.fspath(path)})") from error
        if found != _FORMAT:
            raise ValueError(f"{name} of this release, got {found!r} ({os.fspath(path)})")
        for field, tensor in zip(_FIELDS, tensors):
            if verify and _checksum(tensor) != content[f"{field}_crc32"]:
                raise ValueError(f"{name}, got an altered file: the checksum of {field} ({os.fspath(path)})")
        return cls(codes, offsets, positions, bases, content["num_edges"])

    def __repr__(self) -> str:
        return f"CompressedCSR(num_nodes={self.num_nodes}, num_edges={self.num_edges}, num_bytes={self.num_bytes})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": deque()}

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, name) for name in _FIELDS]

    def _sample(self, seeds: Tensor, fanouts: Sequence[float], seed: int, replace: bool) -> list[Tensor]:
        """node, row, col, edge and the counts per hop; a call borrows a table of local ids and gives it back."""
        try:
            table = self._tables.pop()
        except IndexError:
            table = torch.zeros(self.num_nodes + 1, dtype=torch.int32)
        numbers = [float(fanout) for fanout in fanouts]
        out = torch.ops.gossamer.neighbor_sample_compressed(*self._tensors(), seeds, numbers, seed, replace, table)
        self._tables.append(table)
        return out


def _sorted_columns(graph: CSR) -> Tensor:
    """Columns ascending within each row: a graph transposed twice is sorted."""
    rows = graph._rows
    if bool(((graph.col[1:] >= graph.col[:-1]) | (rows[1:] != rows[:-1])).all()):
        return graph.col
    return graph.transpose().transpose().col.to(_col_dtype(graph.num_nodes))


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data)


@torch.library.register_fake("gossamer::compress_rows")
def _(rowptr: Tensor, col: Tensor) -> tuple[Tensor, ...]:
    num_nodes = rowptr.shape[0] - 1
    codes = col.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)
    positions = rowptr.new_empty(num_nodes + 1, dtype=torch.int32)
    return codes, rowptr.new_empty(num_nodes // 8 + 2), positions, rowptr.new_empty(num_nodes // 4096 + 1)


@torch.library.register_fake("gossamer::decompress_rows")
def _(codes: Tensor, offsets: Tensor, positions: Tensor, bases: Tensor, num_edges: int) -> tuple[Tensor, Tensor]:
    num_nodes = positions.shape[0] - 1
    return offsets.new_empty(num_nodes + 1), offsets.new_empty(num_edges, dtype=_col_dtype(num_nodes))


@torch.library.register_fake("gossamer::neighbor_sample_compressed")
def _(codes: Tensor, offsets: Tensor, positions: Tensor, bases: Tensor, seeds: Tensor, *rest: Any) -> list[Tensor]:
    context, num_hops = torch.library.get_ctx(), len(rest[0])
    node, edge = (seeds.new_empty(context.new_dynamic_size()) for _ in range(2))
    edges = [edge, torch.empty_like(edge), torch.empty_like(edge)]
    return [node, *edges, seeds.new_empty(num_hops + 1), seeds.new_empty(num_hops)]
