"""Graphs for the tests of CSR, and two views to compare them by."""

import torch
from hypothesis import strategies as st

from gossamer.graph import CSR

__all__ = ["dense", "edge_list", "full_graph", "graphs", "random_edges"]


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
