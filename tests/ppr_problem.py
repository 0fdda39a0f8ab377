"""Graphs and scores for the tests of ppr_neighbors and walk_neighbors."""

import torch

from gossamer.graph import CSR


def undirected(num_nodes: int, num_edges: int) -> CSR:
    """Random edges, each both ways."""
    ends = torch.randint(num_nodes, (2, num_edges), generator=torch.Generator().manual_seed(0))
    return CSR.from_edge_index(torch.cat([ends, ends.flip(0)], 1), num_nodes)


def dense(graph: CSR, node: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """[num_seeds, num_nodes] of scores."""
    full = torch.zeros(len(node), graph.num_nodes + 1)
    return full.scatter(1, node.where(node >= 0, torch.tensor(graph.num_nodes)), score)[:, :-1].double()
