"""DRew: equal to the layers written hop by hop and edge by edge, with the same weights, gradients included."""

import math

import pytest
import torch
import torch.nn.functional as F

from gossamer.graph import CSR, DRew, DRewGatedGCNConv, DRewGCNConv, DRewGINConv, drew_width, k_hop

NUM_NODES, CHANNELS, NUM_LAYERS = 20, 6, 5


pytestmark = pytest.mark.usefixtures("one_thread")


def two_graphs():
    """A path with a branch and a ring of seven: not all nodes have neighbours at every hop."""
    path = [(i, i + 1) for i in range(9)] + [(4, 10), (10, 11), (11, 12)]
    ring = [(13 + i, 13 + (i + 1) % 7) for i in range(7)]
    edges = torch.tensor(path + ring).T
    return CSR.from_edge_index(torch.cat([edges, edges.flip(0)], 1), NUM_NODES)


def dense(shell):
    out = torch.zeros(NUM_NODES, NUM_NODES, dtype=torch.float64)
    out[shell._rows, shell.col.long()] = 1
    return out


def gcn_by_hand(conv, shells, states, hops):
    total = 0
    for k, source in hops:
        i = (k - 1) % conv.num_weights
        a = dense(shells[k - 1]) + torch.eye(NUM_NODES) * conv.reference_quirks
        scale = a.sum(1).clamp(min=1).rsqrt()
        message = (scale[:, None] * a * scale) @ states[source] @ conv.lins[i].weight.T
        total = total + (conv.norms[i](message).relu() if conv.reference_quirks else message)
    total = total if conv.reference_quirks else conv.norms[0](total)
    return F.normalize(states[-1] + total.relu(), dim=-1)


def gin_by_hand(conv, shells, states, hops):
    total = conv.own(states[-1])
    for k, source in hops:
        total = total + conv.mlps[(k - 1) % conv.num_weights](dense(shells[k - 1]) @ states[source])
    return states[-1] + total.relu()


def gated_by_hand(conv, shells, states, hops):
    total, query = conv.own(states[-1]), conv.gate(states[-1])
    for k, source in hops:
        i = (k - 1) % conv.num_weights
        keys, values = conv.keys[i](states[source]), conv.values[i](states[source])
        edges = dense(shells[k - 1])[:, :, None]
        gates = edges * torch.sigmoid(query[:, None] + keys[None])
        total = total + (gates * values[None]).sum(1) / (gates.sum(1) + 1e-6)
    return states[-1] + conv.norm(total).relu()


BY_HAND = {DRewGCNConv: gcn_by_hand, DRewGINConv: gin_by_hand, DRewGatedGCNConv: gated_by_hand}
CASES = [
    pytest.param({"conv": "gcn"}, id="gcn as the code does it"),
    pytest.param({"conv": "gcn", "reference_quirks": False}, id="gcn as the paper says"),
    pytest.param({"conv": "gcn", "delay": math.inf}, id="gcn without delay"),
    pytest.param({"conv": "gcn", "delay": 2, "share_weights": True}, id="gcn, shared weights, delay 2"),
    pytest.param({"conv": "gcn", "max_hops": 3}, id="gcn, at most 3 hops"),
    pytest.param({"conv": "gin"}, id="gin"),
    pytest.param({"conv": "gin", "share_weights": True, "delay": math.inf}, id="gin, shared weights, no delay"),
    pytest.param({"conv": "gatedgcn"}, id="gated gcn"),
    pytest.param({"conv": "gatedgcn", "share_weights": True}, id="gated gcn, shared weights"),
]


@pytest.mark.parametrize("options", CASES)
def test_matches_the_layers_by_hand(options):
    torch.manual_seed(0)
    model = DRew(3, CHANNELS, 2, NUM_LAYERS, **options).double()
    shells = k_hop(two_graphs(), model.num_hops)
    x = torch.randn(NUM_NODES, 3, dtype=torch.float64)
    delay = options.get("delay", 1)

    states = [model.encoder(x)]
    for t, conv in enumerate(model.convs):
        hops = [(k, t - int(max(k - delay, 0))) for k in range(1, min(t + 1, options.get("max_hops", 99)) + 1)]
        states.append(BY_HAND[type(conv)](conv, shells, states, hops))
    expected = model.head(states[-1])
    out = model(x, shells)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)

    loss = torch.randn_like(out)
    parameters = list(model.parameters())
    theirs = torch.autograd.grad((expected * loss).sum(), parameters)
    ours = torch.autograd.grad((out * loss).sum(), parameters)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("conv", ["gcn", "gin", "gatedgcn"])
def test_equal_hop_weights_change_nothing_and_learn(conv):
    torch.manual_seed(0)
    plain = DRew(3, CHANNELS, 2, NUM_LAYERS, conv=conv)
    learned = DRew(3, CHANNELS, 2, NUM_LAYERS, conv=conv, learn_hop_weights=True)
    learned.load_state_dict(plain.state_dict(), strict=False)
    shells, x = k_hop(two_graphs(), NUM_LAYERS), torch.randn(NUM_NODES, 3)
    out = learned(x, shells)
    torch.testing.assert_close(out, plain(x, shells), rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    assert all(layer.hop_weights.grad.abs().sum() > 0 for layer in learned.convs[1:])


def test_reach_grows_by_one_hop_per_layer():
    path = torch.stack([torch.arange(19), torch.arange(1, 20)])
    model = DRew(1, 4, 1, 3, l2_norm=False).double().eval()  # 1 + 2 + 3 hops without delay, 3 with it
    x = torch.randn(NUM_NODES, 1, dtype=torch.float64, requires_grad=True)
    shells = k_hop(CSR.from_edge_index(path, NUM_NODES), 3)
    model(x, shells)[10].sum().backward()
    assert x.grad[:7].abs().sum() == 0
    assert x.grad[11:].abs().sum() == 0


def test_a_hop_without_edges_is_skipped():
    shells = k_hop(CSR.from_edge_index(torch.tensor([[0, 1], [1, 0]]), 2), 4)
    for conv in ("gcn", "gin", "gatedgcn"):
        assert DRew(3, 4, 2, 4, conv=conv)(torch.randn(2, 3), shells).isfinite().all()


@pytest.mark.parametrize("conv", ["gcn", "gin", "gatedgcn"])
def test_a_graph_without_edges_trains(conv):
    shells = k_hop(CSR.from_edge_index(torch.empty(2, 0, dtype=torch.int64), 5), 2)
    model = DRew(3, 4, 2, 2, conv=conv)
    model(torch.randn(5, 3), shells).sum().backward()
    assert model.encoder.weight.grad.abs().sum() > 0


def test_width_keeps_the_budget():
    for conv, matrices in [("gcn", 28), ("gin", 35), ("gatedgcn", 70)]:
        width = drew_width(7, conv=conv, vectors=40)
        assert abs(matrices * width**2 + 40 * width - 495_000) < matrices * (width + 1)
    model = DRew(9, drew_width(7, vectors=9 + 10 + 2 + 2 * 28), 10, 7)
    assert abs(sum(p.numel() for p in model.parameters()) - 495_000) < 10_000


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("DRew: conv must be gcn, gin or gatedgcn, got 'gat'", lambda: DRew(1, 2, 3, 4, conv="gat")),
        (r"DRew: num_layers must be in \[1, 1024\], got 0", lambda: DRew(1, 2, 3, 0)),
        (r"DRew: num_layers must be in \[1, 1024\], got 11529", lambda: DRew(1, 2, 3, 1 << 60)),
        ("DRewGCNConv: max_hops must be at least 1 or None, got 0", lambda: DRew(1, 2, 3, 2, max_hops=0)),
        ("DRewGINConv: delay must be at least 1, got 0", lambda: DRew(1, 2, 3, 2, conv="gin", delay=0)),
        (
            "DRewGCNConv: shells must be at least 2 graphs, got 1",
            lambda: DRew(1, 2, 3, 2)(torch.ones(NUM_NODES, 1), k_hop(two_graphs(), 1)),
        ),
    ],
)
def test_wrong_inputs(message, call):
    with pytest.raises(ValueError, match=message):
        call()
