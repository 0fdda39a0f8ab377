"""CSR: structure, validation, conversions and edits, against dense matrices and scipy."""

import copy
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.graph import CSR


def random_edges(num_nodes, num_edges, seed=0):
    return torch.randint(num_nodes, (2, num_edges), generator=torch.Generator().manual_seed(seed))


def full_graph(num_nodes=6, num_edges=20):
    """A graph with duplicates, self loops, isolated nodes and every kind of edge value."""
    edges = random_edges(num_nodes - 1, num_edges)
    return CSR.from_edge_index(edges, num_nodes, weight=edges.prod(0) / 7, time=edges.sum(0) * 10)


def dense(graph):
    """[target, source] sums of the weights."""
    matrix = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    values = torch.ones(graph.num_edges) if graph.weight is None else graph.weight
    return matrix.index_put_((graph._rows, graph.col.long()), values.double(), accumulate=True)


def edge_list(graph):
    """Every edge with all that it carries, sorted."""
    source, target = graph.to_edge_index()
    columns = [source, target, *(v for v in (graph.weight, graph.time, graph.edge_ids) if v is not None)]
    return sorted(zip(*(c.tolist() for c in columns)))


@st.composite
def graphs(draw):
    num_nodes = draw(st.integers(0, 12))
    node = st.integers(0, max(num_nodes - 1, 0))
    edges = draw(st.lists(st.tuples(node, node), max_size=40 if num_nodes else 0))
    index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    generator = torch.Generator().manual_seed(len(edges))
    weight = torch.rand(len(edges), generator=generator) if draw(st.booleans()) else None
    time = torch.randint(9, (len(edges),), generator=generator) if draw(st.booleans()) else None
    return CSR.from_edge_index(index, num_nodes, weight=weight, time=time)


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


# Edits


@given(graphs())
@settings(deadline=None, max_examples=60)
def test_coalesce_matches_scipy(graph):
    ours = graph.coalesce()
    theirs = graph.to_scipy()
    theirs.sum_duplicates()
    assert ours.rowptr.tolist() == theirs.indptr.tolist()
    assert ours.col.tolist() == theirs.indices.tolist()
    if graph.weight is not None:
        np.testing.assert_allclose(ours.weight.numpy(), theirs.data, rtol=1e-6)
    assert ours.coalesce().equal(ours)


@pytest.mark.parametrize(("reduce", "expected"), [("sum", 9.0), ("mean", 3.0), ("max", 5.0), ("min", 1.0)])
def test_coalesce_merges_weights_and_keeps_the_earliest_time(reduce, expected):
    edges = torch.tensor([[1, 1, 1], [0, 0, 0]])
    graph = CSR.from_edge_index(edges, weight=torch.tensor([5.0, 1, 3]), time=torch.tensor([7, 4, 6]))
    merged = graph.coalesce(reduce=reduce)
    assert edge_list(merged) == [(1, 0, expected, 4)]


@given(graphs())
@settings(deadline=None, max_examples=60)
def test_symmetric_graphs_equal_their_transpose(graph):
    both = graph.to_symmetric()
    assert torch.equal(dense(both), dense(both).T)
    assert torch.equal(dense(both) > 0, (dense(graph) + dense(graph).T) > 0)
    assert both.to_symmetric().equal(both)


def test_symmetric_sum_does_not_double_self_loops():
    graph = CSR.from_edge_index(torch.tensor([[0, 0, 1], [0, 1, 0]]), weight=torch.tensor([1.0, 2, 3]))
    assert dense(graph.to_symmetric(reduce="sum")).tolist() == [[1, 5], [5, 0]]


@pytest.mark.parametrize("method", ["coalesce", "to_symmetric"])
def test_unknown_reduction(method):
    with pytest.raises(ValueError, match=f"CSR.{method}: reduce must be sum, mean, max or min, got 'median'"):
        getattr(full_graph(), method)(reduce="median")


@given(graphs())
@settings(deadline=None, max_examples=60)
def test_self_loops_are_added_where_missing(graph):
    looped = graph.add_self_loops(weight=0.5)
    present = {s for s, t, *_ in edge_list(graph) if s == t}
    new = [edge for edge in edge_list(looped) if edge[-1] == -1]
    assert sorted(edge[0] for edge in new) == sorted(set(range(graph.num_nodes)) - present)
    assert [edge for edge in edge_list(looped) if edge[-1] != -1] == edge_list(graph)
    assert all(edge[2] == 0.5 for edge in new if graph.weight is not None)
    assert looped.add_self_loops().equal(looped)


def test_self_loops_take_finite_weights():
    with pytest.raises(ValueError, match=r"CSR.add_self_loops: weight must be finite, got nan"):
        full_graph().add_self_loops(weight=float("nan"))


def test_edits_pass_gradients_to_the_weights():
    weight = torch.rand(20, dtype=torch.float64, requires_grad=True)
    graph = CSR.from_edge_index(random_edges(5, 20), 6, weight=weight)
    edited = graph.add_self_loops().coalesce().transpose().permute(torch.arange(6).flip(0))
    edited.weight.square().sum().backward()
    assert (weight.grad > 0).all()


# Conversions


@given(graphs())
@settings(deadline=None, max_examples=60)
def test_scipy_rows_are_targets(graph):
    matrix = graph.to_scipy()
    np.testing.assert_allclose(matrix.toarray(), dense(graph).numpy(), rtol=1e-6)
    again = CSR.from_scipy(matrix)
    assert torch.equal(again.rowptr, graph.rowptr)
    assert torch.equal(again.col, graph.col)
    assert graph.weight is None or torch.equal(again.weight, graph.weight)


@pytest.mark.parametrize("layout", ["coo", "csc", "csr", "lil"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
def test_from_any_scipy_matrix(layout, dtype):
    matrix = scipy.sparse.random(7, 7, 0.4, random_state=0, format=layout).astype(dtype)
    graph = CSR.from_scipy(matrix)
    assert graph.to_scipy().toarray().tolist() == matrix.toarray().astype(np.float64).tolist() or dtype == np.bool_
    assert (graph.weight is None) == (dtype == np.bool_)


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (np.eye(3), TypeError, "must be a scipy.sparse matrix, got ndarray"),
        (scipy.sparse.csr_array((2, 3)), ValueError, r"must be square, got \[2, 3\]"),
        (scipy.sparse.eye_array(2, dtype=np.complex64), ValueError, "must hold one real number"),
    ],
)
def test_from_scipy_rejects(matrix, error, message):
    with pytest.raises(error, match=f"CSR.from_scipy: matrix {message}"):
        CSR.from_scipy(matrix)


def test_half_precision_weights_reach_scipy():
    graph = CSR.from_edge_index(random_edges(4, 9), 4, weight=torch.rand(9).bfloat16())
    assert graph.to_scipy().dtype == np.float32


def test_pyg_round_trip():
    pyg = pytest.importorskip("torch_geometric.data")
    edges = random_edges(6, 15)
    data = pyg.Data(edge_index=edges, edge_weight=torch.rand(15), edge_time=torch.arange(15), num_nodes=9)
    graph = CSR.from_pyg(data)
    assert graph.equal(CSR.from_edge_index(edges, 9, weight=data.edge_weight, time=data.edge_time))
    again = graph.to_pyg()
    assert again.num_nodes == 9
    assert torch.equal(again.edge_index, graph.to_edge_index())
    assert torch.equal(again.edge_index, edges[:, again.e_id])
    assert torch.equal(again.edge_weight, graph.weight)
    assert torch.equal(again.edge_time, graph.time)


def test_pyg_subclass_and_transposed_adjacency():
    pyg = pytest.importorskip("torch_geometric")
    edges = random_edges(6, 15)
    graph = CSR.from_edge_index(edges, 6).coalesce()
    index = pyg.EdgeIndex(edges, sparse_size=(6, 6))
    assert CSR.from_edge_index(index, 6).coalesce().equal(graph)
    arrays = (graph.rowptr, graph.col.long(), torch.rand(graph.num_edges))
    adj_t = torch.sparse_csr_tensor(*arrays, (6, 6), check_invariants=True)
    rows_are_targets = CSR.from_pyg(pyg.data.Data(adj_t=adj_t))
    assert torch.equal(rows_are_targets.rowptr, graph.rowptr)
    assert torch.equal(rows_are_targets.col, graph.col)
    assert torch.equal(rows_are_targets.weight, adj_t.values())


def test_from_pyg_rejects():
    pyg = pytest.importorskip("torch_geometric.data")
    with pytest.raises(TypeError, match=r"CSR.from_pyg: data must be a homogeneous Data, got HeteroData"):
        CSR.from_pyg(pyg.HeteroData())
    with pytest.raises(TypeError, match=r"CSR.from_pyg: data must have edge_index or adj_t, got Data without"):
        CSR.from_pyg(pyg.Data(x=torch.ones(3, 1)))


def test_cupy_needs_cupy_and_a_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    for convert in (full_graph().to_cupy, lambda: CSR.from_cupy(None)):
        with pytest.raises(ImportError, match=r"needs cupy and an NVIDIA GPU: pip install gossamer\[cupy\]"):
            convert()


@pytest.fixture
def scipy_as_cupy(monkeypatch):
    """scipy in the place of cupy: the arrays pass through DLPack all the same."""
    modules = {"cupy": np, "cupyx": SimpleNamespace(scipy=scipy), "cupyx.scipy": scipy}
    for name, module in {**modules, "cupyx.scipy.sparse": scipy.sparse}.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_cupy_matrices_come_in_through_dlpack(scipy_as_cupy):
    graph = full_graph()
    again = CSR.from_cupy(graph.to_scipy())
    assert torch.equal(again.rowptr, graph.rowptr)
    assert torch.equal(again.col, graph.col)
    assert torch.equal(again.weight, graph.weight)


def test_cupy_rejects(scipy_as_cupy):
    with pytest.raises(ValueError, match=r"CSR.to_cupy: graph must be on a GPU, got cpu; move it with .to\('cuda'\)"):
        full_graph().to_cupy()
    with pytest.raises(TypeError, match=r"CSR.from_cupy: matrix must be a cupyx.scipy.sparse matrix, got ndarray"):
        CSR.from_cupy(np.eye(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cupy_round_trip():
    pytest.importorskip("cupy")
    graph = full_graph().to("cuda")
    matrix = graph.to_cupy()
    np.testing.assert_allclose(matrix.get().toarray(), dense(full_graph()).numpy(), rtol=1e-6)
    again = CSR.from_cupy(matrix)
    assert torch.equal(again.rowptr, graph.rowptr)
    assert torch.equal(again.col, graph.col)
    assert torch.equal(again.weight, graph.weight)


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
