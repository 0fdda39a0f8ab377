"""Compact row pointers: the same rows, the same samples, fewer bytes."""

import pickle

import pytest
import torch
from sampling_problem import MODES, random_graph, sample

from gossamer.graph import CSR
from gossamer.graph.compact import pack_rowptr, unpack_rowptr

DEGREES = [
    pytest.param([], id="no row"),
    pytest.param([3], id="one row"),
    pytest.param([0] * 100, id="empty rows"),
    pytest.param([2] * 27, id="one full line"),
    pytest.param([2] * 28, id="one row more"),
    pytest.param([65_535] + [0] * 30, id="the most that 16 bits hold"),
    pytest.param([65_536] + [0] * 30, id="one more"),
    pytest.param([1] * 30 + [70_000, 5] * 20 + [1] * 40, id="wide lines between narrow ones"),
    pytest.param([2**40] * 60, id="beyond 32 bits"),
]


@pytest.mark.parametrize("degrees", DEGREES)
def test_row_pointers_come_back(degrees):
    rowptr = torch.tensor([0, *degrees], dtype=torch.int64).cumsum(0)
    lines = pack_rowptr(rowptr)
    assert lines.shape[1] == 32
    assert torch.equal(unpack_rowptr(lines, len(degrees)), rowptr)


@pytest.mark.parametrize("options", MODES)
def test_samples_are_those_of_the_plain_graph(options):
    graph = random_graph(300, 5000)
    seeds = torch.arange(0, 300, 3)
    ours, plain = (sample(g, seeds, [4, 3, 0.5], options) for g in (graph.compact(), graph))
    for name in ("node", "row", "col", "edge"):
        assert torch.equal(getattr(ours, name), getattr(plain, name)), name


def test_rows_of_wide_lines_are_sampled():
    degrees = torch.tensor([1] * 30 + [70_000, 5] * 3 + [1] * 40)
    rowptr = torch.cat([torch.zeros(1, dtype=torch.int64), degrees.cumsum(0)])
    generator = torch.Generator().manual_seed(0)
    col = torch.randint(len(degrees), (int(rowptr[-1]),), generator=generator, dtype=torch.int32)
    graph = CSR(rowptr, col, num_nodes=len(degrees))
    ours, plain = (sample(g, torch.arange(len(degrees)), [4, 3], {}) for g in (graph.compact(), graph))
    assert torch.equal(ours.edge, plain.edge)
    assert torch.equal(ours.node, plain.node)


def test_a_compact_graph_is_a_graph(tmp_path):
    graph = random_graph(300, 5000)
    compact = graph.compact()
    assert compact.equal(graph)
    assert compact.compact() is compact
    assert compact.device == graph.device
    assert compact.to("cpu") is compact
    assert compact.transpose().equal(graph.transpose())
    compact.save(tmp_path / "graph")
    assert CSR.open(tmp_path / "graph").compact().equal(graph)


def test_a_pickled_one_stays_compact():
    compact = random_graph(300, 5000).compact()
    again = pickle.loads(pickle.dumps(compact))
    assert type(again) is type(compact)
    assert again.equal(compact)
    assert len(pickle.dumps(compact._lines)) < 300 * 4 + 1000
