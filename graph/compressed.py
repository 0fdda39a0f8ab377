"""CompressedCSR: a graph of less than 2 bytes per edge that can be sampled as it is."""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer._files import whole_or_not_at_all
from gossamer.graph.csr import CSR, _col_dtype

__all__ = ["CompressedCSR"]

_FIELDS = ("codes", "offsets", "positions", "bases")
_FORMAT = "gossamer compressed graph 2"
_PATH = "CompressedCSR.open: path must be a file written by CompressedCSR.save"


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

    @typed
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

    @classmethod
    def _from_csr_in_parts(
        cls, open_graph: Callable[[], CSR], part_edges: int, path: str | os.PathLike[str]
    ) -> CompressedCSR:
        """from_csr(open_graph()), sorting rows of about part_edges edges at a time: for graphs beyond the memory.

        The graph is mapped anew for every part, which gives the memory of the parts before back; the codes are written
        to ``path``, and mapped. Where everything but the rows of a part is empty, the codes are those of the part and
        the places of all rows add up over the parts.
        """
        graph = open_graph()
        num_nodes, num_edges = graph.num_nodes, graph.num_edges
        steps = torch.arange(0, max(num_edges, 1), part_edges)
        bounds = [0, *torch.searchsorted(graph.rowptr, steps[1:]).tolist(), num_nodes]
        begins = graph.rowptr[torch.tensor(sorted(set(bounds)))].tolist()
        places = None
        with open(path, "wb") as file:
            for begin, end in pairwise(begins):
                graph = open_graph()
                part = CSR._trusted(graph.rowptr.clamp(begin, end) - begin, graph.col[begin:end], num_nodes)
                codes, *own = torch.ops.gossamer.compress_rows(part.rowptr, _sorted_columns(part))
                size = int(own[0][-1])
                file.write(codes[:size].numpy().data)
                places = own if places is None else [a.add_(b) for a, b in zip(places, own)]
            if places is None:
                return cls.from_csr(graph)
            file.write(codes[size:].numpy().data)  # padding
            num_bytes = file.tell()
        codes = torch.from_file(os.fspath(path), size=num_bytes, dtype=torch.uint8)
        offsets, positions, bases = places
        return cls(codes, offsets, positions, bases, num_edges)

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
        content: dict[str, Any] = {"format": _FORMAT, "num_edges": self.num_edges}
        for name in _FIELDS:
            content |= {name: getattr(self, name), f"{name}_crc32": _checksum(getattr(self, name))}
        with whole_or_not_at_all(path) as file:
            torch.save(content, file)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> CompressedCSR:
        """Map a saved graph into memory; each tensor is checked when it is first used.

        Args:
            path: a file that ``save`` wrote.
            verify: compare the checksums; False trusts the file, and an altered one may then crash the process.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is no such file; when a tensor is first used, if it is altered.
        """
        return MappedCompressedCSR(path, verify=verify)

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


class MappedCompressedCSR(CompressedCSR):
    """A graph whose tensors lie in a mapped file; it is pickled as its path, so that workers share the pages."""

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True) -> None:
        self._path, self._verify = os.path.abspath(os.fspath(path)), verify
        self._content = _map(self._path)
        self.num_edges = self._content["num_edges"]
        self.num_nodes = self._content["positions"].numel() - 1
        self._tables = deque()

    @cached_property
    def codes(self) -> Tensor:  # type: ignore[override]
        return self._checked("codes")

    @cached_property
    def offsets(self) -> Tensor:  # type: ignore[override]
        return self._checked("offsets")

    @cached_property
    def positions(self) -> Tensor:  # type: ignore[override]
        return self._checked("positions")

    @cached_property
    def bases(self) -> Tensor:  # type: ignore[override]
        return self._checked("bases")

    def _checked(self, name: str) -> Tensor:
        if self._verify and _checksum(self._content[name]) != self._content[f"{name}_crc32"]:
            raise ValueError(f"{_PATH}, got an altered file: the checksum of {name} ({self._path})")
        return self._content[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._path, self._verify)


def _reopen(path: str, verify: bool) -> MappedCompressedCSR:
    return MappedCompressedCSR(path, verify=verify)


def _map(path: str) -> dict[str, Any]:
    os.stat(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found, _ = content["format"], [content[field].dtype for field in _FIELDS]
    except Exception as error:  # a damaged file raises anything
        raise ValueError(f"{_PATH}, got another kind of file, or one cut short ({path})") from error
    if found != _FORMAT:
        raise ValueError(f"{_PATH} of this release, got {found!r} ({path})")
    return content


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
