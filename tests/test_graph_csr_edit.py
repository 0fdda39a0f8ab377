"""CSR: coalesce, to_symmetric, add_self_loops, against dense matrices and scipy."""

import numpy as np
import pytest
import torch
from csr_problem import dense, edge_list, full_graph, graphs, random_edges
from hypothesis import given, settings

from gossamer.graph import CSR


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
