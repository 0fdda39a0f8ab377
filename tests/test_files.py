"""Files of tables, models and shells appear whole or not at all."""

import os

import pytest
import torch

from gossamer.graph import CSR, k_hop, save_shells
from gossamer.sparse_nn import SparseTransformer, SparseTransformerConfig, random_table, save_table


def write_table(folder):
    save_table(folder / "table.pt", random_table(20, 4, seed=0), 4)


def write_shells(folder):
    save_shells(folder / "shells", k_hop(CSR.from_edge_index(torch.tensor([[0, 1], [1, 2]]), 3), 2))


def write_model(folder):
    torch.manual_seed(0)
    SparseTransformer(SparseTransformerConfig(vocab_size=20, d_model=16, num_layers=1, num_heads=2)).save(folder)


@pytest.mark.parametrize("write", [write_table, write_shells, write_model])
def test_a_failing_disk_leaves_the_old_file_and_no_other(write, tmp_path, monkeypatch):
    write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left on device"):
        write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
