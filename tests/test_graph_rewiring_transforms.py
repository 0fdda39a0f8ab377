"""Rewiring and positional encodings as transforms of PyG data; SPN on their shells."""

import math

import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import AddRandomWalkPE
from torch_geometric.transforms import TwoHop as PyGTwoHop

from gossamer.graph import (
    CSR,
    SDRF,
    SPN,
    FoSR,
    LaplacianPE,
    RandomWalkPE,
    SPNConv,
    TwoHop,
    fosr,
    k_hop,
    laplacian_pe,
    merge_shells,
    random_walk_pe,
    sdrf,
)


def molecule(num_nodes, seed=0):
    """A random tree with one more edge, both ways, with features on nodes and edges."""
    generator = torch.Generator().manual_seed(seed)
    child = torch.arange(1, num_nodes)
    parent = (torch.rand(num_nodes - 1, generator=generator) * child).long()
    edges = torch.cat([torch.stack([parent, child]), torch.tensor([[0], [num_nodes - 1]])], 1).unique(dim=1)
    edges = torch.cat([edges, edges.flip(0)], 1).unique(dim=1)
    x = torch.randn(num_nodes, 3, generator=generator)
    return Data(x=x, edge_index=edges, edge_attr=torch.randn(edges.shape[1], 4, generator=generator))


def pairs(edges):
    return {tuple(edge) for edge in edges.T.tolist()}


def graph_of(data):
    return CSR.from_edge_index(data.edge_index, data.num_nodes)


def test_rewired_edges_stand_behind_those_that_stay():
    data = molecule(20)
    data.edge_weight = torch.rand(data.num_edges)
    for transform, added in [
        (FoSR(3, seed=1), fosr(graph_of(data), 3, seed=1)),
        (SDRF(3, tau=math.inf), sdrf(graph_of(data), 3, tau=math.inf)[0]),
    ]:
        out = transform(data)
        num_kept = data.num_edges
        assert torch.equal(out.edge_index[:, :num_kept], data.edge_index)
        assert pairs(out.edge_index[:, num_kept:]) == pairs(added) | pairs(added.flip(0))
        assert torch.equal(out.edge_attr[:num_kept], data.edge_attr)
        assert not out.edge_attr[num_kept:].any()
        assert torch.equal(out.edge_weight[num_kept:], torch.ones(6))
        assert out.edge_type.tolist() == [0] * num_kept + [1] * 6
        assert "edge_type" not in data


def test_removed_edges_take_their_features_along():
    data = molecule(20)
    added, removed = sdrf(graph_of(data), 8, tau=math.inf, removal_bound=0.0)
    assert removed.shape[1] > 0
    out = SDRF(8, tau=math.inf, removal_bound=0.0)(data)
    gone = pairs(removed) | pairs(removed.flip(0))
    kept = [i for i, edge in enumerate(data.edge_index.T.tolist()) if tuple(edge) not in gone]
    assert torch.equal(out.edge_index[:, : len(kept)], data.edge_index[:, kept])
    assert torch.equal(out.edge_attr[: len(kept)], data.edge_attr[kept])
    assert out.num_edges == len(kept) + 2 * added.shape[1] == len(out.edge_type)


def test_two_hop_has_the_edges_of_pyg():
    data = molecule(25)
    assert pairs(TwoHop()(data).edge_index) == pairs(PyGTwoHop()(data.contiguous()).edge_index)


def test_random_walks_match_pyg_one_by_one_and_in_a_batch():
    molecules = [molecule(n, seed=n) for n in (3, 90, 17)]
    expected = [AddRandomWalkPE(6)(data.clone()).random_walk_pe for data in molecules]
    for data, values in zip(molecules, expected):
        torch.testing.assert_close(RandomWalkPE(6)(data).random_walk_pe, values)
    batch = Batch.from_data_list(molecules)
    torch.testing.assert_close(random_walk_pe(CSR.from_pyg(batch), 6), torch.cat(expected))


def test_random_walks_follow_direction_weight_and_dead_ends():
    edges = torch.tensor([[0, 0, 1, 2, 2], [1, 2, 0, 0, 3]])
    weight = torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0])
    p = torch.zeros(4, 4, dtype=torch.float64)
    p[edges[0], edges[1]] = weight.double()
    p[:3] /= p[:3].sum(1, keepdim=True)
    expected = torch.stack([torch.linalg.matrix_power(p, k).diag() for k in range(1, 6)], 1).float()
    torch.testing.assert_close(random_walk_pe(CSR.from_edge_index(edges, 4, weight=weight), 5), expected)


def test_laplacian_vectors_are_eigenvectors_in_order():
    data = molecule(30)
    vectors = laplacian_pe(graph_of(data), 5).double()
    a = torch.zeros(30, 30, dtype=torch.float64)
    a[data.edge_index[0], data.edge_index[1]] = 1
    scale = a.sum(1).rsqrt()
    laplacian = torch.eye(30) - scale[:, None] * a * scale
    values = (vectors * (laplacian @ vectors)).sum(0)
    torch.testing.assert_close(laplacian @ vectors, values * vectors, rtol=0, atol=1e-6)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(5).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(laplacian)[1:6], rtol=0, atol=1e-6)
    assert (vectors.gather(0, vectors.abs().argmax(0)[None]) > 0).all()


def test_few_vectors_of_a_large_graph_are_those_of_all(monkeypatch):
    pytest.importorskip("scipy")
    graph = graph_of(molecule(60))
    dense = laplacian_pe(graph, 3)
    monkeypatch.setattr("gossamer.graph.positional._DENSE_NODES", 10)
    torch.testing.assert_close(laplacian_pe(graph, 3), dense, rtol=0, atol=1e-5)


def test_small_graphs_are_padded_with_zeros():
    data = molecule(3)
    out = LaplacianPE(5, attr_name=None)(data)
    assert out.x.shape == (3, 8)
    assert not out.x[:, 5:].any()
    assert laplacian_pe(CSR.from_edge_index(torch.zeros(2, 0).long(), 0), 2).shape == (0, 2)
    assert random_walk_pe(CSR.from_edge_index(torch.zeros(2, 0).long(), 4), 2).tolist() == [[0, 0]] * 4


def spn_by_hand(conv, shells, x):
    alpha = conv.hop_weights.softmax(0)
    total = x
    for a, shell in zip(alpha, shells):
        dense = torch.zeros(len(x), len(x), dtype=x.dtype)
        dense[shell._rows, shell.col.long()] = 1
        scale = dense.sum(1).clamp(min=1).rsqrt()
        total = total + a * (scale[:, None] * dense * scale) @ x
    return torch.nn.functional.normalize(x + conv.norm(total @ conv.lin.weight.T).relu(), dim=-1)


def test_spn_matches_the_layers_by_hand():
    torch.manual_seed(0)
    model = SPN(3, 6, 2, 4, max_hops=5).double()
    for conv in model.convs:
        torch.nn.init.normal_(conv.hop_weights)
    data = molecule(30)
    x, shells = data.x.double(), k_hop(graph_of(data), 5)
    expected = model.encoder(x)
    for conv in model.convs:
        expected = spn_by_hand(conv, shells, expected)
    expected = model.head(expected)
    out = model(x, shells)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)  # the normalisation is kept in float32
    assert torch.equal(model(x, merge_shells(shells)), out)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(out.square().sum(), parameters)
    theirs = torch.autograd.grad(expected.square().sum(), parameters)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


PATH = CSR.from_edge_index(torch.tensor([[0, 1], [1, 2]]), 3)
ONES = torch.ones(3, 1)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "random_walk_pe: graph must be a CSR, got int", lambda: random_walk_pe(3, 1)),
        (ValueError, r"random_walk_pe: num_steps must be in \[1, 65536\], got 0", lambda: random_walk_pe(PATH, 0)),
        (ValueError, r"random_walk_pe: num_steps must be in \[1, 65536\], got", lambda: random_walk_pe(PATH, 1 << 60)),
        (ValueError, r"laplacian_pe: num_vectors must be in \[1, 65536\], got 0", lambda: laplacian_pe(PATH, 0)),
        (ValueError, "SPNConv: max_hops must be at least 1, got 0", lambda: SPNConv(4, 0)),
        (ValueError, "SPN: num_layers must be at least 1, got 0", lambda: SPN(1, 2, 3, 0)),
        (ValueError, "SPN: shells must be at least 10 graphs, got 1", lambda: SPN(1, 2, 3, 1)(ONES, [PATH])),
        (ValueError, "merge_shells: shells must be at least 1 graph, got 0", lambda: merge_shells([])),
        (ValueError, "SPNConv: channels must be at least 1, got 0", lambda: SPNConv(0, 1)),
    ],
)  # fmt: skip
def test_wrong_inputs(error, message, call):
    with pytest.raises(error, match=message):
        call()
