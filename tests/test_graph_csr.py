"""CSR: making, validation, structure and copies, against dense matrices."""

import copy
import pickle

import pytest
import torch
from csr_problem import dense, edge_list, full_graph, graphs, random_edges
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.graph import CSR

# Making


def test_from_edge_index_by_hand():
    edges = torch.tensor([[2, 0, 1, 0, 2], [1, 1, 0, 1, 2]])  # 0 -> 1 twice, 2 -> 2 a self loop, 3 alone
    graph = CSR.from_edge_index(edges, 4, weight=torch.arange(5.0), time=torch.arange(5))
    assert graph.rowptr.tolist() == [0, 1, 4, 5, 5]
    assert graph.col.tolist() == [1, 2, 0, 0, 2]  # row 1 in the given order
    assert graph.edge_ids.tolist() == graph.time.tolist() == [2, 0, 1, 3, 4]
    assert graph.weight.tolist() == [2, 0, 1, 3, 4]
    assert graph.rowptr.dtype == torch.int64
    assert graph.col.dtype == torch.int32
    assert graph.in_degree().tolist() == [1, 3, 1, 0]
    assert graph.out_degree().tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_number_of_nodes_is_inferred(dtype):
    assert CSR.from_edge_index(torch.tensor([[7, 1], [3, 2]], dtype=dtype)).num_nodes == 8
    assert CSR.from_edge_index(torch.empty(2, 0, dtype=dtype)).num_nodes == 0


@given(graphs())
@settings(deadline=None, max_examples=60)
def test_edge_index_round_trip(graph):
    edges = graph.to_edge_index()[:, graph.edge_ids.argsort()]
    values = {name: None if v is None else v[graph.edge_ids.argsort()] for name, v in
              (("weight", graph.weight), ("time", graph.time))}  # fmt: skip
    assert CSR.from_edge_index(edges, graph.num_nodes, **values).equal(graph)


@given(graphs())
@settings(deadline=None, max_examples=60)
def test_every_graph_passes_its_own_validation(graph):
    for g in (graph, graph.transpose(), graph.coalesce(), graph.to_symmetric(), graph.add_self_loops()):
        CSR(g.rowptr, g.col, num_nodes=g.num_nodes, weight=g.weight, time=g.time, edge_ids=g.edge_ids)


# Wrong input

I64 = torch.int64
WRONG_PARTS = [
    ({"rowptr": [0, 1, 2]}, TypeError, "CSR: rowptr must be a tensor, got list"),
    ({"rowptr": torch.tensor([0, 1, 2], dtype=torch.int32)}, TypeError, "rowptr must be int64, got int32"),
    ({"rowptr": torch.tensor([0, 2])}, ValueError, r"rowptr must be \[3\], got \[2\]"),
    ({"rowptr": torch.tensor([1, 1, 2])}, ValueError, r"rowptr must run from 0 to num_edges \(2\), got 1 to 2"),
    ({"rowptr": torch.tensor([0, 1, 3])}, ValueError, "got 0 to 3"),
    ({"rowptr": torch.tensor([0, 3, 2])}, ValueError, "rowptr must be ascending, got a fall after row 1"),
    ({"col": torch.tensor([0.0, 1.0])}, TypeError, "col must be int32 or int64, got float32"),
    ({"col": torch.tensor([[0, 1]])}, ValueError, r"col must be \[num_edges\], got \[1, 2\]"),
    ({"col": torch.tensor([0, 2])}, ValueError, r"col must hold node ids in \[0, 2\), got 2"),
    ({"col": torch.tensor([-1, 0])}, ValueError, "got -1"),
    ({"col": torch.zeros(2, dtype=I64, device="meta")}, ValueError, "col must be on cpu .*, got meta"),
    ({"num_nodes": 2.0}, TypeError, "num_nodes must be an int, got float"),
    ({"num_nodes": True}, TypeError, "num_nodes must be an int, got bool"),
    ({"num_nodes": -1}, ValueError, r"num_nodes must be in \[0, 2\*\*48\), got -1"),
    ({"weight": torch.ones(3)}, ValueError, r"weight must be \[2\], got \[3\]"),
    ({"weight": torch.ones(2, 1)}, ValueError, r"weight must be \[2\], got \[2, 1\]"),
    ({"weight": torch.ones(2, dtype=I64)}, TypeError, "weight must be float32 or .*, got int64"),
    ({"weight": torch.tensor([1.0, float("nan")])}, ValueError, "weight must be finite, got nan at edge 1"),
    ({"weight": torch.tensor([float("-inf"), 1.0])}, ValueError, "weight must be finite, got -inf at edge 0"),
    ({"weight": torch.eye(2).to_sparse()[0]}, TypeError, "weight must be a dense tensor, got torch.sparse_coo"),
    ({"time": torch.ones(2)}, TypeError, "time must be int64, got float32"),
    ({"time": torch.ones(1, dtype=I64)}, ValueError, r"time must be \[2\], got \[1\]"),
    ({"edge_ids": torch.ones(3, dtype=I64)}, ValueError, r"edge_ids must be \[2\], got \[3\]"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG_PARTS)
def test_constructor_rejects(wrong, error, message):
    parts = {"rowptr": torch.tensor([0, 1, 2]), "col": torch.tensor([1, 0]), "num_nodes": 2, **wrong}
    with pytest.raises(error, match=message):
        CSR(parts.pop("rowptr"), parts.pop("col"), **parts)


WRONG_EDGES = [
    ([[0], [1]], {}, TypeError, "edge_index must be a tensor, got list"),
    (torch.zeros(3, 2, dtype=I64), {}, ValueError, r"edge_index must be \[2, num_edges\], got \[3, 2\]"),
    (torch.zeros(2, dtype=I64), {}, ValueError, r"got \[2\]"),
    (torch.zeros(2, 3), {}, TypeError, "edge_index must be int64 or int32, got float32"),
    (torch.tensor([[0, 1], [1, 5]]), {"num_nodes": 5}, ValueError, r"node ids in \[0, 5\), got 5"),
    (torch.tensor([[0, -3], [1, 1]]), {}, ValueError, r"node ids in \[0, 2\), got -3"),
    (torch.tensor([[-1], [-1]]), {}, ValueError, r"node ids in \[0, 0\), got -1"),
    (torch.tensor([[2**63 - 1], [0]]), {}, ValueError, r"num_nodes must be in \[0, 2\*\*48\), got 9223372036854775808"),
    (torch.tensor([[0], [1]]), {"num_nodes": "2"}, TypeError, "num_nodes must be an int, got str"),
    (torch.tensor([[0], [1]]), {"weight": torch.ones(2)}, ValueError, r"weight must be \[1\], got \[2\]"),
    (torch.tensor([[0], [1]]), {"time": torch.ones(1)}, TypeError, "time must be int64"),
]


@pytest.mark.parametrize(("edges", "options", "error", "message"), WRONG_EDGES)
def test_from_edge_index_rejects(edges, options, error, message):
    with pytest.raises(error, match=f"CSR.from_edge_index: .*{message}"):
        CSR.from_edge_index(edges, **options)


def test_arguments_are_not_changed():
    edges = random_edges(5, 12)
    weight, before = torch.rand(12), edges.clone()
    graph = CSR.from_edge_index(edges, weight=weight)
    graph.coalesce()
    graph.add_self_loops()
    graph.to_scipy().data[:] = 0  # a copy
    assert torch.equal(edges, before)
    assert torch.equal(graph.weight, weight[graph.edge_ids])


# Structure


@given(graphs())
@settings(deadline=None, max_examples=60)
def test_transpose_reverses_every_edge(graph):
    back = graph.transpose()
    assert torch.equal(dense(back), dense(graph).T)
    assert edge_list(back) == sorted((t, s, *rest) for s, t, *rest in edge_list(graph))
    assert graph.transpose() is back
    positions = graph._transpose_positions
    assert torch.equal(graph._rows[positions], back.col.long())
    assert torch.equal(graph.col[positions].long(), back._rows)


@given(graphs(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_permute_renumbers_the_nodes(graph, random):
    order = list(range(graph.num_nodes))
    random.shuffle(order)
    order = torch.tensor(order, dtype=I64)
    moved = graph.permute(order)
    assert torch.equal(dense(moved), dense(graph)[order][:, order])
    rank = order.argsort().tolist()
    assert edge_list(moved) == sorted((rank[s], rank[t], *rest) for s, t, *rest in edge_list(graph))
    assert moved.permute(order.argsort()).equal(graph)


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        ([0, 1], TypeError, "order must be a tensor, got list"),
        (torch.arange(5), ValueError, r"order must be \[6\]"),
        (torch.tensor([0, 1, 2, 3, 4, 4]), ValueError, "every node id once, got duplicates"),
        (torch.tensor([0, 1, 2, 3, 4, 6]), ValueError, r"node ids in \[0, 6\), got 6"),
    ],
)
def test_permute_rejects(order, error, message):
    with pytest.raises(error, match=f"CSR.permute: .*{message}"):
        full_graph().permute(order)


# Copies and comparison


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda g: pickle.loads(pickle.dumps(g))])
def test_copies_are_equal(duplicate):
    graph = full_graph()
    graph.transpose()
    again = duplicate(graph)
    assert again.equal(graph)
    assert torch.equal(dense(again.transpose()), dense(graph).T)


def test_pickle_leaves_out_what_is_cached():
    graph = full_graph(num_edges=500)
    size = len(pickle.dumps(graph))
    graph.transpose()
    assert len(pickle.dumps(graph)) == size


def test_equal_looks_at_everything():
    graph = full_graph()
    assert graph.equal(full_graph())
    assert not graph.equal(full_graph().transpose())
    assert not graph.equal(CSR(graph.rowptr, graph.col, num_nodes=6))
    assert not graph.equal("graph")
    assert not CSR(graph.rowptr, graph.col, num_nodes=6).equal(CSR(graph.rowptr, graph.col.long(), num_nodes=6))


def test_repr():
    text = "CSR(num_nodes=6, num_edges=20, col=int32, weight=float32, time=int64, edge_ids=int64, device=cpu)"
    assert repr(full_graph()) == text


def test_to_device(device):
    graph = full_graph()
    moved = graph.to(device)
    assert moved.device.type == torch.device(device).type
    assert graph.to("cpu") is graph
    assert moved.to("cpu").equal(graph)
