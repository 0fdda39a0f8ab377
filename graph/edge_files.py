"""Edges from files in chunks: text (CSV, TSV), Parquet, npz, and PyG's or plain .pt files.

Every reader checks what it reads and says where an error stands: the line of a text file, the row of the others.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["Columns", "read_edges", "record_type"]

_MAX_NODES = 2**48
_MAX_LINE = 1 << 20
_SKIP = 1 << 18
_INTEGER = re.compile(r"[+-]?\d+")
_DELIMITERS = ("\t", ",", ";", "|")  # else white space

Chunk = tuple[np.ndarray, float]  # records, and the share of the file that is read


class Columns(NamedTuple):
    """Where the values of an edge stand: names, or positions from 0; weight and time None to leave them out."""

    source: str | int = 0
    target: str | int = 1
    weight: str | int | None = None
    time: str | int | None = None

    def used(self) -> dict[str, str | int]:
        return {name: value for name, value in self._asdict().items() if value is not None}


def record_type(columns: Columns) -> np.dtype:
    """One edge: source, target, and what there is of weight (float32) and time."""
    types = {"source": "<i8", "target": "<i8", "weight": "<f4", "time": "<i8"}
    return np.dtype([(name, types[name]) for name in columns.used()])


def read_edges(path: Path, columns: Columns, *, chunk_edges: int, num_nodes: int | None = None) -> Iterator[Chunk]:
    """Records of ``record_type(columns)`` in chunks of about chunk_edges, and how much of the file is read.

    Raises:
        OSError: if the file cannot be read.
        ValueError: naming file and line (or row) of what is no edge, or an id not in [0, num_nodes).
        ImportError: if Parquet is asked for without pyarrow.
    """
    reader = _READERS.get(path.suffix.lower(), _read_text)
    limit = _MAX_NODES if num_nodes is None else num_nodes
    yield from reader(path, columns, max(chunk_edges, 1), limit)


def _bad(place: str, requirement: str, got: object) -> ValueError:
    return ValueError(f"convert: {place} must {requirement}, got {got}")


# Text


def _read_text(path: Path, columns: Columns, chunk_edges: int, limit: int) -> Iterator[Chunk]:
    size = path.stat().st_size
    with path.open("rb") as file:
        layout, line = _text_layout(path, file, columns)
        while block := file.read(32 * chunk_edges):
            block += _rest_of_line(path, file, line + block.count(b"\n"))
            records = _parse_block(path, block, line, layout, record_type(columns), limit)
            line += block.count(b"\n")
            yield records, file.tell() / size


def _rest_of_line(path: Path, file: Any, line: int) -> bytes:
    rest = file.readline(_MAX_LINE)
    if len(rest) == _MAX_LINE:
        raise _bad(f"{path}:{line}", "be a line of text", f"{_MAX_LINE} bytes without its end")
    return rest


class _TextLayout(NamedTuple):
    delimiter: str | None  # None: white space
    positions: dict[str, int]


def _text_layout(path: Path, file: Any, columns: Columns) -> tuple[_TextLayout, int]:
    """Delimiter and positions, from the first line that is not a comment; leaves the file at the first edge."""
    if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        file.seek(0)
    line, start = 1, file.tell()
    while raw := file.readline(_MAX_LINE):
        text = _decoded(path, raw, line).split("#")[0].strip()
        if text:
            break
        line, start = line + 1, file.tell()
    else:
        return _TextLayout(None, {name: i for i, name in enumerate(columns.used())}), line
    delimiter = next((d for d in _DELIMITERS if d in text), None)
    fields = _fields(text, delimiter)
    is_header = not any(_is_number(field) for field in fields)
    positions = {name: _position(f"{path}:{line}", value, fields, is_header) for name, value in columns.used().items()}
    if not is_header:
        file.seek(start)
    return _TextLayout(delimiter, positions), line + is_header


def _fields(text: str, delimiter: str | None) -> list[str]:
    """The fields of a line; a delimiter within quotes does not count."""
    fields = text.split(delimiter)
    if delimiter is not None and '"' in text:
        with contextlib.suppress(csv.Error):  # a field of more than 128 KiB
            fields = next(csv.reader([text], delimiter=delimiter, skipinitialspace=True))
    return [field.strip().strip('"') for field in fields]


def _decoded(path: Path, raw: bytes, line: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _bad(f"{path}:{line}", "be UTF-8 text", f"{raw[:20]!r}") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _position(place: str, value: str | int, fields: list[str], is_header: bool) -> int:
    if isinstance(value, int):
        if 0 <= value < len(fields):
            return value
        raise _bad(place, f"have a column {value}, counted from 0", f"{len(fields)} columns")
    if is_header and value in fields:
        return fields.index(value)
    raise _bad(place, f"name a column {value!r}", ", ".join(fields))


def _parse_block(path: Path, block: bytes, line: int, layout: _TextLayout, dtype: np.dtype, limit: int) -> np.ndarray:
    if not block.strip():
        return np.empty(0, dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a number with a fraction where an integer belongs
            warnings.filterwarnings("ignore", message=".*input contained no data")
            records = np.loadtxt(
                io.BytesIO(block), dtype, delimiter=layout.delimiter, usecols=list(layout.positions.values()),
                quotechar='"', ndmin=1, encoding="utf-8",
            )  # fmt: skip
    except (ValueError, Warning, OverflowError) as error:
        _explain(path, block, line, layout, limit)
        raise _bad(f"{path}, from line {line}", "hold edges", error) from None
    if _first_wrong(records, limit) is not None:
        _explain(path, block, line, layout, limit)
    return records


def _explain(path: Path, block: bytes, line: int, layout: _TextLayout, limit: int) -> None:
    """Raise the error of the first line that is wrong."""
    for number, raw in enumerate(block.split(b"\n"), line):
        text = _decoded(path, raw, number).split("#")[0].strip()
        if not text:
            continue
        fields = _fields(text, layout.delimiter)
        for name, position in layout.positions.items():
            if position >= len(fields):
                raise _bad(f"{path}:{number}", f"have {max(layout.positions.values()) + 1} columns", repr(text))
            _check_field(f"{path}:{number}", name, fields[position], limit)


def _check_field(place: str, name: str, text: str, limit: int) -> None:
    if name == "weight":
        if not _is_number(text) or not np.isfinite(np.float32(float(text))):
            raise _bad(place, "have a finite number as weight", repr(text))
    elif not _INTEGER.fullmatch(text):
        raise _bad(place, f"have an integer as {name}", repr(text))
    elif name == "time" and not -(2**63) <= int(text) < 2**63:
        raise _bad(place, "have a time of 64 bits", text)
    elif name != "time" and not 0 <= int(text) < limit:
        raise _bad(place, f"have a {name} in [0, {limit})", text)


def _first_wrong(records: np.ndarray, limit: int) -> tuple[int, str] | None:
    """Row and name of the first value out of its range."""
    for name in records.dtype.names or ():
        values = records[name]
        if name == "weight":
            wrong = ~np.isfinite(values)
        elif name == "time" or not len(values):
            continue
        else:
            wrong = (values < 0) | (values >= limit)
        if wrong.any():
            return int(wrong.argmax()), name
    return None


# Columns of arrays


def _checked(path: Path, records: np.ndarray, first_row: int, limit: int) -> np.ndarray:
    if (wrong := _first_wrong(records, limit)) is not None:
        row, name = wrong
        allowed = "a finite weight" if name == "weight" else f"a {name} in [0, {limit})"
        raise _bad(f"{path}, row {first_row + row},", f"have {allowed}", records[name][row])
    return records


def _filled(path: Path, dtype: np.dtype, values: dict[str, np.ndarray]) -> np.ndarray:
    records = np.empty(len(values["source"]), dtype)
    for name, column in values.items():
        if column.dtype.kind not in ("iuf" if name == "weight" else "iu"):
            wanted = "numbers" if name == "weight" else "integers"
            raise _bad(str(path), f"hold {wanted} as {name}", column.dtype)
        if column.dtype == np.uint64 and name != "weight" and len(column) and column.max() >= 2**63:
            raise _bad(str(path), f"hold {name} below 2**63", column.max())
        records[name] = column
    return records


def _read_parquet(path: Path, columns: Columns, chunk_edges: int, limit: int) -> Iterator[Chunk]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("convert: Parquet needs pyarrow: pip install gossamer[recsys]") from error
    try:
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # of the system: there is no such file, or no right to read it
            raise
        raise _bad(str(path), "be a Parquet file", error) from None
    fields, row, total = file.schema_arrow.names, 0, max(file.metadata.num_rows, 1)
    names = {name: fields[_position(str(path), value, fields, True)] for name, value in columns.used().items()}
    for field in names.values():
        if fields.count(field) > 1:
            raise _bad(str(path), f"have one column {field!r}", fields.count(field))
    batches = file.iter_batches(chunk_edges, columns=list(dict.fromkeys(names.values())), use_threads=False)
    while (batch := _next_batch(path, batches, pyarrow.ArrowException)) is not None:
        values = {}
        for name, field in names.items():
            column = batch.column(field)
            if column.null_count:
                missing = row + int(np.asarray(column.is_null()).argmax())
                raise _bad(f"{path}, row {missing},", f"have a {name}", "none")
            values[name] = column.to_numpy(zero_copy_only=False)
        records = _checked(path, _filled(path, record_type(columns), values), row, limit)
        row += len(records)
        yield records, row / total


def _next_batch(path: Path, batches: Any, error_type: type[Exception]) -> Any:
    try:
        return next(batches, None)
    except (error_type, OSError) as error:
        raise _bad(str(path), "be a readable Parquet file", error) from None


def _read_npz(path: Path, columns: Columns, chunk_edges: int, limit: int) -> Iterator[Chunk]:
    """edge_index [2, E] or edges [E, 2], and named arrays [E], streamed from the archive and never whole in memory."""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield from _read_members(path, archive, columns, chunk_edges, limit)
        except _DAMAGED_ZIP as error:
            raise _bad(str(path), "be a whole .npz file", error) from None


def _read_members(
    path: Path, archive: zipfile.ZipFile, columns: Columns, chunk_edges: int, limit: int
) -> Iterator[Chunk]:
    stored = {name.removesuffix(".npy") for name in archive.namelist()}
    key = next((name for name in ("edge_index", "edges") if name in stored), None)
    if key is None:
        raise _bad(str(path), "hold edge_index [2, E] or edges [E, 2]", ", ".join(sorted(stored)) or "nothing")
    pair = _Member(path, archive, key)
    across = key == "edges" and pair.shape[1:] == (2,)
    if not across and (len(pair.shape) != 2 or pair.shape[0] != 2):
        raise _bad(str(path), "hold edge_index [2, E] or edges [E, 2]", list(pair.shape))
    num_edges = pair.shape[0 if across else 1]
    target = None if across else _Member(path, archive, key, skip=num_edges)
    values = {name: _Member(path, archive, str(value)) for name, value in columns.used().items() if name in _VALUES}
    for name, member in values.items():
        if member.shape != (num_edges,):
            raise _bad(str(path), f"hold one {name} per edge, [{num_edges}]", list(member.shape))
    for row in range(0, num_edges, chunk_edges):
        count = min(chunk_edges, num_edges - row)
        if target is None:
            both = pair.read(2 * count).reshape(-1, 2)
            found = {"source": both[:, 0], "target": both[:, 1]}
        else:
            found = {"source": pair.read(count), "target": target.read(count)}
        found |= {name: member.read(count) for name, member in values.items()}
        yield _checked(path, _filled(path, record_type(columns), found), row, limit), (row + count) / num_edges


class _Member:
    """One array of an .npz, read piece by piece in C order."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, name: str, *, skip: int = 0) -> None:
        try:
            self._file = archive.open(f"{name}.npy")
        except KeyError:
            raise _bad(str(path), f"hold an array {name!r}", "none") from None
        version = np.lib.format.read_magic(self._file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, fortran, self._dtype = read(self._file)
        if fortran and len(self.shape) > 1:
            raise _bad(str(path), f"hold {name} in C order", "Fortran order")
        if self._dtype.hasobject:
            raise _bad(str(path), f"hold numbers in {name}", "objects")
        left = skip * self._dtype.itemsize
        while left > 0 and (passed := len(self._file.read(min(left, _SKIP)))):  # seek() would take 32 MiB
            left -= passed

    def read(self, count: int) -> np.ndarray:
        raw = self._file.read(count * self._dtype.itemsize)
        if len(raw) < count * self._dtype.itemsize:
            raise EOFError("its end too early")
        return np.frombuffer(raw, self._dtype)


_VALUES = ("weight", "time")
# What zipfile raises for altered bytes: wrong checksums and codes, an early end, an offset before the file, and flags
# that stand for a compression it lacks or for a password.
_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


def _read_torch(path: Path, columns: Columns, chunk_edges: int, limit: int) -> Iterator[Chunk]:
    """A PyG Data or a dictionary with edge_index; the tensors stay mapped, so that only chunks are in memory."""
    from gossamer.graph.datasets import read_torch

    data = read_torch(path, function="convert", mmap=True)
    edge_index = data.get("edge_index")
    if not isinstance(edge_index, torch.Tensor) or edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise _bad(str(path), "hold edge_index [2, E]", _shape(edge_index))
    found = {"source": edge_index[0], "target": edge_index[1]}
    for name in _VALUES:
        if (key := getattr(columns, name)) is not None:
            value = data.get(key)
            if not isinstance(value, torch.Tensor) or value.shape != edge_index[0].shape:
                raise _bad(str(path), f"hold {key} [{edge_index.shape[1]}]", _shape(value))
            found[name] = value
    num_edges = edge_index.shape[1]
    for row in range(0, num_edges, chunk_edges):
        values = {name: tensor[row : row + chunk_edges].numpy() for name, tensor in found.items()}
        records = _checked(path, _filled(path, record_type(columns), values), row, limit)
        yield records, min(row + chunk_edges, num_edges) / num_edges


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__


_READERS: dict[str, Callable[[Path, Columns, int, int], Iterator[Chunk]]] = {
    ".parquet": _read_parquet,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
}
