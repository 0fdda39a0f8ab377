"""CompressedCSR: codes against the oracle, sampling against the uncompressed graph to the bit."""

import pickle

import pytest
import torch

from gossamer.graph import CSR, CompressedCSR, neighbor_sample

import reference

LARGE_ROW = 5000  # longer than what is decoded as a whole


def skewed(num_nodes, num_edges, seed=0):
    g = torch.Generator().manual_seed(seed)
    target = (torch.rand(num_edges, generator=g).pow(6) * num_nodes).long()
    return CSR.from_edge_index(torch.stack([torch.randint(num_nodes, (num_edges,), generator=g), target]), num_nodes)


GRAPHS = [
    pytest.param(lambda: skewed(9000, 60_000), id="skewed, three bases"),
    pytest.param(lambda: CSR.from_edge_index(torch.empty(2, 0, dtype=torch.int64), 0), id="no nodes"),
    pytest.param(lambda: CSR.from_edge_index(torch.empty(2, 0, dtype=torch.int64), 17), id="no edges"),
    pytest.param(lambda: CSR.from_edge_index(torch.zeros(2, 1, dtype=torch.int64), 1), id="one node, one loop"),
    pytest.param(lambda: CSR.from_edge_index(torch.zeros(2, 300, dtype=torch.int64), 1), id="one edge 300 times"),
    pytest.param(lambda: CSR.from_edge_index(torch.full((2, 9), 4095), 4096), id="last node"),
    pytest.param(lambda: CSR.from_edge_index(torch.tensor([[2**20 - 1, 0], [3, 2**20 - 1]]), 2**20), id="sparse"),
    pytest.param(
        lambda: CSR.from_edge_index(torch.stack([torch.arange(LARGE_ROW), torch.zeros(LARGE_ROW, dtype=int)])),
        id="full row",
    ),
]


def sorted_graph(graph):
    return CSR(*graph.transpose().transpose()._tensors()[:2], num_nodes=graph.num_nodes)


@pytest.mark.parametrize("make", GRAPHS)
def test_codes_are_those_of_the_oracle_and_decode(make):
    graph = make()
    small = CompressedCSR.from_csr(graph)
    expected = sorted_graph(graph)
    rows = expected.col.tensor_split(expected.rowptr[1:-1]) if graph.num_nodes else []
    code = b"".join(reference.elias_fano_row(row.tolist(), graph.num_nodes) for row in rows)
    assert bytes(small.codes.numpy()) == code + bytes(8)
    back = small.to_csr()
    assert torch.equal(back.rowptr, expected.rowptr)
    assert torch.equal(back.col, expected.col)
    assert (small.num_nodes, small.num_edges) == (graph.num_nodes, graph.num_edges)


@pytest.mark.parametrize("fanouts", [[15, 10, 5], [-1], [3, -1], [0.1, 0.5], []])
@pytest.mark.parametrize("replace", [False, True])
def test_samples_are_those_of_the_graph(fanouts, replace):
    graph = skewed(3000, 40_000)
    small, expected = CompressedCSR.from_csr(graph), sorted_graph(graph)
    seeds = torch.cat([torch.arange(40), torch.randint(3000, (200,), generator=torch.Generator().manual_seed(1))])
    for seed in (0, 2**64 - 1):
        ours = neighbor_sample(small, seeds, fanouts, seed=seed, replace=replace)
        theirs = neighbor_sample(expected, seeds, fanouts, seed=seed, replace=replace)
        for name in ("node", "row", "col", "edge"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert ours.num_sampled_nodes == theirs.num_sampled_nodes
        assert ours.num_sampled_edges == theirs.num_sampled_edges


def test_long_rows_are_read_at_single_places():
    graph = CSR.from_edge_index(torch.stack([torch.randint(10**6, (LARGE_ROW,)), torch.full((LARGE_ROW,), 5)]), 10**6)
    small, expected = CompressedCSR.from_csr(graph), sorted_graph(graph)
    for seed in range(200):
        ours = neighbor_sample(small, torch.tensor([5]), [20], seed=seed)
        assert torch.equal(ours.node, neighbor_sample(expected, torch.tensor([5]), [20], seed=seed).node)


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_instruction_sets_read_the_same_columns(isa, monkeypatch):
    graph = skewed(3000, 40_000)
    small, expected, seeds = CompressedCSR.from_csr(graph), sorted_graph(graph), torch.arange(0, 3000, 7)
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    for fanouts in ([5, 3], [40], [0.1]):
        ours, theirs = (neighbor_sample(g, seeds, fanouts, seed=1) for g in (small, expected))
        assert torch.equal(ours.node, theirs.node)


def test_threads_do_not_change_samples():
    small = CompressedCSR.from_csr(skewed(3000, 40_000))
    before = torch.get_num_threads()
    outs = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        outs.append(neighbor_sample(small, torch.arange(1000), [5, 5], seed=0))
    torch.set_num_threads(before)
    assert torch.equal(outs[0].node, outs[1].node)
    assert torch.equal(outs[0].edge, outs[1].edge)


def test_files(tmp_path):
    small = CompressedCSR.from_csr(skewed(3000, 40_000))
    small.save(tmp_path / "graph")
    mapped = CompressedCSR.open(tmp_path / "graph")
    shared = pickle.dumps(mapped)
    assert len(shared) < 500  # the path, so that workers share the pages
    assert (mapped.num_nodes, mapped.num_edges) == (3000, 40_000)
    for again in (mapped, pickle.loads(shared), pickle.loads(pickle.dumps(small))):
        assert all(torch.equal(a, b) for a, b in zip(again._tensors(), small._tensors()))
        assert again.num_edges == small.num_edges
    raw = bytearray((tmp_path / "graph").read_bytes())
    where = raw.find(bytes(small.codes[100:160].numpy()))
    raw[where] ^= 1
    (tmp_path / "altered").write_bytes(raw)
    (tmp_path / "short").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"CompressedCSR.open: .* got an altered file: the checksum of codes"):
        neighbor_sample(CompressedCSR.open(tmp_path / "altered"), torch.arange(5), [2], seed=0)
    with pytest.raises(ValueError, match=r"CompressedCSR.open: .* got another kind of file, or one cut short"):
        CompressedCSR.open(tmp_path / "short")
    with pytest.raises(FileNotFoundError):
        CompressedCSR.open(tmp_path / "missing")


@pytest.mark.parametrize("part_edges", [1, 700, 10**6])
def test_compressed_in_parts(part_edges, tmp_path):
    """Rows are sorted part by part: the same graph, with rows longer than a part and rows without edges."""
    num_edges = 60 if part_edges == 1 else 40_000
    graph = skewed(3000, num_edges)
    whole = CompressedCSR.from_csr(graph)
    parts = CompressedCSR._from_csr_in_parts(lambda: graph, part_edges, tmp_path / "codes")
    assert all(a.equal(b) for a, b in zip(whole._tensors(), parts._tensors()))
    empty = CSR.from_edge_index(torch.empty(2, 0, dtype=torch.int64), 5)
    assert CompressedCSR._from_csr_in_parts(lambda: empty, part_edges, tmp_path / "empty").to_csr().num_edges == 0


def test_wrong_arguments():
    small = CompressedCSR.from_csr(skewed(30, 400))
    for options in ({"weighted": True}, {"disjoint": True}, {"seed_time": torch.zeros(1, dtype=torch.int64)}):
        with pytest.raises(ValueError, match="neighbor_sample: graph must be a CSR for weights, times and disjoint"):
            neighbor_sample(small, torch.tensor([0]), [2], seed=0, **options)
    with pytest.raises(ValueError, match=r"neighbor_sample: seeds must be in \[0, 30\), got 30 to 30"):
        neighbor_sample(small, torch.tensor([30]), [2], seed=0)
    with pytest.raises(RuntimeError, match=r"compress_rows: col must be in .* and ascend within each row"):
        torch.ops.gossamer.compress_rows(torch.tensor([0, 2, 2]), torch.tensor([1, 0]))
    with pytest.raises(RuntimeError, match=r"compress_rows: rowptr must run from 0 to num_edges"):
        torch.ops.gossamer.compress_rows(torch.tensor([0, 3]), torch.tensor([0, 0]))


def test_opcheck():
    graph = sorted_graph(skewed(40, 200))
    small = CompressedCSR.from_csr(graph)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.gossamer.compress_rows.default, (graph.rowptr, graph.col), test_utils=tests)
    decode = (*small._tensors(), small.num_edges)
    torch.library.opcheck(torch.ops.gossamer.decompress_rows.default, decode, test_utils=tests)
    sample = (*small._tensors(), torch.arange(4), [3.0, 2.0], 0, False, torch.zeros(41, dtype=torch.int32))
    torch.library.opcheck(torch.ops.gossamer.neighbor_sample_compressed.default, sample, test_utils=tests)
