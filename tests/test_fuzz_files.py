"""Damaged files: every reader gives data or a ValueError, and nothing crashes. Where a checksum covers a file, the
data is what was written.

GOSSAMER_FUZZ_CASES sets the number of cases per reader (25; ``make fuzz`` runs 10 000 under sanitizers).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gossamer.graph import CSR, CompressedCSR, k_hop, load_shells, save_shells
from gossamer.graph.edge_files import Columns, read_edges
from gossamer.sparse_nn import SparseTransformer, SparseTransformerConfig, load_table, random_table, save_table

CASES = int(os.environ.get("GOSSAMER_FUZZ_CASES", "25"))


def graph() -> CSR:
    generator = torch.Generator().manual_seed(0)
    weight, time = torch.rand(60, generator=generator), torch.arange(60)
    return CSR.from_edge_index(torch.randint(20, (2, 60), generator=generator), 20, weight=weight, time=time)


def tensors_of(graph: Any, names: tuple[str, ...]) -> list[bytes]:
    return [bytes(getattr(graph, name).numpy()) for name in names]


def write_model(path: Path) -> None:
    config = SparseTransformerConfig(vocab_size=20, d_model=8, num_layers=1, num_heads=1, d_ff=8, max_len=8)
    SparseTransformer(config).save(path.parent)


def read_model(path: Path) -> Any:
    model = SparseTransformer.load(path.parent)
    return {name: bytes(value.numpy()) for name, value in model.state_dict().items()}


def read_edge_file(path: Path) -> Any:
    chunks = read_edges(path, Columns(), chunk_edges=16)
    return [records.tobytes() for records, _ in chunks]


def write_text(path: Path) -> None:
    lines = [f"{i},{(7 * i) % 20}" for i in range(20)]
    path.write_text("\n".join(["source,target", *lines]) + "\n")


def write_arrays(path: Path) -> None:
    np.savez(path, edge_index=np.stack([np.arange(20), np.arange(20)[::-1]]))


def write_tensors(path: Path) -> None:
    torch.save({"edge_index": torch.arange(40).view(2, 20) % 20}, path)


def write_parquet(path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"source": list(range(20)), "target": list(range(20))})
    parquet.write_table(table, path)


def read_shells(path: Path) -> Any:
    return [tensors_of(shell, ("rowptr", "col")) for shell in load_shells(path)]


# Name of the file: how it is written, how it is read, and whether every byte of it is covered by a checksum.
READERS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any], bool]] = {
    "graph.csr": (
        lambda path: graph().save(path),
        lambda path: tensors_of(CSR.open(path), ("rowptr", "col", "weight", "time")),
        True,
    ),
    "graph.compressed": (
        lambda path: CompressedCSR.from_csr(graph()).save(path),
        lambda path: tensors_of(CompressedCSR.open(path), ("codes", "offsets", "positions", "bases")),
        True,
    ),
    "shells": (lambda path: save_shells(path, k_hop(graph(), 2)), read_shells, True),
    "table": (
        lambda path: save_table(path, random_table(20, 4, 2, seed=0), 4),
        lambda path: bytes(load_table(path, vocab_size=20, num_experts=4).numpy()),
        True,
    ),
    "config.json": (write_model, read_model, False),
    "model.safetensors": (write_model, read_model, False),
    "edges.csv": (write_text, read_edge_file, False),
    "edges.npz": (write_arrays, read_edge_file, False),
    "edges.pt": (write_tensors, read_edge_file, False),
    "edges.parquet": (write_parquet, read_edge_file, False),
}
DAMAGE = st.lists(
    st.tuples(st.sampled_from(["alter", "cut", "insert", "remove", "swap"]), st.floats(0, 1), st.binary(max_size=9)),
    min_size=1,
    max_size=2,
)


def damaged(data: bytes, kind: str, share: float, new: bytes) -> bytes:
    """The bytes with one thing wrong (or, by luck, not wrong)."""
    place = int(share * len(data))
    if kind == "alter":
        return data[:place] + new + data[place + len(new) :]
    if kind == "cut":
        return data[:place]
    if kind == "insert":
        return data[:place] + new + data[place:]
    if kind == "remove":
        return data[:place] + data[place + 1 + len(new) :]
    return data[place:] + data[:place]


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(wounds=DAMAGE)
def test_a_damaged_file_is_read_as_it_was_or_refused(
    name: str, tmp_path_factory: pytest.TempPathFactory, wounds: list[tuple[str, float, bytes]]
) -> None:
    write, read, is_sealed = READERS[name]
    path = tmp_path_factory.mktemp("damaged") / name
    write(path)
    whole, data = read(path), path.read_bytes()
    for wound in wounds:
        data = damaged(data, *wound)
    path.write_bytes(data)
    try:
        found = read(path)
    except (ValueError, TypeError):
        return
    assert found == whole or not is_sealed
