"""CSR: to and from scipy, PyG and CuPy."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch
from csr_problem import dense, full_graph, graphs, random_edges
from hypothesis import given, settings

from gossamer.graph import CSR


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
