"""Layers and models against PyG with copied weights, and what makes a stack sliceable."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from gossamer.graph import (
    CSR,
    GCN,
    GCNII,
    GCN2Conv,
    GCNConv,
    GraphLayer,
    GraphSAGE,
    GraphSequential,
    NodeDropout,
    ResGCN,
    ResidualBlock,
    SAGEConv,
    aggregate,
    gcn_aggregate,
)

pyg = pytest.importorskip("torch_geometric.nn", reason="the peer of these layers")

NUM_NODES = 40
WIDTHS = [
    pytest.param(12, 5, id="narrower: product first"),
    pytest.param(5, 12, id="wider: aggregation first"),
    pytest.param(8, 8, id="equal"),
]
MODELS = [GCN, GraphSAGE, GCNII, ResGCN]


def random_edges(num_nodes=NUM_NODES, num_edges=200):
    """Directed, without self loops (PyG does not add a second one), with nodes that have no in-neighbour."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(num_nodes, (num_edges,), generator=generator)
    target = torch.randint(num_nodes - 3, (num_edges,), generator=generator)
    return torch.stack([source, target])[:, source != target]


def random_graph():
    return CSR.from_edge_index(random_edges(), NUM_NODES)


def features(width, dtype=torch.float32):
    return torch.randn(NUM_NODES, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def assert_same_values_and_gradients(ours, theirs, inputs, call_ours, call_theirs):
    results = []
    for module, call in ((ours, call_ours), (theirs, call_theirs)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = call(module, *leaves)
        grads = torch.autograd.grad(out.square().sum(), [*leaves, *module.parameters()])
        results.append([out, *grads[: len(leaves)]])
        results[-1] += [g for _, g in sorted(zip([n for n, _ in module.named_parameters()], grads[len(leaves) :]))]
    for mine, peer in zip(*results):
        torch.testing.assert_close(mine, peer, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("in_channels", "out_channels"), WIDTHS)
@pytest.mark.parametrize("name", ["GCNConv", "SAGEConv"])
def test_conv_equals_pyg(name, in_channels, out_channels):
    ours = {"GCNConv": GCNConv, "SAGEConv": SAGEConv}[name](in_channels, out_channels)
    theirs = getattr(pyg, name)(in_channels, out_channels)
    nn.init.normal_(theirs.bias if name == "GCNConv" else theirs.lin_l.bias)
    ours.load_state_dict(theirs.state_dict())
    graph, edges = random_graph(), random_edges()
    assert_same_values_and_gradients(
        ours, theirs, [features(in_channels)], lambda m, x: m(graph, x), lambda m, x: m(x, edges)
    )


@pytest.mark.parametrize("layer", [1, 7], ids=["first layer", "deep layer"])
def test_gcn2_conv_equals_pyg(layer):
    ours = GCN2Conv(8, alpha=0.1, theta=0.5, layer=layer)
    theirs = pyg.GCN2Conv(8, alpha=0.1, theta=0.5, layer=layer, shared_weights=True)
    ours.load_state_dict(theirs.state_dict())
    graph, edges = random_graph(), random_edges()
    inputs = [features(8), features(8).flip(0)]
    assert_same_values_and_gradients(
        ours, theirs, inputs, lambda m, x, x_0: m(graph, x, x_0)[0], lambda m, x, x_0: m(x, x_0, edges)
    )


@pytest.mark.parametrize("name", ["GCNConv", "SAGEConv", "GCN2Conv", "ResidualBlock"])
def test_gradients_in_float64(name):
    layer = {
        "GCNConv": GCNConv(4, 3),
        "SAGEConv": SAGEConv(4, 3),
        "GCN2Conv": GCN2Conv(4, layer=2),
        "ResidualBlock": ResidualBlock(SAGEConv(4, 4), 4, dropout=0.3),
    }[name].double()
    graph = View(random_graph(), torch.arange(NUM_NODES), step=0)
    state = [features(4, torch.float64).requires_grad_() for _ in range(1 + (name == "GCN2Conv"))]
    parameters = dict(layer.named_parameters())

    def call(*tensors):
        weights = dict(zip(parameters, tensors[len(state) :]))
        return functional_call(layer, weights, (graph, *tensors[: len(state)]))

    assert gradcheck(call, (*state, *parameters.values()), fast_mode=True)


def test_residual_block_equals_pyg_deep_gcn_layer():
    theirs = pyg.DeepGCNLayer(pyg.SAGEConv(8, 8), nn.LayerNorm(8), nn.ReLU(), block="res+")
    nn.init.normal_(theirs.norm.weight)
    ours = ResidualBlock(SAGEConv(8, 8), 8)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    graph, edges = random_graph(), random_edges()
    assert_same_values_and_gradients(ours, theirs, [features(8)], lambda m, x: m(graph, x), lambda m, x: m(x, edges))


@pytest.mark.parametrize("model_class", MODELS)
def test_model_maps_features_to_logits(model_class):
    model = model_class(6, 8, 3, num_layers=4)
    logits = model(random_graph(), features(6))
    assert logits.shape == (NUM_NODES, 3)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("model_class", MODELS)
def test_slices_of_a_model_compose_to_the_model(model_class):
    model = model_class(6, 8, 3, num_layers=3)
    halves = copy.deepcopy(model)
    cut = len(model) // 2
    first, second = halves[:cut], halves[cut:]
    assert isinstance(first, GraphSequential)
    state = first(random_graph(), features(6))
    state = state if isinstance(state, tuple) else (state,)
    assert torch.equal(second(random_graph(), *state), model(random_graph(), features(6)))


def test_sequential_gives_the_state_to_graph_layers_and_its_first_tensor_to_others():
    class AddSecond(GraphLayer):
        def forward(self, graph, x, y):
            return x + y, y

    stack = GraphSequential(nn.ReLU(), GraphSequential(AddSecond(), AddSecond()), nn.Identity())
    x, y = torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 1.0])
    out = stack(None, x, y)
    assert torch.equal(out[0], torch.tensor([2.0, 4.0]))
    assert out[1] is y


@pytest.mark.parametrize("model_class", MODELS)
def test_every_dropout_has_its_own_seed(model_class):
    seeds = [m.seed for m in model_class(6, 8, 3, num_layers=5, seed=9).modules() if isinstance(m, NodeDropout)]
    assert len(seeds) >= 4
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("model_class", MODELS)
def test_state_dict_continues_training_with_the_same_masks(model_class):
    graph, x = random_graph(), features(6)
    model = model_class(6, 8, 3, num_layers=3)
    model(graph, x)  # advances the counters of the dropouts
    other = model_class(6, 8, 3, num_layers=3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(graph, x), model(graph, x))


def test_reset_parameters_draws_from_the_generator():
    model = GCNII(6, 8, 3, num_layers=2, bias=True)
    model.reset_parameters(torch.Generator().manual_seed(3))
    weights = copy.deepcopy(list(model.parameters()))
    model.reset_parameters(torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters()))
    conv = next(m for m in model if isinstance(m, GCN2Conv))
    assert 0.4 < conv.weight1.abs().max() <= (5 / 16) ** 0.5


@pytest.mark.parametrize("model_class", MODELS)
def test_equal_bits_for_one_and_four_threads(model_class):
    """But for the affine parameters of LayerNorm, whose gradients torch sums in one buffer per thread."""
    graph, x = random_graph(), features(6)
    model = model_class(6, 8, 3, num_layers=3)
    results = []
    threads = torch.get_num_threads()
    for num_threads in (1, 4):
        torch.set_num_threads(num_threads)
        replica = copy.deepcopy(model)
        logits = replica(graph, x)
        logits.sum().backward()
        norms = {p for m in replica.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
        results.append([logits, *(p.grad for p in replica.parameters() if p not in norms)])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("model_class", MODELS)
def test_bfloat16(model_class):
    graph, x = random_graph(), features(6)
    model = model_class(6, 8, 3, num_layers=2, dropout=0.0)
    expected = model(graph, x)
    half = copy.deepcopy(model).bfloat16()
    out = half(graph, x.bfloat16())
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.1, rtol=0.1)


class View:
    """A renumbered graph as the pipelined engine shows it: original node ids, and the step from outside."""

    def __init__(self, graph, order, step):
        self.graph, self.node_ids, self.step = graph.permute(order), order, step

    def aggregate(self, x, *, weight=None, reduce="sum"):
        return aggregate(self.graph, x, weight=weight, reduce=reduce)

    def gcn_aggregate(self, x, *, weight=None, residual=None, alpha=0.0):
        return gcn_aggregate(self.graph, x, residual=residual, alpha=alpha)


@pytest.mark.parametrize("model_class", MODELS)
def test_view_with_renumbered_nodes_drops_the_same_elements(model_class):
    graph, x = random_graph(), features(6)
    model = model_class(6, 8, 3, num_layers=3)
    model(graph, x)
    expected = model(graph, x)  # step 1
    order = torch.randperm(NUM_NODES, generator=torch.Generator().manual_seed(4))
    logits = model(View(graph, order, step=1), x[order])
    torch.testing.assert_close(logits, expected[order])


@pytest.mark.parametrize("model_class", MODELS)
def test_recomputation_repeats_the_masks(model_class):
    x = features(6)
    view = View(random_graph(), torch.arange(NUM_NODES), step=5)
    model = model_class(6, 8, 3, num_layers=3)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(model(view, x).square().sum(), parameters)
    recomputed = checkpoint(model, view, x, use_reentrant=False, preserve_rng_state=False)
    grads = torch.autograd.grad(recomputed.square().sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected))


@pytest.mark.parametrize("model_class", MODELS)
def test_compiles_as_one_graph(model_class):
    graph, x = random_graph(), features(6)
    model = model_class(6, 8, 3, num_layers=2)
    expected = copy.deepcopy(model)(graph, x)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(graph, x), expected)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="GCNII: num_layers must be at least 1, got 0"):
        GCNII(3, 4, 2, 0)
    with pytest.raises(ValueError, match=r"NodeDropout: p must be in \[0, 1\], got 1.5"):
        NodeDropout(1.5)
