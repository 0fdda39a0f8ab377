"""The edges along which chunks pull gradients."""

import torch

from gossamer.distributed.layout import spread, take_part
from gossamer.distributed.pulls import Pulled, PullOrder

from pipeline_problem import make_problem


def rows_of(pulled):
    """(puller, pulled, number in the graph) of every edge."""
    rows = torch.arange(len(pulled.rowptr) - 1).repeat_interleave(pulled.rowptr.diff())
    return list(zip(rows.tolist(), pulled.col.tolist(), pulled.edge_ids.tolist()))


def test_the_edges_that_are_left_out_are_those_to_chunks_that_come_back_later():
    """For two orders in turn, on one way of two, so that halo rows pull as well."""
    graph, _ = make_problem(weighted=True)
    part = take_part(graph, *spread(graph, 2, 3), 0)
    assert part.graph.num_nodes > part.num_own
    pull_order = PullOrder(part)
    for order in ([2, 0, 1], [1, 2, 0]):
        pull_order.begin_epoch(order)
        found = rows_of(pull_order.pulled(part.graph))
        chunk = part.chunk.tolist()
        expected = [
            edge for edge in rows_of(Pulled(part.graph)) if order.index(chunk[edge[0]]) <= order.index(chunk[edge[1]])
        ]
        assert found == expected
        assert 0 < len(found) < part.graph.num_edges
