"""CompressedCSR: bytes per edge, and sampling speed against the uncompressed graph; memory of the converter.

Share of the uncompressed speed, design by design: 0.37 with the ones of a row counted anew for every row that is read
in single columns (in 37 % of the samples of a profile the code waited for memory); 0.44 with the words of low bits,
whose places are known before the high part is read, asked for four rows ahead; 0.47 with the ones counted every 256
bits in the code (0.03 bytes per edge), so that long rows are not read from end to end; 0.65 with POPCNT and PDEP
instead of broadword arithmetic, which processors without AVX2 still run at 0.49.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from sampling_data import batches, rmat

from gossamer.graph import CSR, CompressedCSR, neighbor_sample

import harness

CAPABILITY = "Sampling"
GRAPH = "R-MAT 2^18 nodes, 3.9 M edges"
FANOUTS = [15, 10, 5]


def sampler(graph: CSR | CompressedCSR) -> Callable[[], int]:
    """A function that samples some batches and returns how many edges it sampled."""
    seeds = batches(18)
    return lambda: sum(neighbor_sample(graph, s, FANOUTS, seed=i).edge.numel() for i, s in enumerate(seeds))


@lru_cache
def compressed() -> CompressedCSR:
    return CompressedCSR.from_csr(rmat(18))


@harness.goal(CAPABILITY, f"uncompressed graph, {GRAPH}: all that CSR.compact() holds", at_most=4.2, unit="bytes/edge")
def bytes_per_edge() -> harness.Figure:
    """Columns of int32, and row pointers of 64 bytes for 27 rows.

    Row pointers of int64 make it 4.54, of int32 4.27; 16 bits per row above one base per 64 rows 4.14, in two cache
    lines per row, and without room for hubs.
    """
    graph = rmat(18).compact()
    held = [tensor for tensor in vars(graph).values() if isinstance(tensor, torch.Tensor)]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert torch.equal(graph.rowptr, rmat(18).rowptr)
    return harness.Figure(num_bytes / graph.num_edges, f"{num_bytes / graph.num_edges - 4:.3f} of it row pointers")


@harness.goal(CAPABILITY, f"compact graph, uniform {FANOUTS}, batch 1024, {GRAPH}: time against CSR", at_most=1.05)
def compact_speed() -> harness.Figure:
    functions = {"compact": sampler(rmat(18).compact()), "CSR": sampler(rmat(18))}
    return harness.compare(functions).figure("compact", "CSR")


@harness.goal(CAPABILITY, f"CompressedCSR, {GRAPH}: all of it", at_most=2.0, unit="bytes/edge")
def compressed_bytes_per_edge() -> harness.Figure:
    graph = compressed()
    assert torch.equal(graph.to_csr().col, rmat(18).col)
    return harness.Figure(graph.num_bytes / graph.num_edges, f"{graph.codes.numel() / graph.num_edges:.2f} of it codes")


@harness.goal(
    CAPABILITY, f"CompressedCSR, uniform {FANOUTS}, batch 1024, {GRAPH}: edges/s against CSR", at_least=0.6, unit="x"
)
def compressed_speed() -> harness.Figure:
    functions = {"compressed": sampler(compressed()), "CSR": sampler(rmat(18))}
    num_edges = functions["CSR"]()
    assert functions["compressed"]() == num_edges
    times = harness.compare(functions)
    rates = ", ".join(f"{name} {num_edges / times[name].median / 1e6:.1f} M/s" for name in functions)
    return times.figure("CSR", "compressed", rates)


def convert_peak(*options: str) -> tuple[float, float]:
    """MiB at the peak of converting 10^7 edges with 32 MiB, in a process of its own, and MiB of the file."""
    with tempfile.TemporaryDirectory() as folder:
        edges, graph = Path(folder) / "edges.npz", Path(folder) / "graph"
        np.savez(edges, edge_index=np.random.default_rng(0).integers(0, 2**18, (2, 10**7)))
        script = Path(__file__).with_name("convert_memory.py")
        command = [sys.executable, str(script), str(edges), str(graph), str(32 << 20), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout), graph.stat().st_size / 2**20


@harness.goal(
    CAPABILITY, "convert, 10^7 edges (160 MB) with memory=32 MiB: peak beyond the library", at_most=40, unit="MiB"
)
def convert_memory() -> harness.Figure:
    return harness.Figure(convert_peak()[0], "highest resident memory less that before, in a process of its own")


@harness.goal(
    CAPABILITY, "the same with --compressed: peak beyond the library and the compressed graph", at_most=40, unit="MiB"
)
def convert_compressed_memory() -> harness.Figure:
    peak, size = convert_peak("--compressed")
    return harness.Figure(peak - size, f"{peak:.1f} MiB, {size:.1f} of them the graph, whose codes are mapped")


if __name__ == "__main__":
    harness.main()
