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

NUM_CLASSES = 16
# Layers: scale of the R-MAT graph (2^scale nodes), so that PyG needs at most 5 GB and a row about two minutes.
DEPTHS = {"csr": {4: 16, 16: 15, 64: 14}, "edge_index": {4: 16, 16: 15, 64: 13}}
Problem = tuple[CSR, Tensor, Tensor]


class PyGGCN(nn.Module):
    """[conv -> relu -> dropout] * (num_layers - 1) -> conv."""

    def __init__(self, width: int, num_layers: int, dropout: float) -> None:
        from torch_geometric.nn import GCNConv

        super().__init__()
        widths = [width] * num_layers + [NUM_CLASSES]
        self.layers = nn.ModuleList(GCNConv(a, b, cached=True) for a, b in pairwise(widths))
        self.dropout = dropout

    def forward(self, adjacency: Tensor, x: Tensor) -> Tensor:
        for conv in self.layers[:-1]:
            x = F.dropout(conv(x, adjacency).relu(), self.dropout)
        return self.layers[-1](x, adjacency)


class PyGGCNII(nn.Module):
    """dropout -> linear -> relu -> [dropout -> conv -> relu] * num_layers -> dropout -> linear."""

    def __init__(self, width: int, num_layers: int, dropout: float) -> None:
        from torch_geometric.nn import GCN2Conv

        super().__init__()
        convs = [GCN2Conv(width, 0.1, theta=0.5, layer=i, cached=True) for i in range(1, num_layers + 1)]
        ends = [nn.Linear(width, width, bias=False), nn.Linear(width, NUM_CLASSES, bias=False)]
        self.layers = nn.ModuleList([ends[0], *convs, ends[1]])
        self.dropout = dropout

    def forward(self, adjacency: Tensor, x: Tensor) -> Tensor:
        x = x_0 = self.layers[0](F.dropout(x, self.dropout)).relu()
        for conv in self.layers[1:-1]:
            x = conv(F.dropout(x, self.dropout), x_0, adjacency).relu()
        return self.layers[-1](F.dropout(x, self.dropout))


PEERS: dict[type[GraphSequential], type[nn.Module]] = {GCN: PyGGCN, GCNII: PyGGCNII}


@lru_cache(maxsize=1)
def problem(scale: int, width: int) -> Problem:
    """An R-MAT graph of 2^scale nodes with about 16 edges per node, features and classes."""
    num_nodes = 1 << scale
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_nodes, width, generator=generator)
    return rmat(scale, 16 * num_nodes), x, torch.randint(NUM_CLASSES, (num_nodes,), generator=generator)


def epochs(
    model_class: type[GraphSequential], form: str, num_layers: int, dropout: float, data: Problem
) -> dict[str, Callable[[], Tensor]]:
    """One epoch of our model and of PyG's, from equal weights; form is the adjacency that PyG gets."""
    graph, x, target = data
    adjacency, width = graph.to_edge_index(), x.shape[1]
    if form == "csr":
        size = (graph.num_nodes, graph.num_nodes)
        ones = torch.ones(graph.num_edges)
        adjacency = torch.sparse_csr_tensor(graph.rowptr, graph.col.long(), ones, size, check_invariants=False)
    ours = model_class(width, width, NUM_CLASSES, num_layers, dropout)
    theirs = PEERS[model_class](width, num_layers, dropout)
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


def against_pyg(
    model_class: type[GraphSequential], form: str, *, width: int = 64, num_layers: int = 16, scale: int = 16
) -> harness.Figure:
    try:
        import torch_geometric  # noqa: F401
    except ImportError as error:
        raise harness.NotHere("torch_geometric is not installed") from error
    small = epochs(model_class, form, num_layers, 0.0, problem(10, width))
    for _ in range(3):  # each loss depends on all gradients before it
        torch.testing.assert_close(small["ours"](), small["PyG"](), atol=1e-4, rtol=1e-4)
    data = problem(scale, width)
    both = epochs(model_class, form, num_layers, 0.5, data)
    times = harness.compare(both, repeats=7, warmup=1, max_seconds=20)
    return times.figure("PyG", "ours", f"R-MAT, {data[0].num_nodes} nodes, {data[0].num_edges} edges")


def worst_depth(model_class: type[GraphSequential], form: str, width: int) -> harness.Figure:
    """The smallest ratio over the depths, each on a graph of a size that it is measured on within a minute."""
    found = {
        depth: against_pyg(model_class, form, width=width, num_layers=depth, scale=scale)
        for depth, scale in DEPTHS[form].items()
    }
    detail = "; ".join(f"L={depth} {figure.value:.2f}x ({figure.detail})" for depth, figure in found.items())
    return harness.Figure(min(figure.value for figure in found.values()), detail)


CSR_CLAIM = "{}, 16 layers of width 64, one epoch on one thread, against PyG on a CSR adjacency"
EDGE_CLAIM = "{}, 16 layers of width 64, one epoch on one thread, against PyG on an edge_index"
DEPTH_CLAIM = "{}, width {}, worst of 4, 16 and 64 layers, one epoch on one thread, against PyG on {}"


@harness.goal("GNN layers", CSR_CLAIM.format("GCN"), at_least=2.5)
def gcn_csr() -> harness.Figure:
    return against_pyg(GCN, "csr")


@harness.goal("GNN layers", EDGE_CLAIM.format("GCN"), at_least=10.0)
def gcn_edge_index() -> harness.Figure:
    return against_pyg(GCN, "edge_index")


@harness.goal("GNN layers", CSR_CLAIM.format("GCNII"), at_least=2.5)
def gcnii_csr() -> harness.Figure:
    return against_pyg(GCNII, "csr")


@harness.goal("GNN layers", EDGE_CLAIM.format("GCNII"), at_least=10.0)
def gcnii_edge_index() -> harness.Figure:
    return against_pyg(GCNII, "edge_index")


def register_depths(model_class: type[GraphSequential], form: str, width: int, at_least: float) -> None:
    """A slow goal for one model, one form of the adjacency and one width."""

    def measure() -> harness.Figure:
        return worst_depth(model_class, form, width)

    measure.__name__ = f"{model_class.__name__.lower()}_{form}_f{width}_depths"
    what = "a CSR adjacency" if form == "csr" else "an edge_index"
    claim = DEPTH_CLAIM.format(model_class.__name__, width, what)
    harness.goal("GNN layers", claim, at_least=at_least, slow=True)(measure)


@harness.goal(
    "GNN layers",
    "GCNII: epoch time per layer, 4 to 64 layers, largest over least",
    at_most=5,
    unit="%",
    slow=True,
)
def flat_in_depth() -> harness.Figure:
    """As a percentage above the least. The two linear layers at the ends, dropout of the features and the loss count in
    no L and take as long as one layer, a quarter of 4; the detail has what each further layer takes."""
    data = problem(14, 64)
    graph, x, target = data
    models = {f"{n}": epoch(GCNII(64, 64, NUM_CLASSES, n, 0.5), graph, x, target) for n in (4, 8, 16, 32, 64)}
    times = harness.compare(models, repeats=9, warmup=1, max_seconds=40)
    per_layer = {n: 1e3 * timing.median / int(n) for n, timing in times.items()}
    detail = ", ".join(f"L={n} {value:.2f} ms" for n, value in per_layer.items())
    further = [1e3 * (times[b].median - times[a].median) / (int(b) - int(a)) for a, b in pairwise(times)]
    detail += f" (further layers {min(further):.2f}..{max(further):.2f} ms)"
    spread = 100 * (max(per_layer.values()) / min(per_layer.values()) - 1)
    return harness.Figure(spread, f"per layer: {detail}; {graph.num_nodes} nodes, {graph.num_edges} edges, F=64")


for each in PEERS:
    for channels in (64, 128):
        register_depths(each, "csr", channels, 2.5)
        register_depths(each, "edge_index", channels, 10.0)


if __name__ == "__main__":
    harness.main()
