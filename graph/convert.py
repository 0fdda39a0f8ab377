"""Edge lists to the memory-mapped graph format, in bounded memory.

gossamer convert ratings.csv ratings.gcsr --source userId --target movieId --time timestamp
gossamer convert part-*.parquet graph.gcsr --source src --target dst --memory 4G
gossamer convert edges.txt graph.small --compressed
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gossamer.graph.compressed import CompressedCSR
from gossamer.graph.csr import CSR
from gossamer.graph.csr_check import checked_num_nodes
from gossamer.graph.edge_files import Columns, read_edges, record_type
from gossamer.graph.external_build import ExternalBuild

__all__ = ["convert", "main"]

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_LEAST_MEMORY = 2**20
_BYTES_PER_SORTED_EDGE = 160


def convert(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    source: str | int = 0,
    target: str | int = 1,
    weight: str | int | None = None,
    time: str | int | None = None,
    num_nodes: int | None = None,
    memory: int = 2**30,
    edge_ids: bool = True,
    compressed: bool = False,
    progress: Callable[[str, float], None] = lambda stage, share: None,
) -> None:
    """Turn edge lists into one graph file that ``CSR.open`` maps, with the bytes of CSR.from_edge_index(...).save.

    The edges of all inputs, one file after the other, are numbered from 0. The kind of a file is told by its end:
    ``.parquet`` (needs pyarrow), ``.npz`` (edge_index [2, E] or edges [E, 2]), ``.pt`` (a PyG ``Data`` or a dictionary
    with edge_index [2, E]); anything else is text with one edge per line, with or without a header, separated by tabs,
    commas, semicolons, bars or white space; ``#`` begins a comment.

    Args:
        inputs: paths.
        output: path; appears whole or not at all. Temporary files lie beside it, about three times its size.
        source, target: columns of text and Parquet: names, or positions from 0.
        weight, time: columns, or names of arrays [E]; None for none. Weights become float32; times are integers.
        num_nodes: number of nodes; None takes the largest id plus one.
        memory: bytes to use beyond those of the library, at least 2**20, and at least 24 per node.
        edge_ids: keep the number of every edge (8 bytes each), which sampling then returns.
        compressed: write the file of a CompressedCSR instead, less than 2 bytes per edge; it keeps neither weights,
            times nor edge ids, and its memory is ``memory`` and the compressed graph.
        progress: called with the stage (reading, splitting, sorting) and the share of it that is done.

    Raises:
        OSError: if a file cannot be read or written.
        ValueError: if an input holds something else; the message names the file and the line or row.
        ImportError: if a package that an input needs is missing.
    """
    if isinstance(inputs, (str, os.PathLike)):
        raise TypeError(f"convert: inputs must be a sequence of paths, got {type(inputs).__name__}")
    paths, output = [Path(path) for path in inputs], Path(output)
    if not paths:
        raise ValueError("convert: inputs must be at least one file, got none")
    if any(path.exists() and output.exists() and path.samefile(output) for path in paths):
        raise ValueError(f"convert: output must be another file than the inputs, got {output}")
    if compressed and (weight is not None or time is not None):
        raise ValueError("convert: weight and time must be None for compressed graphs, which keep neither")
    if memory < _LEAST_MEMORY:
        raise ValueError(f"convert: memory must be at least {_LEAST_MEMORY}, got {memory}")
    if num_nodes is not None:
        num_nodes = checked_num_nodes("convert", num_nodes)
    columns = Columns(source, target, weight, time)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        build = ExternalBuild(Path(folder), record_type(columns), memory=memory, edge_ids=edge_ids and not compressed)
        for number, path in enumerate(paths):
            chunks = read_edges(path, columns, chunk_edges=build.chunk_edges, num_nodes=num_nodes)
            for records, share in chunks:
                build.add(records)
                progress("reading", (number + share) / len(paths))
        if not compressed:
            build.write(output, num_nodes, progress)
            return
        plain = Path(folder) / "plain"
        build.write(plain, num_nodes, progress)
        part_edges = max(memory // _BYTES_PER_SORTED_EDGE, 1024)
        compact = CompressedCSR._from_csr_in_parts(
            lambda: CSR.open(plain, verify=False), part_edges, Path(folder) / "codes"
        )
        compact.save(output)


def main(arguments: Sequence[str] | None = None, *, program: str = "python -m gossamer.graph.convert") -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 if interrupted."""
    options = _parse(arguments, program)
    show = _ProgressLine(quiet=options.quiet)
    begin = time.perf_counter()
    try:
        convert(
            options.inputs, options.output, source=options.source, target=options.target, weight=options.weight,
            time=options.time, num_nodes=options.num_nodes, memory=options.memory, edge_ids=options.edge_ids,
            compressed=options.compressed, progress=show,
        )  # fmt: skip
    except (OSError, ValueError, TypeError, ImportError) as error:
        show.end()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        show.end()
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    show.end()
    if not options.quiet:
        graph = (CompressedCSR if options.compressed else CSR).open(options.output)
        size = os.path.getsize(options.output) / 1e6
        seconds = time.perf_counter() - begin
        print(f"{options.output}: {graph.num_nodes} nodes, {graph.num_edges} edges, {size:.1f} MB in {seconds:.1f} s")
    return 0


def _parse(arguments: Sequence[str] | None, program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", help="text (CSV, TSV), .parquet, .npz or .pt files of edges")
    parser.add_argument("output", help="graph file to write")
    column = parser.add_argument_group("columns: names, or positions from 0")
    column.add_argument("--source", type=_column, default=0, metavar="COLUMN")
    column.add_argument("--target", type=_column, default=1, metavar="COLUMN")
    column.add_argument("--weight", type=_column, default=None, metavar="COLUMN")
    column.add_argument("--time", type=_column, default=None, metavar="COLUMN")
    parser.add_argument("--num-nodes", type=int, default=None, help="default: the largest id plus one")
    parser.add_argument("--memory", type=_size, default=2**30, help="bytes, or with K, M, G (default 1G)")
    parser.add_argument("--no-edge-ids", dest="edge_ids", action="store_false", help="8 bytes per edge less")
    parser.add_argument("--compressed", action="store_true", help="less than 2 bytes per edge, structure alone")
    parser.add_argument("--quiet", action="store_true")
    return parser.parse_args(arguments)


def _column(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def _size(text: str) -> int:
    unit = _UNITS.get(text[-1:].upper(), 1)
    digits = text[:-1] if unit > 1 else text
    try:
        return int(float(digits) * unit)
    except ValueError:
        raise argparse.ArgumentTypeError(f"memory must be a number of bytes such as 512M, got {text!r}") from None


class _ProgressLine:
    """One line that is written over on a terminal, and now and then a line elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._shown_at = time.monotonic()
        self._shown = False

    def __call__(self, stage: str, share: float) -> None:
        now = time.monotonic()
        if self._quiet or now - self._shown_at < (0.2 if self._terminal else 5.0):
            return
        self._shown_at, self._shown = now, True
        print(f"\r{stage:<10} {share:4.0%}", end="" if self._terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._terminal and self._shown:
            print("\r" + " " * 20, end="\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
