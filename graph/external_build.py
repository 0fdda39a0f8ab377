"""A graph file from more edges than fit in memory: spool, count, split by rows, sort part by part.

    add       edges go to a spool file in the order given; the edges of every target are counted
    write     the counts give rowptr; rows are cut into parts that fit; the spool is split into one file per part;
              each part is sorted by row, stably, and appended to the sections of the graph file

The file has the bytes that ``CSR.from_edge_index(...).save(path)`` would write. Memory is that of a part and 24 bytes
per node; a row longer than a part is never sorted, as its edges stand in order.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gossamer._files import whole_or_not_at_all
from gossamer.graph.csr_file import _aligned, _filling, _Header, _pack, _Section

__all__ = ["ExternalBuild"]

_BYTES_PER_EDGE = 256  # of a part in memory: its records, their order, and one gathered column
_BYTES_PER_NODE = 24
_CHUNK_SHARE = 4  # chunks are this much smaller than parts

Progress = Callable[[str, float], None]


class ExternalBuild:
    """Collects edges, then writes the graph file.

    Args:
        folder: an empty folder for spool files; about twice the bytes of the graph are written there.
        dtype: of the records, from ``record_type``.
        memory: bytes.
        edge_ids: whether the file keeps the place of each edge in the input (8 bytes per edge).
    """

    def __init__(self, folder: Path, dtype: np.dtype, *, memory: int, edge_ids: bool) -> None:
        self._folder, self._dtype, self._memory, self._edge_ids = folder, dtype, memory, edge_ids
        self._counts = np.zeros(1024, np.int64)
        self._largest_id = -1
        self._part_edges = max(memory // _BYTES_PER_EDGE, 1024)
        self.chunk_edges = max(self._part_edges // _CHUNK_SHARE, 256)
        self.num_edges = 0

    def add(self, records: np.ndarray) -> None:
        """Append edges."""
        if not len(records):
            return
        self._largest_id = max(self._largest_id, int(records["source"].max()), int(records["target"].max()))
        self._check_nodes(self._largest_id + 1)
        targets, counts = np.unique(records["target"], return_counts=True)
        if targets[-1] >= len(self._counts):
            grown = np.zeros(max(int(targets[-1]) + 1, 2 * len(self._counts)), np.int64)
            grown[: len(self._counts)] = self._counts
            self._counts = grown
        self._counts[targets] += counts
        with (self._folder / "spool").open("ab") as file:
            records.tofile(file)
        self.num_edges += len(records)

    def _check_nodes(self, num_nodes: int) -> None:
        if num_nodes * _BYTES_PER_NODE > max(self._memory, 1 << 20):
            raise ValueError(
                f"convert: memory must be at least {_BYTES_PER_NODE} bytes per node, {num_nodes * _BYTES_PER_NODE} for "
                f"ids up to {num_nodes - 1}, got {self._memory}"
            )

    def write(self, path: Path, num_nodes: int | None, progress: Progress) -> None:
        """Write the graph file, whole or not at all. num_nodes None takes the largest id plus one."""
        num_nodes = self._largest_id + 1 if num_nodes is None else num_nodes
        self._check_nodes(num_nodes)
        rowptr = np.zeros(num_nodes + 1, np.int64)
        known = min(num_nodes, len(self._counts))
        np.cumsum(self._counts[:known], out=rowptr[1 : known + 1])
        rowptr[known + 1 :] = self.num_edges
        self._counts = np.zeros(0, np.int64)
        bounds = _cut(rowptr, self._part_edges)
        self._split(bounds, progress)
        with whole_or_not_at_all(path) as file:
            sections = self._sections(num_nodes)
            writers = {name: _SectionWriter(file, section) for name, section in sections.items()}
            writers["rowptr"].add(rowptr)
            for part in range(len(bounds) - 1):
                whole = bounds[part + 1] - bounds[part] > 1
                for records in self._read_part(part, whole):
                    self._append(writers, records, sort=whole)
                progress("sorting", (part + 1) / (len(bounds) - 1))
            finished = {name: writer.finish() for name, writer in writers.items()}
            size = max(s.offset + _aligned(s.num_bytes) for s in finished.values())
            file.seek(0)
            file.write(_pack(_Header(num_nodes, self.num_edges, size, finished)))

    def _split(self, bounds: np.ndarray, progress: Progress) -> None:
        """Move the spool to one file per part, in the order of the spool; each record gets its place as its id."""
        done = 0
        for records in self._read("spool", self._dtype, self.chunk_edges):
            numbered = np.empty(len(records), [*self._dtype.descr, ("id", "<i8")])
            for name in self._dtype.names or ():
                numbered[name] = records[name]
            numbered["id"] = np.arange(done, done + len(records))
            parts = np.searchsorted(bounds, records["target"], side="right") - 1
            order = np.argsort(parts, kind="stable")
            found, begins = np.unique(parts[order], return_index=True)
            for part, places in zip(found, np.split(order, begins[1:])):
                with (self._folder / f"part{part}").open("ab") as file:
                    numbered[places].tofile(file)
            done += len(records)
            progress("splitting", done / self.num_edges)
        (self._folder / "spool").unlink(missing_ok=True)

    def _read_part(self, part: int, whole: bool) -> Iterator[np.ndarray]:
        dtype = np.dtype([*self._dtype.descr, ("id", "<i8")])
        yield from self._read(f"part{part}", dtype, -1 if whole else self.chunk_edges)
        (self._folder / f"part{part}").unlink(missing_ok=True)

    def _read(self, name: str, dtype: np.dtype, count: int) -> Iterator[np.ndarray]:
        path = self._folder / name
        if not path.exists():
            return
        with path.open("rb") as file:
            while len(records := np.fromfile(file, dtype, count)):
                yield records

    def _append(self, writers: dict[str, _SectionWriter], records: np.ndarray, *, sort: bool) -> None:
        order = np.argsort(records["target"], kind="stable") if sort else slice(None)
        for name, field in (("col", "source"), ("weight", "weight"), ("time", "time"), ("edge_ids", "id")):
            if name in writers:
                writers[name].add(records[field][order])

    def _sections(self, num_nodes: int) -> dict[str, _Section]:
        names = self._dtype.names or ()
        dtypes = {"rowptr": "int64", "col": "int32" if num_nodes < 2**31 else "int64"}
        dtypes |= {"weight": "float32"} if "weight" in names else {}
        dtypes |= {"time": "int64"} if "time" in names else {}
        dtypes |= {"edge_ids": "int64"} if self._edge_ids else {}
        empty = {name: _Section(dtype, 0, 0, 0) for name, dtype in dtypes.items()}
        offset = _aligned(len(_pack(_Header(num_nodes, self.num_edges, 0, empty))))
        for name, dtype in dtypes.items():
            num_bytes = np.dtype(dtype).itemsize * (num_nodes + 1 if name == "rowptr" else self.num_edges)
            empty[name] = _Section(dtype, offset, num_bytes, 0)
            offset += _aligned(num_bytes)
        return empty


def _cut(rowptr: np.ndarray, part_edges: int) -> np.ndarray:
    """Rows where parts begin, and the end: parts of at most about 2 * part_edges edges, longer rows alone."""
    steps = np.searchsorted(rowptr, np.arange(0, rowptr[-1], part_edges), side="right") - 1
    long_rows = np.flatnonzero(np.diff(rowptr) > part_edges)
    return np.unique(np.concatenate([[0], steps, long_rows, long_rows + 1, [len(rowptr) - 1]]))


class _SectionWriter:
    """Appends arrays to one section of the file and sums it up."""

    def __init__(self, file: BinaryIO, section: _Section) -> None:
        self._file, self._section = file, section
        self._done = self._checksum = 0

    def add(self, values: np.ndarray) -> None:
        raw = np.ascontiguousarray(values, self._section.dtype).view(np.uint8).data
        self._write(raw, len(raw))

    def _write(self, raw: memoryview | bytes, size: int) -> None:
        self._file.seek(self._section.offset + self._done)
        self._file.write(raw)
        self._checksum = zlib.crc32(raw, self._checksum)
        self._done += size

    def finish(self) -> _Section:
        assert self._done == self._section.num_bytes
        self._write(_filling(self._done), 0)
        return self._section._replace(checksum=self._checksum)
