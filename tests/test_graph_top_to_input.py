"""ForwardGNN, top to input: states, updates and votes against a dense float64 oracle."""

import pytest
import torch
import torch.nn.functional as F

from gossamer.graph import CSR, SingleForward, TopToInput, local_optimizers, top_down_gnn

NUM_NODES, NUM_CLASSES, WIDTH = 24, 3, 5
pytestmark = pytest.mark.usefixtures("one_thread")


def make(num_layers, class_edges="both"):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(NUM_NODES) % NUM_CLASSES
    edges = torch.randint(NUM_NODES, (2, 90), generator=generator)
    edges = edges[:, (labels[edges[0]] == labels[edges[1]]) | (torch.arange(90) % 4 == 0)]
    x = F.one_hot(labels, WIDTH).double() + torch.randn(NUM_NODES, WIDTH, generator=generator, dtype=torch.float64)
    train = torch.arange(NUM_NODES) < 12
    graph = CSR.from_edge_index(torch.cat([edges, edges.flip(0)], 1), NUM_NODES)
    objective = SingleForward(graph, x, labels, train, NUM_CLASSES, class_edges=class_edges)
    torch.manual_seed(1)
    layers = [layer.double() for layer in top_down_gnn(WIDTH, 8, NUM_CLASSES, num_layers)]
    return layers, objective, labels, train


def propagation(graph):
    """D^-1/2 (A + I) D^-1/2, dense."""
    source, target = graph.to_edge_index()
    dense = torch.eye(graph.num_nodes, dtype=torch.float64)
    dense.index_put_((target, source), torch.ones(len(source), dtype=torch.float64), accumulate=True)
    scale = dense.sum(1).rsqrt()
    return scale[:, None] * dense * scale


class Oracle:
    """The same steps on dense matrices, with gradients by autograd and the optimizers of its own parameters."""

    def __init__(self, layers, objective, labels, train):
        self.p, self.x = propagation(objective.train_views[0].graph), objective.train_views[0].x
        self.weights = [(layer.conv.lin.weight, layer.conv.bias) for layer in layers]
        self.labels, self.train = labels, train
        self.top = torch.full((NUM_NODES + NUM_CLASSES, NUM_CLASSES), 1 / NUM_CLASSES, dtype=torch.float64)
        for node in train.nonzero()[:, 0].tolist():
            self.top[node] = torch.eye(NUM_CLASSES, dtype=torch.float64)[labels[node]]
        self.top[NUM_NODES:] = torch.eye(NUM_CLASSES, dtype=torch.float64)

    def layer(self, i, below, above):
        weight, bias = self.weights[i]
        rows = torch.cat([state / (state.norm(dim=1, keepdim=True) + 1e-8) for state in (below, above)], 1)
        return (self.p @ rows @ weight.T + bias).relu()

    def logits(self, h):
        return h[:NUM_NODES] @ h[NUM_NODES:].T

    def first(self):
        states = [self.x]
        for i in range(len(self.weights)):
            last = i == len(self.weights) - 1
            states.append(self.layer(i, states[-1], torch.zeros(len(self.x), NUM_CLASSES if last else 8).double()))
        return [s.detach() for s in states] + [self.top]


@pytest.mark.parametrize("class_edges", ["both", "to_class"])
@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_steps_and_votes_by_their_formulas(num_layers, class_edges):
    layers, objective, labels, train = make(num_layers, class_edges)
    copies, *_ = make(num_layers, class_edges)
    oracle, optimizers = Oracle(copies, objective, labels, train), local_optimizers(copies, 1e-2)
    trained = TopToInput(layers, objective, optimizers=local_optimizers(layers, 1e-2))
    states, order = oracle.first(), [i for parity in (0, 1) for i in range(parity, num_layers, 2)]
    for losses in trained.train(4):
        for i in order:
            out = oracle.layer(i, states[i], states[i + 2])
            loss = F.cross_entropy(oracle.logits(out)[train], labels[train])
            optimizers[i].zero_grad()
            loss.backward()
            optimizers[i].step()
            states[i + 1] = out.detach()
            assert losses[i] == pytest.approx(loss.item(), rel=1e-10)
    for found, expected in zip(trained.states, states):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    states, votes = oracle.first(), 0
    for step in range(10):
        for i in order:
            states[i + 1] = oracle.layer(i, states[i], states[i + 2]).detach()
            votes = votes + (oracle.logits(states[i + 1]).softmax(1) if step >= 2 else 0)
    torch.testing.assert_close(trained.predict(), votes, rtol=1e-9, atol=1e-10)


def test_a_loss_reaches_its_own_layer_alone():
    layers, objective, *_ = make(3)
    trained = TopToInput(layers, objective)
    for i, layer in enumerate(layers):
        loss = objective.loss([layer(objective.train_views[0].graph, trained.states[i], trained.states[i + 2])])
        parameters = [p for each in layers for p in each.parameters()]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        reached = {id(p) for p, g in zip(parameters, found) if g is not None}
        assert reached == {id(p) for p in layer.parameters()}


def test_it_learns():
    layers, objective, labels, train = make(2)
    trained = TopToInput(layers, objective, optimizers=local_optimizers(layers, 1e-2))
    history = trained.train(100)
    assert all(last < first for first, last in zip(history[0], history[-1]))
    assert (trained.predict().argmax(1) == labels)[~train].float().mean() > 0.6


def test_one_way_links_show_no_label_to_a_node():
    """With links to the class nodes alone, another label of a training node changes no real node's output."""
    _, objective, labels, train = make(1, "to_class")
    other = SingleForward(
        CSR.from_edge_index(objective.train_views[0].graph.to_edge_index()[:, :0], NUM_NODES),
        objective.train_views[0].x[:NUM_NODES], (labels + 1) % NUM_CLASSES, train, NUM_CLASSES, class_edges="to_class",
    )  # fmt: skip
    source, target = other.train_views[0].graph.to_edge_index()
    assert bool((source < NUM_NODES).all())
    assert bool((target >= NUM_NODES).all())
    assert sorted(source.tolist()) == train.nonzero()[:, 0].tolist()


def test_bad_input():
    with pytest.raises(ValueError, match="top_down_gnn: num_layers must be at least 1, got 0"):
        top_down_gnn(4, 4, 3, 0)
    layers, objective, *_ = make(1)
    with pytest.raises(ValueError, match=r"TopToInput.predict: num_steps must be at least 3, got 2"):
        TopToInput(layers, objective).predict(2)
    graph, x = objective.train_views[0]
    with pytest.raises(ValueError, match="SingleForward: class_edges must be both or to_class, got 'x'"):
        SingleForward(graph, x, torch.zeros(len(x), dtype=torch.int64), torch.ones(len(x)) > 0, 2, class_edges="x")
