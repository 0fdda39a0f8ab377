"""The graph file: one header and one section per tensor, written whole, mapped into memory when opened.

    header    magic, version, number of sections, num_nodes, num_edges, length of the file,
              then per section: name, dtype, offset, bytes, checksum; at its end the header's own checksum
    sections  the tensors, little-endian, each at a multiple of 64 bytes and filled up with zeros

Checksums are CRC-32 and cover the filling, so every byte of the file counts. Nothing in a file is executed.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import sys
import zlib
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gossamer._files import whole_or_not_at_all
from gossamer.graph.csr import _FIELDS, CSR
from gossamer.graph.csr_check import check_finite, check_ids, check_rows

__all__ = ["MappedCSR", "save"]

_MAGIC = b"GOSSACSR"
_VERSION = 1
_ALIGNMENT = 64
_HEAD = struct.Struct("<8sIIQQQ")
_ENTRY = struct.Struct("<16s8sQQI4x")
_CHECKSUM = struct.Struct("<I")
_MAX_HEADER = _HEAD.size + len(_FIELDS) * _ENTRY.size + _CHECKSUM.size
_DTYPES = {
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_ALLOWED = {
    "rowptr": ("int64",),
    "col": ("int32", "int64"),
    "weight": _FLOATS,
    "time": ("int64",),
    "edge_ids": ("int64",),
}


class _Section(NamedTuple):
    dtype: str
    offset: int
    num_bytes: int
    checksum: int


class _Header(NamedTuple):
    num_nodes: int
    num_edges: int
    file_size: int
    sections: dict[str, _Section]


def save(graph: CSR, path: str | os.PathLike[str]) -> None:
    """Write the file beside its place under a temporary name, bring it to the disk, then rename it."""
    arrays = {name: _bytes_of(t) for name, t in zip(_FIELDS, graph._tensors()) if t is not None}
    dtypes = {name: str(getattr(graph, name).dtype).removeprefix("torch.") for name in arrays}
    header = _layout(graph, arrays, dtypes)
    with whole_or_not_at_all(path) as file:
        file.write(_pack(header))
        for array in arrays.values():
            file.write(array)
            file.write(_filling(len(array)))


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data


def _filling(num_bytes: int) -> bytes:
    return bytes(-num_bytes % _ALIGNMENT)


def _aligned(num_bytes: int) -> int:
    return num_bytes + -num_bytes % _ALIGNMENT


def _layout(graph: CSR, arrays: dict[str, memoryview], dtypes: dict[str, str]) -> _Header:
    offset = _aligned(_HEAD.size + len(arrays) * _ENTRY.size + _CHECKSUM.size)
    sections = {}
    for name, array in arrays.items():
        checksum = zlib.crc32(_filling(len(array)), zlib.crc32(array))
        sections[name] = _Section(dtypes[name], offset, len(array), checksum)
        offset += _aligned(len(array))
    return _Header(graph.num_nodes, graph.num_edges, offset, sections)


def _pack(header: _Header) -> bytes:
    parts = [_HEAD.pack(_MAGIC, _VERSION, len(header.sections), *header[:3])]
    for name, section in header.sections.items():
        parts.append(_ENTRY.pack(name.encode(), section.dtype.encode(), *section[1:]))
    packed = b"".join(parts)
    packed += bytes(-(len(packed) + _CHECKSUM.size) % _ALIGNMENT)
    return packed + _CHECKSUM.pack(zlib.crc32(packed))


class MappedCSR(CSR):
    """A graph whose tensors lie in a mapped file; each is checked when it is first used.

    It is pickled as its path, so that worker processes share the pages; they check again.
    """

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True) -> None:
        self._path = os.path.abspath(os.fspath(path))
        self._verify = verify
        self._header, self._pages = _map(self._path)
        self.num_nodes = self._header.num_nodes

    @property
    def num_edges(self) -> int:
        return self._header.num_edges

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @cached_property
    def rowptr(self) -> Tensor:  # type: ignore[override]
        rowptr = self._section("rowptr")
        if self._verify:
            self._check(check_rows, rowptr, self.num_edges)
        return rowptr

    @cached_property
    def col(self) -> Tensor:  # type: ignore[override]
        col = self._section("col")
        if self._verify:
            self._check(check_ids, "CSR: col", col, self.num_nodes)
        return col

    @cached_property
    def weight(self) -> Tensor | None:  # type: ignore[override]
        if "weight" not in self._header.sections:
            return None
        weight = self._section("weight")
        if self._verify:
            self._check(check_finite, "CSR: weight", weight)
        return weight

    @cached_property
    def time(self) -> Tensor | None:  # type: ignore[override]
        return self._section("time") if "time" in self._header.sections else None

    @cached_property
    def edge_ids(self) -> Tensor | None:  # type: ignore[override]
        return self._section("edge_ids") if "edge_ids" in self._header.sections else None

    def _section(self, name: str) -> Tensor:
        section = self._header.sections[name]
        dtype = _DTYPES[section.dtype]
        if self._verify:
            with memoryview(self._pages) as pages:
                found = zlib.crc32(pages[section.offset : section.offset + _aligned(section.num_bytes)])
            if found != section.checksum:
                raise _bad(self._path, f"an altered file: the checksum of {name} does not match")
        if section.num_bytes == 0:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(
            self._pages, dtype=dtype, count=section.num_bytes // dtype.itemsize, offset=section.offset
        )

    def _check(self, check: Any, *arguments: Any) -> None:
        try:
            check(*arguments)
        except ValueError as error:
            raise _bad(self._path, f"an invalid graph: {error}") from None

    def __repr__(self) -> str:
        extras = ", ".join(f"{name}={s.dtype}" for name, s in self._header.sections.items() if name != "rowptr")
        return f"CSR(num_nodes={self.num_nodes}, num_edges={self.num_edges}, {extras}, file={self._path!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._path, self._verify)


def _reopen(path: str, verify: bool) -> MappedCSR:
    return MappedCSR(path, verify=verify)


def _bad(path: str, what: str) -> ValueError:
    return ValueError(f"CSR.open: path must be a graph file written by CSR.save, got {what} ({path})")


def _map(path: str) -> tuple[_Header, mmap.mmap]:
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise _bad(path, "a folder" if os.path.isdir(path) else "no regular file")  # opening a pipe would wait
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = _unpack(file.read(_aligned(_MAX_HEADER)), size, path)
        # Private pages: a write to a tensor stays in this process. Without a reserve, as files exceed the memory.
        flags = mmap.MAP_PRIVATE | (0x4000 if sys.platform == "linux" else 0)  # MAP_NORESERVE
        return header, mmap.mmap(file.fileno(), size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _unpack(start: bytes, size: int, path: str) -> _Header:
    if len(start) < _HEAD.size or start[: len(_MAGIC)] != _MAGIC:
        raise _bad(path, "an empty file" if not start else "another kind of file, or its first bytes only")
    _, version, num_sections, num_nodes, num_edges, file_size = _HEAD.unpack_from(start)
    if version > _VERSION:
        raise _bad(path, f"format version {version}, newer than {_VERSION}, the newest that this release reads")
    length = _aligned(_HEAD.size + num_sections * _ENTRY.size + _CHECKSUM.size)
    if len(start) < length:
        raise _bad(path, "a file cut short or altered in its header")
    if _CHECKSUM.unpack_from(start, length - _CHECKSUM.size)[0] != zlib.crc32(start[: length - _CHECKSUM.size]):
        raise _bad(path, "an altered file: the checksum of the header does not match")
    if file_size != size:
        raise _bad(path, f"a file cut short or extended: {size} bytes instead of {file_size}")
    entries = [_ENTRY.unpack_from(start, _HEAD.size + i * _ENTRY.size) for i in range(num_sections)]
    text = [
        (name.rstrip(b"\0").decode("latin-1"), dtype.rstrip(b"\0").decode("latin-1"), *r) for name, dtype, *r in entries
    ]
    header = _Header(num_nodes, num_edges, file_size, {name: _Section(*rest) for name, *rest in text})
    _check_header(header, path)
    return header


def _check_header(header: _Header, path: str) -> None:
    """A checksum only says that the header is what its writer meant; this says that it makes sense."""
    if not {"rowptr", "col"} <= header.sections.keys() <= set(_FIELDS):
        raise _bad(path, f"the sections {', '.join(header.sections)}")
    for name, section in header.sections.items():
        if section.dtype not in _ALLOWED[name]:
            raise _bad(path, f"{name} of dtype {section.dtype!r}")
        count = header.num_nodes + 1 if name == "rowptr" else header.num_edges
        if section.num_bytes != count * _DTYPES[section.dtype].itemsize:
            raise _bad(path, f"{section.num_bytes} bytes of {name} for {count} elements")
        if section.offset % _ALIGNMENT or section.offset + _aligned(section.num_bytes) > header.file_size:
            raise _bad(path, f"{name} at offset {section.offset} of {header.file_size}")
