"""drew_gcn: the fused stack against its layers called one by one, which test_graph_drew holds against the paper."""

import copy
import math

import pytest
import torch

from gossamer.graph import CSR, DRew, drew_stack, k_hop

GRAPHS = {
    "one ring": torch.stack([torch.arange(900), (torch.arange(900) + 1) % 900]),
    "many rings": torch.stack([torch.arange(2000), torch.arange(2000) // 20 * 20 + (torch.arange(2000) + 1) % 20]),
}  # directed: the shells are not their own transposes


def run(model, x, shells):
    x = x.clone().requires_grad_()
    out = model(x, shells)
    (out * torch.linspace(-1, 1, out.numel(), dtype=x.dtype).view_as(out)).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in model.parameters()), *model.buffers()]


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"hidden_channels": 5}, id="narrow"),
        pytest.param({"hidden_channels": 64, "recompute": True}, id="whole registers, recomputed"),
        pytest.param({"hidden_channels": 42, "learn_hop_weights": True, "delay": math.inf}, id="hop weights"),
        pytest.param({"hidden_channels": 9, "share_weights": True, "l2_norm": False}, id="shared"),
        pytest.param({"hidden_channels": 16, "conv": "gin"}, id="gin"),
        pytest.param(
            {"hidden_channels": 7, "conv": "gin", "eps": 0.5, "learn_hop_weights": True}, id="gin hop weights"
        ),
        pytest.param({"hidden_channels": 8, "conv": "gin", "share_weights": True, "recompute": True}, id="gin shared"),
    ],
)
def test_matches_the_layers(options, graph, isa, monkeypatch):
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    torch.manual_seed(0)
    shells = k_hop(CSR.from_edge_index(GRAPHS[graph]), 3)
    model = DRew(in_channels=3, out_channels=2, num_layers=3, **options).double()
    x = torch.randn(shells[0].num_nodes, 3, dtype=torch.float64)
    other = copy.deepcopy(model)
    assert drew_stack.fusable(list(model.convs), x)
    ours = [*run(model, x, shells), *run(model.eval(), x, shells)]
    monkeypatch.setattr(drew_stack, "fusable", lambda *_: False)
    theirs = [*run(other, x, shells), *run(other.eval(), x, shells)]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("options", [{"dropout": 0.1}, {"eps": -2.0}, {"edge_channels": 4}, {"edge_types": 2}])
def test_what_one_operator_does_not_compute(options):
    model = DRew(3, 8, 2, 2, conv="gin", **options)
    assert not drew_stack.fusable(list(model.convs), torch.randn(20, 8))


@pytest.mark.parametrize("graph", GRAPHS)
def test_threads_change_no_bit(graph):
    torch.manual_seed(0)
    shells = k_hop(CSR.from_edge_index(GRAPHS[graph]), 3)
    model = DRew(3, 16, 2, 3)
    x, results, threads = torch.randn(shells[0].num_nodes, 16), [], torch.get_num_threads()
    model.encoder = model.head = torch.nn.Identity()  # their products are not ours
    for count in (1, 3):
        torch.set_num_threads(count)
        each = copy.deepcopy(model)
        results.append(run(each, x, shells))
    torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


@pytest.mark.parametrize("conv", ["gcn", "gin"])
def test_layers_whose_norms_were_replaced_run_one_by_one(conv):
    shells = k_hop(CSR.from_edge_index(GRAPHS["many rings"], 2000), 2)
    model = DRew(4, 8, 3, 2, conv=conv)
    layer = model.convs[0].norms if conv == "gcn" else model.convs[0].own
    layer[0 if conv == "gcn" else 1] = torch.nn.Identity()
    assert not drew_stack.fusable(list(model.convs), torch.randn(2000, 8))
    assert model(torch.randn(2000, 4), shells).shape == (2000, 3)
