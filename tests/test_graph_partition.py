"""Partitions and chunk orders: every node once, no part empty, balanced, few edges cut, always the same."""

import sys

import pytest
import torch

from gossamer.graph import CSR, chunk_order, partition

pymetis = pytest.importorskip("pymetis")


def random_graph(num_nodes, num_edges, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return CSR.from_edge_index(torch.randint(num_nodes, (2, num_edges), generator=generator), num_nodes)


def grid(side):
    ids = torch.arange(side * side).view(side, side)
    right = torch.stack([ids[:, :-1].flatten(), ids[:, 1:].flatten()])
    down = torch.stack([ids[:-1].flatten(), ids[1:].flatten()])
    return CSR.from_edge_index(torch.cat([right, down], 1), side * side)  # one direction only


GRAPHS = [
    pytest.param(grid(12), 4, id="directed grid"),
    pytest.param(random_graph(40, 200), 32, id="METIS leaves parts empty"),
    pytest.param(random_graph(12, 30), 12, id="one node in each part"),
    pytest.param(random_graph(300, 60), 8, id="most nodes isolated"),
    pytest.param(random_graph(20, 0), 5, id="no edges"),
    pytest.param(CSR.from_edge_index(torch.tensor([[0, 0, 1], [0, 1, 1]]), 4), 2, id="self loops"),
    pytest.param(CSR.from_edge_index(torch.tensor([[0, 0, 0], [1, 1, 1]]), 3), 3, id="duplicates"),
    pytest.param(random_graph(1, 0), 1, id="one node"),
    pytest.param(random_graph(50, 100), 1, id="one part"),
]


@pytest.mark.parametrize(("graph", "num_parts"), GRAPHS)
def test_every_part_has_a_node(graph, num_parts):
    part = partition(graph, num_parts)
    assert part.shape == (graph.num_nodes,)
    assert part.dtype == torch.int64
    assert torch.equal(part.unique(), torch.arange(num_parts))


@pytest.mark.parametrize(("graph", "num_parts"), GRAPHS)
def test_chunk_order_lists_the_parts_one_after_the_other(graph, num_parts):
    order, bounds = chunk_order(graph, num_parts)
    part = partition(graph, num_parts)
    assert bounds.tolist()[0] == 0
    assert bounds.tolist()[-1] == graph.num_nodes
    for chunk in range(num_parts):
        members = order[bounds[chunk] : bounds[chunk + 1]]
        assert torch.equal(members, (part == chunk).nonzero().flatten())  # all of them, in their old order


def test_parts_are_balanced_and_cut_few_edges():
    graph = grid(32)
    part = partition(graph, 4)
    source, target = graph.col.long(), graph._rows
    assert part.bincount().max() <= 1.05 * graph.num_nodes / 4
    assert (part[source] != part[target]).sum() <= 90  # the best cut of the square is 64, a random one 1488


def test_equal_graphs_give_equal_parts():
    first, again = random_graph(500, 3000), random_graph(500, 3000)
    assert torch.equal(partition(first, 8), partition(again, 8))


def test_direction_weights_and_duplicates_do_not_count():
    edges = torch.randint(200, (2, 900), generator=torch.Generator().manual_seed(1))
    plain = CSR.from_edge_index(edges, 200)
    other = CSR.from_edge_index(torch.cat([edges.flip(0), edges], 1), 200, weight=torch.rand(1800))
    assert torch.equal(partition(plain, 6), partition(other, 6))


def test_permuted_graph_has_contiguous_chunks_and_the_same_edges():
    graph = random_graph(60, 200)
    order, _ = chunk_order(graph, 4)
    renumbered = graph.permute(order)
    dense = torch.zeros(60, 60)
    dense.index_put_((graph._rows, graph.col.long()), torch.ones(200), accumulate=True)
    moved = torch.zeros(60, 60)
    moved.index_put_((renumbered._rows, renumbered.col.long()), torch.ones(200), accumulate=True)
    assert torch.equal(moved, dense[order][:, order])


@pytest.mark.parametrize("num_parts", [0, -1, 6])
def test_number_of_parts_out_of_range(num_parts):
    with pytest.raises(ValueError, match=rf"num_parts must be between 1 and .*\(5\), got {num_parts}"):
        partition(random_graph(5, 5), num_parts)
    with pytest.raises(ValueError, match=r"chunk_order: num_chunks must be between"):
        chunk_order(random_graph(5, 5), num_parts)


@pytest.mark.parametrize("num_parts", [2.0, True, "2", None])
def test_number_of_parts_of_wrong_type(num_parts):
    with pytest.raises(TypeError, match="partition: num_parts must be an int, got"):
        partition(random_graph(5, 5), num_parts)


def test_missing_pymetis_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(ImportError, match=r"gossamer\[train\]"):
        partition(random_graph(5, 5), 2)
