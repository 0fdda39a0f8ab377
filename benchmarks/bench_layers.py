"""Deep models against PyG on one thread: forward, backward and Adam, from equal weights to an equal loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.graph import CSR, GCN, GCNII, GCN2Conv, GCNConv, GraphSequential

import harness
from graphs import rmat

WIDTH, NUM_LAYERS, NUM_CLASSES = 64, 16, 16
Problem = tuple[CSR, Tensor, Tensor]


class PyGGCN(nn.Module):
    """[conv -> relu -> dropout] * (num_layers - 1) -> conv."""

    def __init__(self, dropout: float) -> None:
        from torch_geometric.nn import GCNConv

        super().__init__()
        widths = [WIDTH] * NUM_LAYERS + [NUM_CLASSES]
        self.layers = nn.ModuleList(GCNConv(a, b, cached=True) for a, b in pairwise(widths))
        self.dropout = dropout

    def forward(self, adjacency: Tensor, x: Tensor) -> Tensor:
        for conv in self.layers[:-1]:
            x = F.dropout(conv(x, adjacency).relu(), self.dropout)
        return self.layers[-1](x, adjacency)


class PyGGCNII(nn.Module):
    """dropout -> linear -> relu -> [dropout -> conv -> relu] * num_layers -> dropout -> linear."""

    def __init__(self, dropout: float) -> None:
        from torch_geometric.nn import GCN2Conv

        super().__init__()
        convs = [GCN2Conv(WIDTH, 0.1, theta=0.5, layer=i, cached=True) for i in range(1, NUM_LAYERS + 1)]
        ends = [nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, NUM_CLASSES, bias=False)]
        self.layers = nn.ModuleList([ends[0], *convs, ends[1]])
        self.dropout = dropout

    def forward(self, adjacency: Tensor, x: Tensor) -> Tensor:
        x = x_0 = self.layers[0](F.dropout(x, self.dropout)).relu()
        for conv in self.layers[1:-1]:
            x = conv(F.dropout(x, self.dropout), x_0, adjacency).relu()
        return self.layers[-1](F.dropout(x, self.dropout))


PEERS: dict[type[GraphSequential], type[nn.Module]] = {GCN: PyGGCN, GCNII: PyGGCNII}


@lru_cache
def problem(scale: int) -> Problem:
    """An R-MAT graph of 2^scale nodes with about 16 edges per node, features and classes."""
    num_nodes = 1 << scale
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_nodes, WIDTH, generator=generator)
    return rmat(scale, 16 * num_nodes), x, torch.randint(NUM_CLASSES, (num_nodes,), generator=generator)


def epochs(
    model_class: type[GraphSequential], form: str, dropout: float, data: Problem
) -> dict[str, Callable[[], Tensor]]:
    """One epoch of our model and of PyG's, from equal weights; form is the adjacency that PyG gets."""
    graph, x, target = data
    adjacency = graph.to_edge_index()
    if form == "csr":
        size = (graph.num_nodes, graph.num_nodes)
        ones = torch.ones(graph.num_edges)
        adjacency = torch.sparse_csr_tensor(graph.rowptr, graph.col.long(), ones, size, check_invariants=False)
    ours = model_class(WIDTH, WIDTH, NUM_CLASSES, NUM_LAYERS, dropout)
    theirs = PEERS[model_class](dropout)
    for mine, peer in zip((m for m in ours if isinstance(m, GCNConv | GCN2Conv | nn.Linear)), theirs.layers):
        peer.load_state_dict(mine.state_dict())
    return {"ours": epoch(ours, graph, x, target), "PyG": epoch(theirs, adjacency, x, target)}


def epoch(model: nn.Module, adjacency: Any, x: Tensor, target: Tensor) -> Callable[[], Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(adjacency, x), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def against_pyg(model_class: type[GraphSequential], form: str) -> harness.Figure:
    try:
        import torch_geometric  # noqa: F401
    except ImportError as error:
        raise harness.NotHere("torch_geometric is not installed") from error
    small = epochs(model_class, form, 0.0, problem(10))
    for _ in range(3):  # each loss depends on all gradients before it
        torch.testing.assert_close(small["ours"](), small["PyG"](), atol=1e-4, rtol=1e-4)
    graph = problem(16)[0]
    times = harness.compare(epochs(model_class, form, 0.5, problem(16)), repeats=7, warmup=1, max_seconds=20)
    return times.figure("PyG", "ours", f"R-MAT, {graph.num_nodes} nodes, {graph.num_edges} edges")


CSR_CLAIM = "{}, 16 layers of width 64, one epoch on one thread, against PyG on a CSR adjacency"
EDGE_CLAIM = "{}, 16 layers of width 64, one epoch on one thread, against PyG on an edge_index"


@harness.goal("GNN layers", CSR_CLAIM.format("GCN"), at_least=2.5)
def gcn_csr() -> harness.Figure:
    return against_pyg(GCN, "csr")


@harness.goal("GNN layers", EDGE_CLAIM.format("GCN"), at_least=8.0)
def gcn_edge_index() -> harness.Figure:
    return against_pyg(GCN, "edge_index")


@harness.goal("GNN layers", CSR_CLAIM.format("GCNII"), at_least=2.5)
def gcnii_csr() -> harness.Figure:
    return against_pyg(GCNII, "csr")


@harness.goal("GNN layers", EDGE_CLAIM.format("GCNII"), at_least=8.0)
def gcnii_edge_index() -> harness.Figure:
    return against_pyg(GCNII, "edge_index")


if __name__ == "__main__":
    harness.main()
