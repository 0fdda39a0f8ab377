"""What k_hop, KHop, the DRew layers and the stack refuse, and that they do so before anything large is allocated."""

import math

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch_geometric.data import Batch, Data

from gossamer.graph import (
    CSR,
    SPN,
    DRew,
    DRewGatedGCNConv,
    DRewGCNConv,
    DRewGINConv,
    KHop,
    drew_width,
    hop_edge_attr,
    hop_shells,
    k_hop,
    k_hop_count,
    k_hop_pairs,
    save_shells,
)

LAYERS = [DRewGCNConv, DRewGINConv, DRewGatedGCNConv]
NAMES = ["gcn", "gin", "gatedgcn"]


def path(num_nodes):
    return torch.stack([torch.arange(num_nodes - 1), torch.arange(1, num_nodes)])


def data(num_nodes, edges=None):
    return Data(x=torch.randn(num_nodes, 3), edge_index=path(num_nodes) if edges is None else edges)


def refuses(message, call):
    """The call raises ValueError before it has allocated 32 MB."""
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run,
        pytest.raises(ValueError, match=message),
    ):
        call()
    allocated = [e.nbytes() for e in run.profiler.kineto_results.events() if e.name() == "[memory]" and e.nbytes() > 0]
    assert sum(allocated) < 32e6


GRAPH = CSR.from_edge_index(path(5))


@pytest.mark.parametrize("max_hops", [0, -1, 10**10])
def test_hops_that_are_none_or_too_many(max_hops):
    for name, function in [("k_hop", k_hop), ("k_hop_count", k_hop_count), ("k_hop_pairs", k_hop_pairs)]:
        refuses(
            f"{name if name != 'k_hop_pairs' else 'k_hop'}: max_hops must be in", lambda f=function: f(GRAPH, max_hops)
        )
    refuses("KHop: max_hops must be an int in", lambda: KHop(max_hops))


@pytest.mark.parametrize("max_hops", [0, -1])
def test_layers_and_stack_without_hops(max_hops):
    for layer, name in zip(LAYERS, NAMES):
        refuses(f"{layer.__name__}: max_hops must be at least 1", lambda c=layer: c(4, 2, max_hops=max_hops))
        refuses(
            f"{layer.__name__}: max_hops must be at least 1", lambda n=name: DRew(3, 4, 2, 2, conv=n, max_hops=max_hops)
        )


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("DRew: hidden_channels must be at least 1, got 0", lambda: DRew(3, 0, 2, 2)),
        ("SPN: hidden_channels must be at least 1, got 0", lambda: SPN(3, 0, 2, 2)),
        ("DRewGCNConv: channels must be at least 1, got 0", lambda: DRewGCNConv(0, 2)),
        ("DRewGINConv: layer must be at least 0, got -1", lambda: DRewGINConv(4, -1)),
        (r"DRewGINConv: dropout must be in \[0, 1\], got 2.0", lambda: DRewGINConv(4, 2, dropout=2.0)),
        (r"DRewGatedGCNConv: dropout must be in \[0, 1\], got nan", lambda: DRewGatedGCNConv(4, 2, dropout=math.nan)),
        ("DRewGINConv: edge_types must be at least 1 or None, got 0", lambda: DRewGINConv(4, 2, edge_types=0)),
        ("drew_width: num_layers must be at least 1, got 0", lambda: drew_width(0)),
        ("drew_width: max_hops must be at least 1, got 0", lambda: drew_width(3, max_hops=0)),
        ("drew_width: matrices must be at least 0, got -7", lambda: drew_width(3, matrices=-7)),
        ("drew_width: budget must be at least 1, got 0", lambda: drew_width(3, budget=0)),
        ("save_shells: shells must be at least 1 graph, got 0", lambda: save_shells("shells", [])),
    ],
)
def test_numbers_out_of_range(message, call):
    refuses(message, call)


@pytest.mark.parametrize("model", [*(DRew(3, 4, 2, 2, conv=name) for name in NAMES), SPN(3, 4, 2, 2)])
def test_a_graph_is_no_list_of_shells(model):
    with pytest.raises(TypeError, match="shells must be the list that k_hop gives, got a CSR"):
        model(torch.randn(5, 3), GRAPH)


def test_a_disconnected_batch_has_no_pairs_between_its_graphs():
    batch = Batch.from_data_list([KHop(6, directed=False)(data(n)) for n in (1, 4, 2, 7)])
    source, target = batch.hop_index
    assert torch.equal(batch.batch[source], batch.batch[target])
    counts = k_hop_count(CSR.from_edge_index(batch.edge_index, batch.num_nodes), 6, directed=False)
    assert counts.sum() == sum(n * (n - 1) for n in (1, 4, 2, 7)) == batch.hop.numel()


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_refuse_states_of_another_batch(layer):
    shells, conv = k_hop(GRAPH, 3), layer(4, 2)
    right, wrong = torch.randn(5, 4), torch.randn(6, 4)
    name = layer.__name__
    refuses(rf"{name}: states must be \[5, 4\] .*, got \[6, 4\]", lambda: conv(shells, [wrong] * 3))
    refuses(rf"{name}: states must be \[5, 4\] .*, got \[5, 3\]", lambda: conv(shells, [right[:, 1:]] * 3))
    refuses(f"{name}: states must be of one shape", lambda: conv(shells, [wrong, right, right]))
    refuses(f"{name}: states must be at least 3 tensors, got 2", lambda: conv(shells, [right] * 2))
    refuses(
        f"{name}: states must be", lambda: conv([*shells[:2], k_hop(CSR.from_edge_index(path(6)), 1)[0]], [right] * 3)
    )
    refuses(f"{name}: shells must be at least 3 graphs, got 2", lambda: conv(shells[:2], [right] * 3))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_stack_refuses_shells_of_another_batch(name, recompute):
    model = DRew(3, 4, 2, 2, conv=name, recompute=recompute)
    refuses(
        r"states must be \[5, 4\] \(nodes of the shells\), got \[6, 4\]",
        lambda: model(torch.randn(6, 3), k_hop(GRAPH, 2)),
    )
    refuses("shells must be at least 2 graphs, got 1", lambda: model(torch.randn(5, 3), k_hop(GRAPH, 1)))


@pytest.mark.parametrize("node", [-1, 5, 2**40])
def test_ids_out_of_range(node):
    edges, ids = torch.tensor([[0, node], [1, 2]]), rf"must hold node ids in \[0, 5\), got {node}"
    refuses(ids, lambda: k_hop(CSR.from_edge_index(edges, 5), 2))
    refuses(ids, lambda: CSR(torch.tensor([0, 1, 2, 2, 2, 2]), torch.tensor([0, node]), num_nodes=5))
    refuses(ids, lambda: KHop(2)(data(5, edges)))
    wrong = Data(x=torch.randn(5, 3), hop_index=edges, hop=torch.tensor([1, 2]).byte())
    refuses(ids, lambda: hop_shells(wrong, 2))
    refuses("edge_index must have every edge", lambda: hop_edge_attr(k_hop(GRAPH, 1)[0], edges, torch.ones(2, 1)))


def star(num_nodes):
    leaves = torch.arange(1, num_nodes)
    return torch.stack([torch.cat([leaves, torch.zeros_like(leaves)]), torch.cat([torch.zeros_like(leaves), leaves])])


def test_a_shell_that_would_not_fit_in_memory(tmp_path):
    num_nodes = 34_000  # all leaves are two hops apart: 1.16e9 pairs
    num_pairs = (num_nodes - 1) * num_nodes
    message = f"k_hop: max_pairs must be at least {num_pairs}, the number of pairs within 2 hops"
    graph, big = CSR.from_edge_index(star(num_nodes)), data(num_nodes, star(num_nodes))
    refuses(message, lambda: k_hop(graph, 2))
    refuses(message, lambda: k_hop_pairs(graph, 2))
    refuses(message, lambda: KHop(2)(big))
    refuses(message, lambda: KHop(2, cache=tmp_path)(big))
    assert not list(tmp_path.iterdir())


def test_the_limit_of_pairs_is_the_callers():
    refuses("k_hop: max_pairs must be at least 12, .* got 11", lambda: KHop(2, max_pairs=11)(data(4, star(4))))
    assert KHop(2, max_pairs=12)(data(4, star(4))).hop.numel() == 12
