"""CSR: building it from an edge index, and opening a file of 10^8 edges."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from gossamer.graph import CSR

import harness

CAPABILITY = "Graph structure"
NUM_NODES, NUM_EDGES = 131_072, 1_700_000
LARGE_NODES, LARGE_EDGES = 10**6, 10**8


@lru_cache
def edges() -> Tensor:
    """Endpoints skewed towards low ids, so that rows have very different lengths."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(2, NUM_EDGES, generator=generator).square() * NUM_NODES).long()


def as_lists(rowptr: Tensor, col: Tensor) -> Tensor:
    """Columns sorted within their rows, to compare builders that order them differently."""
    rows = torch.arange(NUM_NODES).repeat_interleave(rowptr.long().diff())
    return (rows * NUM_NODES + col).sort().values


@harness.goal(CAPABILITY, "from_edge_index, 131 k nodes and 1.7 M edges, against scipy coo_array.tocsr", unit="x")
def build_against_scipy() -> harness.Figure:
    try:
        import scipy.sparse
    except ImportError:
        raise harness.NotHere("needs scipy") from None
    source, target = edges().numpy()
    values = np.ones(NUM_EDGES, np.float32)
    shape = (NUM_NODES, NUM_NODES)
    functions = {
        "ours": lambda: CSR.from_edge_index(edges(), NUM_NODES),
        "scipy": lambda: scipy.sparse.coo_array((values, (target, source)), shape).tocsr(),
    }
    unique, theirs = functions["ours"]().coalesce(), functions["scipy"]()
    theirs.sort_indices()
    assert np.array_equal(unique.rowptr, theirs.indptr)
    assert np.array_equal(unique.col, theirs.indices)
    detail = "ours keeps duplicates and the given order, and remembers it; scipy adds duplicates up"
    return harness.compare(functions).figure("scipy", "ours", detail)


@harness.goal(CAPABILITY, "from_edge_index, 131 k nodes and 1.7 M edges, against PyG's EdgeIndex.get_csc", unit="x")
def build_against_pyg() -> harness.Figure:
    try:
        from torch_geometric import EdgeIndex
    except ImportError:
        raise harness.NotHere("needs torch_geometric") from None

    def pyg() -> tuple[Tensor, Tensor]:
        index = EdgeIndex(edges(), sparse_size=(NUM_NODES, NUM_NODES)).sort_by("col").values
        (colptr, row), _ = index.get_csc()
        return colptr, row

    functions = {"ours": lambda: CSR.from_edge_index(edges(), NUM_NODES), "pyg": pyg}
    ours = functions["ours"]()
    assert torch.equal(as_lists(ours.rowptr, ours.col), as_lists(*pyg()))
    return harness.compare(functions).figure("pyg", "ours")


@contextmanager
def large_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        if shutil.disk_usage(folder).free < 10 * LARGE_EDGES:
            raise harness.NotHere(f"needs 1 GB in {folder}")
        rowptr = torch.arange(0, LARGE_EDGES + 1, LARGE_EDGES // LARGE_NODES)
        col = torch.randint(LARGE_NODES, (LARGE_EDGES,), dtype=torch.int32)
        CSR(rowptr, col, num_nodes=LARGE_NODES).save(Path(folder) / "graph")
        yield Path(folder) / "graph"


def forget(path: Path) -> None:
    """Drop the file from the page cache, as far as the system lets us."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@harness.goal(CAPABILITY, "a file of 10^8 edges opens, not in the page cache", at_most=50, unit="ms")
def open_large_file() -> harness.Figure:
    with large_file() as path:
        samples = []
        for _ in range(20):
            forget(path)
            samples.append(harness.seconds(lambda: CSR.open(path), wall=True))
        size = path.stat().st_size
    detail = f"{size / 1e6:.0f} MB, {size / LARGE_EDGES:.2f} bytes/edge, worst of 20 {max(samples) * 1e3:.2f} ms"
    return harness.Figure(median(samples) * 1e3, detail)


@harness.goal(CAPABILITY, "opening 10^8 edges and checking every byte, in the page cache", unit="GB/s")
def verify_large_file() -> harness.Figure:
    def read(verify: bool) -> int:
        graph = CSR.open(path, verify=verify)
        return int(graph.rowptr.sum()) + int(graph.col.sum())

    with large_file() as path:
        functions = {"verified": lambda: read(True), "trusted": lambda: read(False)}
        times = harness.compare(functions, repeats=5, warmup=1)
        size = path.stat().st_size
    seconds = times["verified"].median
    return harness.Figure(size / seconds / 1e9, f"{times['verified']}; trusted, summed only: {times['trusted']}")


if __name__ == "__main__":
    harness.main()
