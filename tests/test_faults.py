"""Full disks and lack of memory, by limits of the process: what was there stays, and the error says what to do."""

import resource
import sys
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from gossamer.graph import CSR, CompressedCSR, k_hop, save_shells
from gossamer.sparse_nn import SparseTransformer, SparseTransformerConfig, random_table, save_table

from pipeline_problem import make_engine, make_model, make_problem

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

import job


@contextmanager
def at_most(limit, value):
    """This process with a lower limit of its own."""
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(limit, before)


def small_graph():
    return CSR.from_edge_index(torch.randint(0, 60, (2, 400), generator=torch.Generator().manual_seed(0)), 60)


def small_model():
    torch.manual_seed(0)
    return SparseTransformer(SparseTransformerConfig(vocab_size=20, d_model=16, num_layers=1, num_heads=2))


WRITERS = {
    "table": lambda folder: save_table(folder / "table.pt", random_table(20, 4, seed=0), 4),
    "shells": lambda folder: save_shells(folder / "shells", k_hop(small_graph(), 2)),
    "graph": lambda folder: small_graph().save(folder / "graph.csr"),
    "compressed graph": lambda folder: CompressedCSR.from_csr(small_graph()).save(folder / "graph.compressed"),
    "model": lambda folder: small_model().save(folder),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_no_other(name, tmp_path):
    WRITERS[name](tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    largest = max(len(content) for content in before.values())
    for room in (0, largest // 2, largest - 1):
        with at_most(resource.RLIMIT_FSIZE, room), pytest.raises(OSError, match="File too large"):
            WRITERS[name](tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_while_a_checkpoint_is_written(tmp_path):
    """The one before is read, and the next one takes the place of what was begun."""
    graph, data = make_problem()
    engine = make_engine(make_model(dropout=0.3), graph, data, num_chunks=2, backend="torch")
    engine.train_epoch()
    saved = Path(engine.save_checkpoint(tmp_path))
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    losses = [engine.train_epoch().loss for _ in range(2)]
    for room in (100, min(map(len, before.values())) + 100, max(map(len, before.values())) - 1):
        with at_most(resource.RLIMIT_FSIZE, room), pytest.raises(OSError, match=r"folder must have room.*make room"):
            engine.save_checkpoint(tmp_path)
        assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    engine.load_checkpoint(tmp_path)
    assert [engine.train_epoch().loss for _ in range(2)] == losses
    engine.save_checkpoint(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_000001", "epoch_000003"]


def fill_the_disk(arguments):
    graph, data = make_problem()
    engine = make_engine(make_model(), graph, data, num_chunks=2, backend="torch")
    with at_most(resource.RLIMIT_FSIZE, 1000):
        engine.save_checkpoint(arguments.runs)


def fill_the_memory(arguments):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with at_most(resource.RLIMIT_AS, used + (64 << 20)):
        torch.ones(1 << 30)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        pytest.param(fill_the_disk, "make room and resume from the newest", id="disk"),
        pytest.param(fill_the_memory, "worker 0: the memory of this machine does not suffice", id="memory"),
    ],
)
def test_a_worker_of_a_training_script_says_what_to_do(work, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert job.run("script.py", Namespace(runs=str(tmp_path)), None, work) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
