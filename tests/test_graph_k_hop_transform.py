"""KHop: pairs beside bonds, through PyG batches, and from a cache that never lies."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from gossamer.graph import (
    CSR,
    SDRF,
    FoSR,
    KHop,
    LaplacianPE,
    RandomWalkPE,
    TwoHop,
    hop_shells,
    k_hop,
    load_shells,
    merge_shells,
    save_shells,
)


def molecule(num_nodes, seed=0):
    torch.manual_seed(seed)
    source, target = torch.arange(num_nodes - 1), torch.arange(1, num_nodes)
    edges = torch.cat([torch.stack([source, target]), torch.stack([target, source])], 1)
    return Data(x=torch.randn(num_nodes, 3), edge_index=edges, edge_attr=torch.randn(edges.shape[1], 4))


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert torch.equal(a.rowptr, b.rowptr)
        assert torch.equal(a.col, b.col)


@pytest.mark.parametrize("directed", [True, False])
def test_batches_keep_bonds_and_shells(directed):
    molecules = [molecule(n) for n in (5, 1, 12)]
    batch = Batch.from_data_list([KHop(4, directed=directed)(data) for data in molecules])
    plain = Batch.from_data_list(molecules)
    assert torch.equal(batch.edge_index, plain.edge_index)
    assert torch.equal(batch.edge_attr, plain.edge_attr)
    assert not hasattr(molecules[0], "hop")
    graph = CSR.from_edge_index(plain.edge_index, plain.num_nodes)
    assert_equal(hop_shells(batch, 4), k_hop(graph, 4, directed=directed))


@pytest.mark.parametrize("transform", [KHop(3), SDRF(1), FoSR(1), TwoHop(), RandomWalkPE(2), LaplacianPE(1)])
def test_a_batch_with_an_edge_between_its_graphs_is_refused(transform):
    batch = Batch.from_data_list([molecule(5), molecule(4)])
    batch.edge_index = torch.cat([batch.edge_index, torch.tensor([[2], [7]])], 1)
    message = f"{type(transform).__name__}: data.edge_index must join nodes of the same graph, got 2 -> 7 from graph 0"
    with pytest.raises(ValueError, match=message):
        transform(batch)
    batch.batch = batch.batch[:-1]
    with pytest.raises(ValueError, match=r"data\.batch must have one entry for each of 9 nodes, got "):
        transform(batch)


@pytest.mark.parametrize("transform", [SDRF(1), FoSR(1), LaplacianPE(1)])
def test_what_would_mix_the_graphs_of_a_batch_is_refused(transform):
    batch = Batch.from_data_list([molecule(5), molecule(4)])
    with pytest.raises(ValueError, match=f"{type(transform).__name__}: data must be one graph, got a batch of 2"):
        transform(batch)
    transform(Batch.from_data_list([molecule(5)]))


def test_pairs_between_the_graphs_of_a_batch_are_refused():
    batch = Batch.from_data_list([KHop(3)(molecule(5)), KHop(3)(molecule(4))])
    batch.hop_index[1, 0] = 8
    with pytest.raises(ValueError, match=r"hop_shells: data\.hop_index must join nodes of the same graph, got"):
        hop_shells(batch, 3)


def test_cache_is_read_and_knows_the_graph(tmp_path, monkeypatch):
    transform = KHop(4, cache=tmp_path / "new")
    first = transform(molecule(9))
    monkeypatch.setattr("gossamer.graph.k_hop_transform.k_hop", None)
    again = transform(molecule(9))
    assert torch.equal(again.hop_index, first.hop_index)
    assert torch.equal(again.hop, first.hop)
    for other, data in [(transform, molecule(10)), (KHop(3, cache=tmp_path / "new"), molecule(9))]:
        with pytest.raises(TypeError):  # not in the cache: k_hop would be called
            other(data)


def test_cached_pairs_are_no_more_than_allowed(tmp_path):
    KHop(4, cache=tmp_path)(molecule(9))
    with pytest.raises(ValueError, match="k_hop: max_pairs must be at least"):
        KHop(4, cache=tmp_path, max_pairs=3)(molecule(9))


def test_damaged_cache_is_made_anew(tmp_path):
    transform = KHop(4, cache=tmp_path)
    first = transform(molecule(9))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content[:60] + bytes([content[60] ^ 1]) + content[61:]):
        path.write_bytes(damaged)
        assert torch.equal(transform(molecule(9)).hop_index, first.hop_index)
        assert path.read_bytes() == content


@pytest.mark.parametrize("num_nodes", [0, 1, 2, 300, 70_000])
def test_files_give_back_the_shells(num_nodes, tmp_path):
    ring = torch.arange(num_nodes)
    shells = k_hop(CSR.from_edge_index(torch.stack([ring, ring.roll(1)]), num_nodes), 3)
    save_shells(tmp_path / "a", shells)
    assert_equal(load_shells(tmp_path / "a"), shells)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_shells_are_those_that_were_asked_for():
    batch = Batch.from_data_list([KHop(4)(molecule(3)), KHop(6)(molecule(12))])
    assert len(hop_shells(batch, 4)) == 4
    for max_hops in (0, -1, 5, 10**9):  # the first molecule has no pairs of 5 hops because none were asked for
        with pytest.raises(ValueError, match=rf"hop_shells: max_hops must be in \[1, 4\], .*, got {max_hops}"):
            hop_shells(batch, max_hops)
    with pytest.raises(TypeError, match="hop_shells: data must have the pairs of KHop, got Data without them"):
        hop_shells(molecule(3), 1)


def test_wrong_inputs(tmp_path):
    (tmp_path / "a").write_bytes(b"something else")
    with pytest.raises(ValueError, match="load_shells: path must be an undamaged file of save_shells, got"):
        load_shells(tmp_path / "a")
    for function in (merge_shells, lambda shells: save_shells(tmp_path / "b", shells)):
        with pytest.raises(ValueError, match=r"_shells: shells must have equal num_nodes, got \[2, 3\]"):
            function([CSR.from_edge_index(torch.tensor([[0], [n - 1]])) for n in (2, 3)])
    with pytest.raises(ValueError, match=r"KHop: max_hops must be an int in \[1, 255\], got 0"):
        KHop(0)
    with pytest.raises(ValueError, match="KHop: cache must be a folder, got"):
        KHop(1, cache=tmp_path / "a")
    with pytest.raises(TypeError, match="KHop: data must be a PyG Data with an edge_index, got NoneType"):
        KHop(1)(None)
