"""The stack of DRew layers: whole graphs for torch.compile, recomputation in segments, inputs that do not fit."""

import copy
import math

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from gossamer.graph import CSR, DRew, DRewGatedGCNConv, DRewGCNConv, DRewGINConv, k_hop, prepare_shells

NUM_LAYERS = 9
CONVS = [
    pytest.param({"conv": "gcn"}, id="gcn"),
    pytest.param({"conv": "gcn", "reference_quirks": False}, id="gcn as the paper says"),
    pytest.param({"conv": "gin", "dropout": 0.3}, id="gin"),
    pytest.param({"conv": "gatedgcn", "share_weights": True, "dropout": 0.3}, id="gatedgcn"),
]
DELAYS = [
    pytest.param({"delay": 1}, id="delayed"),
    pytest.param({"delay": 2, "max_hops": 4}, id="two layers of delay"),
    pytest.param({"delay": math.inf}, id="no delay"),
]


def circle(num_nodes=60):
    node = torch.arange(num_nodes)
    edges = torch.stack([node, (node + 1) % num_nodes])
    return CSR.from_edge_index(torch.cat([edges, edges.flip(0)], 1))


def step(model, x, shells):
    torch.manual_seed(2)
    out = model(x, shells)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), *(p.grad for p in model.parameters()), *model.buffers()]


@pytest.mark.parametrize("options", CONVS)
@pytest.mark.parametrize("delays", DELAYS)
def test_recomputation_changes_no_bit(options, delays):
    torch.manual_seed(0)
    model, x, shells = DRew(3, 8, 2, NUM_LAYERS, **options, **delays), torch.randn(60, 3), k_hop(circle(), NUM_LAYERS)
    again = copy.deepcopy(model)
    again.recompute = True
    for a, b in zip(step(model, x, shells), step(again, x, shells), strict=True):
        assert torch.equal(a, b)  # running statistics too: no batch counts twice
    assert all(module.momentum == 0.1 for module in again.modules() if isinstance(module, torch.nn.BatchNorm1d))
    assert torch.equal(model.eval()(x, shells), again.eval()(x, shells))
    with torch.no_grad():
        assert torch.equal(model(x, shells), again(x, shells))


def memory_of(function):
    """Bytes that the call holds at its peak beyond what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        function()
    events = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).cumsum(0)
    return int(held.max())


def kept_and_peak(num_layers, recompute, **options):
    """Memory in states: kept between the passes, and at the peak of both."""
    torch.manual_seed(0)
    num_nodes, width = 4000, 32
    model = DRew(width, width, width, num_layers, max_hops=3, recompute=recompute, **options)
    x, shells = torch.randn(num_nodes, width), k_hop(circle(num_nodes), 3)
    model(x, shells).sum().backward()  # what is kept with shells and parameters is there from now on
    results = []
    forward = memory_of(lambda: results.append(model(x, shells)))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        out = model(x, shells)
    kept = sum(e.nbytes() for e in run.profiler.kineto_results.events() if e.name() == "[memory]")
    results.clear()
    del out
    peak = max(forward, memory_of(lambda: model(x, shells).sum().backward()))
    return kept / x.nbytes, peak / x.nbytes


@pytest.mark.parametrize("conv", ["gcn", "gin", "gatedgcn"])
def test_recomputation_keeps_a_state_per_segment(conv):
    num_layers = 16
    kept, peak = kept_and_peak(num_layers, True, conv=conv, delay=math.inf)
    assert kept < math.sqrt(num_layers) + 2.5  # one per segment, encoder and head
    all_kept, all_peak = kept_and_peak(num_layers, False, conv=conv, delay=math.inf)
    assert all_kept > 3 * num_layers
    assert peak < 0.75 * all_peak


@pytest.mark.parametrize("conv", ["gcn", "gin", "gatedgcn"])
def test_delayed_states_are_at_most_one_per_layer(conv):
    num_layers = 16
    kept, _ = kept_and_peak(num_layers, True, conv=conv, delay=1)
    assert kept < num_layers + 1 + 2


@pytest.mark.parametrize("options", CONVS)
def test_compiles_as_one_graph(options):
    torch.manual_seed(0)
    options = {**options, "dropout": 0.0} if "dropout" in options else options
    model, x, shells = DRew(3, 8, 2, 3, **options), torch.randn(60, 3), k_hop(circle(), 3)
    prepare_shells(shells)
    expected = step(copy.deepcopy(model), x, shells)
    compiled = copy.deepcopy(model)
    compiled.forward = torch.compile(compiled.forward, backend="aot_eager", fullgraph=True)
    for a, b in zip(step(compiled, x, shells), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer_class", [DRewGCNConv, DRewGINConv, DRewGatedGCNConv])
def test_layers_compile_as_one_graph(layer_class):
    torch.manual_seed(0)
    layer, shells = layer_class(8, 2, learn_hop_weights=True), k_hop(circle(), 3)
    states = [torch.randn(60, 8, requires_grad=True) for _ in range(3)]
    prepare_shells(shells)
    expected = copy.deepcopy(layer)(shells, states)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    out = compiled(shells, states)
    torch.testing.assert_close(out, expected)
    ours, theirs = (torch.autograd.grad(o.square().sum(), states) for o in (out, expected))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("conv", ["gcn", "gin", "gatedgcn"])
def test_compiles_with_new_batches_and_recomputation(conv):
    torch.manual_seed(0)
    model = DRew(3, 8, 2, 4, conv=conv, recompute=True)
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager")  # what shells keep is computed between two graphs
    for num_nodes in (30, 41):
        x, shells = torch.randn(num_nodes, 3), k_hop(circle(num_nodes), 4)
        torch.testing.assert_close(compiled(x, shells), eager(x, shells), rtol=1e-5, atol=1e-5)
