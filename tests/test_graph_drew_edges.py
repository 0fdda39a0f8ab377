"""Bond features in DRew layers: at hop 1 alone, equal to loops over the bonds, through PyG batches."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from gossamer.graph import CSR, DRew, DRewGatedGCNConv, DRewGINConv, KHop, hop_edge_attr, hop_shells, k_hop

CHANNELS, WIDTH, TYPES = 5, 3, 4


def ring(num_nodes, seed=0):
    torch.manual_seed(seed)
    node = torch.arange(num_nodes)
    edges = torch.stack([node, (node + 1) % num_nodes])
    edges = torch.cat([edges, edges.flip(0)], 1)[:, torch.randperm(2 * num_nodes)]
    bonds = torch.randn(2 * num_nodes, WIDTH, dtype=torch.float64)
    return Data(x=torch.randn(num_nodes, CHANNELS, dtype=torch.float64), edge_index=edges, edge_attr=bonds)


def problem(conv_class, *, layer=2, **options):
    """A layer of three hops, the shells, its states, and every bond as (target, source, row of the features)."""
    data = ring(9)
    torch.manual_seed(1)
    conv = conv_class(CHANNELS, layer, **options).double()
    shells = k_hop(CSR.from_edge_index(data.edge_index), 3)
    states = [torch.randn(9, CHANNELS, dtype=torch.float64) for _ in range(layer + 1)]
    bonds = [(t, s, e) for e, (s, t) in enumerate(data.edge_index.T.tolist())]
    return conv, shells, states, data.edge_index, bonds


def rest_of_gin(conv, shells, states, message):
    """The layer with its message of hop 1 given."""
    total = conv.own(states[-1]) + message
    for k in range(2, conv.num_hops + 1):
        shell, x = shells[k - 1], states[len(states) - 1 - (k - 1)]
        sums = torch.stack([x[shell.col[a:b].long()].sum(0) for a, b in zip(shell.rowptr, shell.rowptr[1:])])
        total = total + conv.mlps[(k - 1) % conv.num_weights](sums)
    return states[-1] + total.relu()


@pytest.mark.parametrize("share_weights", [False, True])
def test_gin_adds_bond_features_to_the_neighbours(share_weights):
    conv, shells, states, edges, bonds = problem(DRewGINConv, edge_channels=WIDTH, share_weights=share_weights)
    features = torch.randn(len(bonds), WIDTH, dtype=torch.float64, requires_grad=True)
    out = conv(shells, states, hop_edge_attr(shells[0], edges, features))
    total = torch.zeros_like(states[0])
    for target, source, e in bonds:
        message = (states[-1][source] + features[e] @ conv.bond.weight.T + conv.bond.bias).relu()
        total = total + torch.eye(9, dtype=torch.float64)[target, :, None] * message
    expected = rest_of_gin(conv, shells, states, conv.mlps[0](total))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    inputs = [features, *conv.parameters()]
    ours, theirs = (torch.autograd.grad(o.square().sum(), inputs) for o in (out, expected))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("share_weights", [False, True])
def test_gin_has_an_mlp_per_type_of_bond(layer, share_weights):
    conv, shells, states, edges, bonds = problem(
        DRewGINConv, layer=layer, edge_types=TYPES, share_weights=share_weights
    )
    types = torch.arange(len(bonds)) % (TYPES - 1)  # one type does not occur
    out = conv(shells, states, hop_edge_attr(shells[0], edges, types))
    message = torch.zeros_like(states[0])
    for r in range(TYPES):
        x = conv.relations[r](states[-1])
        for target, source, e in bonds:
            if types[e] == r:
                message[target] += x[source]
    torch.testing.assert_close(out, rest_of_gin(conv, shells, states, message), rtol=1e-10, atol=1e-10)
    out.sum().backward()
    assert all(p.grad is not None for p in conv.parameters())  # no MLP that nothing reads


@pytest.mark.parametrize("share_weights", [False, True])
def test_gated_gcn_knows_the_bonds_in_its_gates(share_weights):
    conv, shells, states, edges, bonds = problem(DRewGatedGCNConv, edge_channels=WIDTH, share_weights=share_weights)
    features = torch.randn(len(bonds), WIDTH, dtype=torch.float64, requires_grad=True)
    out = conv(shells, states, hop_edge_attr(shells[0], edges, features))
    total, query = conv.own(states[-1]), conv.gate(states[-1])
    for k in range(1, 4):
        i, x = (k - 1) % conv.num_weights, states[3 - k]
        for node in range(9):
            gates, values = [], []
            for source in shells[k - 1].col[slice(*shells[k - 1].rowptr[node : node + 2].tolist())].tolist():
                logit = query[node] + conv.keys[i](x[source])
                if k == 1:
                    logit = logit + conv.bond(features[next(e for t, s, e in bonds if (t, s) == (node, source))])
                gates.append(logit.sigmoid())
                values.append(conv.values[i](x[source]))
            gates, values = torch.stack(gates), torch.stack(values)
            message = (gates * values).sum(0) / (gates.sum(0) + 1e-6)
            total = total + torch.eye(9, dtype=torch.float64)[node, :, None] * message
    expected = states[-1] + conv.norm(total).relu()
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    inputs = [features, *conv.parameters()]
    ours, theirs = (torch.autograd.grad(o.square().sum(), inputs) for o in (out, expected))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("conv", "options"), [("gin", {"delay": 2}), ("gatedgcn", {})])
def test_a_batch_is_its_graphs_one_by_one(conv, options):
    model = DRew(CHANNELS, 6, 2, 3, conv=conv, edge_channels=WIDTH, learn_hop_weights=True, **options).double().eval()
    data = [KHop(3)(ring(n, seed=n)) for n in (7, 8, 12)]  # all of them have three hops

    def run(some):
        shells = hop_shells(some, 3)
        return model(some.x, shells, hop_edge_attr(shells[0], some.edge_index, some.edge_attr))

    torch.testing.assert_close(run(Batch.from_data_list(data)), torch.cat([run(one) for one in data]))


def test_the_first_of_equal_bonds_counts():
    edges = torch.tensor([[0, 1, 0, 2], [1, 0, 1, 1]])
    shell = k_hop(CSR.from_edge_index(edges, 3), 1)[0]
    assert hop_edge_attr(shell, edges, torch.tensor([10, 11, 12, 13])).tolist() == [11, 10, 13]
    empty = k_hop(CSR.from_edge_index(edges[:, :0], 3), 1)[0]
    assert hop_edge_attr(empty, edges[:, :0], torch.zeros(0, 2)).shape == (0, 2)


SHELLS = k_hop(CSR.from_edge_index(torch.tensor([[0, 1], [1, 2]]), 3), 2)
X = torch.ones(3, 1)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("edge_index must have every edge of the shell, got none for .1, 2.",
         lambda: hop_edge_attr(SHELLS[0], torch.tensor([[0], [1]]), torch.ones(1, 2))),
        ("edge_attr must have 2 rows, got .3, 2.",
         lambda: hop_edge_attr(SHELLS[0], torch.tensor([[0, 1], [1, 2]]), torch.ones(3, 2))),
        ("DRew: edge_attr must be None with conv gcn", lambda: DRew(1, 2, 3, 2)(X, SHELLS, torch.ones(2, 1))),
        ("DRewGINConv: edge_attr must be None without edge_channels",
         lambda: DRew(1, 2, 3, 2, conv="gin")(X, SHELLS, torch.ones(2, 1))),
        ("DRewGINConv: edge_types must be None beside edge_channels, got 2",
         lambda: DRew(1, 2, 3, 2, conv="gin", edge_types=2, edge_channels=1)),
        (r"DRewGINConv: edge_attr must be integers of \[2\] \(edges of shell 1\), got None",
         lambda: DRew(1, 2, 3, 2, conv="gin", edge_types=2)(X, SHELLS)),
        (r"DRewGINConv: edge_attr must be in \[0, 2\), got 0 to 2",
         lambda: DRew(1, 2, 3, 2, conv="gin", edge_types=2)(X, SHELLS, torch.tensor([0, 2]))),
        (r"DRewGatedGCNConv: edge_attr must be floating point of \[2, 4\] .*, got torch.float32 of \[2, 3\]",
         lambda: DRew(1, 2, 3, 2, conv="gatedgcn", edge_channels=4)(X, SHELLS, torch.ones(2, 3))),
    ],
)  # fmt: skip
def test_wrong_inputs(message, call):
    with pytest.raises(ValueError, match=message):
        call()
