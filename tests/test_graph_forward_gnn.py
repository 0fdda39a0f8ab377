"""ForwardGNN: local losses against what their formulas say, and training that reaches no other layer."""

import pytest
import torch
import torch.nn.functional as F

from gossamer.graph import (
    CSR,
    ForwardForward,
    SingleForward,
    forward_gnn,
    local_optimizers,
    predict_locally,
    train_greedily,
    train_together,
)

NUM_NODES, NUM_CLASSES, WIDTH = 60, 3, 8
pytestmark = pytest.mark.usefixtures("one_thread")


def problem(seed=0):
    """Three groups of nodes with edges mostly inside, and features that tell the group through noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(NUM_NODES) % NUM_CLASSES
    edges = torch.randint(NUM_NODES, (2, 2000), generator=generator)
    inside = labels[edges[0]] == labels[edges[1]]
    edges = torch.cat([edges[:, inside][:, :300], edges[:, ~inside][:, :60]], 1)
    x = F.one_hot(labels, WIDTH).float() + torch.randn(NUM_NODES, WIDTH, generator=generator)
    train = torch.zeros(NUM_NODES, dtype=torch.bool)
    train[:30] = True
    graph = CSR.from_edge_index(torch.cat([edges, edges.flip(0)], 1), NUM_NODES)
    return {"graph": graph, "x": x, "labels": labels, "train_mask": train, "num_classes": NUM_CLASSES}


OBJECTIVES = {
    "single forward": lambda p: SingleForward(**p),
    "labels as features": lambda p: ForwardForward(**p),
    "labels as class nodes": lambda p: ForwardForward(**p, labels_as="class_nodes"),
}


def layers_of(objective, num_layers=2):
    torch.manual_seed(1)
    return forward_gnn(objective.in_channels, 16, num_layers)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_greedy_training_learns(name):
    p = problem()
    objective = OBJECTIVES[name](p)
    layers = layers_of(objective)
    untrained = (predict_locally(layers, objective).argmax(1) == p["labels"])[~p["train_mask"]].float().mean()
    found = train_greedily(layers, objective, p["labels"], ~p["train_mask"], max_epochs=60, patience=30, lr=1e-2)
    accuracy = (predict_locally(layers, objective).argmax(1) == p["labels"])[~p["train_mask"]].float().mean()
    assert [len(layer.losses) for layer in found] == [layer.num_epochs for layer in found]
    assert float(accuracy) == pytest.approx(found[-1].best_accuracy)  # the best weights were put back
    assert accuracy > max(0.6, untrained)
    assert all(min(layer.losses) < layer.losses[0] for layer in found)


def test_single_forward_by_its_formula():
    p = problem()
    objective = SingleForward(**p, temperature=2.0, seed=3)
    (graph, x), (layer,) = objective.train_views[0], layers_of(objective, 1)
    dense = torch.zeros(len(x), len(x), dtype=torch.float64)
    source, target = p["graph"].to_edge_index()
    dense.index_put_((target, source), torch.ones(len(source), dtype=torch.float64), accumulate=True)
    for node in p["train_mask"].nonzero()[:, 0].tolist():
        place = NUM_NODES + int(p["labels"][node])
        dense[node, place] += 1
        dense[place, node] += 1
    dense += torch.eye(len(x), dtype=torch.float64)
    scale = dense.sum(1).rsqrt()
    weight, bias = layer.conv.lin.weight.double(), layer.conv.bias.double()
    h = (scale[:, None] * dense * scale) @ F.normalize(x.double(), eps=0) @ weight.T + bias
    h = h.relu()
    logits = h[:NUM_NODES] @ h[NUM_NODES:].T / 2.0
    expected = F.cross_entropy(logits[p["train_mask"]], p["labels"][p["train_mask"]])
    out = layer(graph, x)
    torch.testing.assert_close(objective.loss([out]).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(objective.scores([out]).double(), logits.softmax(1), rtol=1e-4, atol=1e-5)


def test_forward_forward_by_its_formula():
    p = problem()
    objective = ForwardForward(**p, threshold=1.5)
    assert len(objective.train_views) == len(objective.test_views) == NUM_CLASSES
    for k, view in enumerate(objective.train_views):
        appended = view.x[:, WIDTH:]
        assert torch.equal(appended[:30].argmax(1), (p["labels"][:30] + k) % NUM_CLASSES)
        assert torch.equal(appended[30:], torch.full((30, NUM_CLASSES), 1 / NUM_CLASSES))
    for c, view in enumerate(objective.test_views):
        assert torch.equal(view.x[30:, WIDTH:].argmax(1), torch.full((30,), c))
    outputs = [torch.randn(NUM_NODES, 16) for _ in range(NUM_CLASSES)]
    goodness = [h[:30].double().square().sum(1) for h in outputs]
    ones = torch.ones(30, dtype=torch.float64)
    loss = F.binary_cross_entropy_with_logits(goodness[0] - 1.5, ones)
    loss = loss + sum(F.binary_cross_entropy_with_logits(g - 1.5, 0 * ones) for g in goodness[1:]) / 2
    torch.testing.assert_close(objective.loss(outputs).double(), loss, rtol=1e-5, atol=1e-6)


def test_class_nodes_of_negatives_see_positive_features():
    objective = OBJECTIVES["labels as class nodes"](problem())
    outputs = [torch.full((NUM_NODES + NUM_CLASSES, 4), float(i)) for i in range(NUM_CLASSES)]
    views = objective.next_train_views(objective.train_views, outputs)
    assert all(torch.equal(view.x, outputs[0]) for view in views)
    assert all(view.graph is old.graph for view, old in zip(views, objective.train_views))


@pytest.mark.parametrize("top_down", [False, True])
def test_training_together(top_down):
    """A layer's gradient is that of its own loss: equal to a step in which all other layers are constants."""
    p = problem()
    objective = SingleForward(**p)
    layers = layers_of(objective, 3)
    (graph, x), states = objective.train_views[0], []
    for layer in layers:
        x = layer(graph, x)
        states.append(x)
    for number, layer in enumerate(layers):
        above = [h.detach() for h in states[number + 1 :]] if top_down else []
        loss = objective.loss([(states[number] + sum(above)) / (1 + len(above))])
        gradients = torch.autograd.grad(loss, list(layers.parameters()), allow_unused=True, retain_graph=True)
        mine = {id(parameter) for parameter in layer.parameters()}
        reached = {id(q) for q, g in zip(layers.parameters(), gradients) if g is not None}
        assert reached == mine
    history = train_together(
        layers, objective, 40, top_down=top_down, optimizers=local_optimizers(layers, 1e-2), max_norm=1.0
    )
    assert len(history) == 40
    assert all(last < first for first, last in zip(history[0], history[-1]))
    accuracy = (predict_locally(layers, objective, top_down=top_down).argmax(1) == p["labels"]).float().mean()
    assert accuracy > 0.7


def test_training_is_the_same_every_time():
    runs = []
    for _ in range(2):
        objective = SingleForward(**problem())
        layers = layers_of(objective)
        runs.append((train_together(layers, objective, 5), layers.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_classes": 1}, ValueError, "num_classes must be at least 2, got 1"),
        ({"labels": torch.zeros(NUM_NODES)}, TypeError, "labels and train_mask must be int64 and bool"),
        ({"labels": torch.full((NUM_NODES,), 3)}, ValueError, r"labels must be in \[0, 3\)"),
        ({"train_mask": torch.zeros(NUM_NODES, dtype=torch.bool)}, ValueError, "on at least one training node"),
        ({"x": torch.zeros(5, WIDTH)}, ValueError, "must have one row for each of the 60 nodes"),
    ],
)
@pytest.mark.parametrize("kind", [SingleForward, ForwardForward])
def test_bad_input(kind, change, error, message):
    with pytest.raises(error, match=f"{kind.__name__}: .*{message}"):
        kind(**problem() | change)


def test_bad_options():
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        SingleForward(**problem(), temperature=0)
    with pytest.raises(ValueError, match="labels_as must be features or class_nodes, got 'x'"):
        ForwardForward(**problem(), labels_as="x")
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        forward_gnn(4, 4, 0)
    with pytest.raises(ValueError, match="conv must be gcn or sage, got 'gat'"):
        forward_gnn(4, 4, 1, conv="gat")
