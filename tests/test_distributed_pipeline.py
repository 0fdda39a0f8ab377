"""The pipelined engine against its oracles: full-graph training, the mixed forward, and one process against several."""

import copy
import itertools
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from gossamer import distributed
from gossamer.distributed.launcher import free_port
from gossamer.graph import (
    CSR,
    GCN,
    GCNII,
    GraphLayer,
    GraphSAGE,
    GraphSequential,
    NodeDropout,
    ResGCN,
    aggregate,
    gcn_aggregate,
)

from mixed_forward import mixed_loss

NUM_NODES, NUM_FEATURES, NUM_CLASSES = 150, 12, 4


class _Neighbors(GraphLayer):
    """A user's own message-passing layer."""

    def __init__(self, width, reduce):
        super().__init__()
        self.linear, self.reduce = nn.Linear(width, width), reduce

    def forward(self, graph, x):
        return x + torch.tanh(self.linear(aggregate(graph, x, reduce=self.reduce)))


def _extremes(num_features, hidden, num_classes, num_layers, dropout):
    middle = [_Neighbors(hidden, ("max", "min", "sum", "mean")[i % 4]) for i in range(num_layers)]
    return GraphSequential(
        nn.Linear(num_features, hidden), *middle, NodeDropout(dropout), nn.Linear(hidden, num_classes)
    )


MODELS = {"gcnii": GCNII, "gcn": GCN, "sage": GraphSAGE, "resgcn": ResGCN, "own layers": _extremes}


def make_problem(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, NUM_NODES, (2, 500), generator=generator)
    graph = CSR.from_edge_index(torch.cat([edges, edges.flip(0)], dim=1), NUM_NODES)
    features = torch.randn(NUM_NODES, NUM_FEATURES, generator=generator, dtype=dtype)
    labels = torch.randint(0, NUM_CLASSES, (NUM_NODES,), generator=generator)
    train = torch.rand(NUM_NODES, generator=generator) < 0.5
    return graph, {"features": features, "labels": labels, "masks": {"train": train, "test": ~train}}


def make_model(name="gcnii", num_layers=6, dropout=0.0, dtype=torch.float32):
    torch.manual_seed(1)
    return MODELS[name](NUM_FEATURES, 8, NUM_CLASSES, num_layers, dropout=dropout).to(dtype)


def make_engine(model, graph, data, *, lr=1e-2, optimizer="Adam", **section):
    config = {"optimizer": {"type": optimizer, "params": {"lr": lr}}, "gossamer": section}
    return distributed.initialize(copy.deepcopy(model), graph, **data, config=config)


def gradients_of_next_epoch(engine):
    """Run one epoch whose update is replaced by a look at the gradients, by parameter name."""
    found = {}
    step = engine._worker.backend.step

    def look():
        found.update({name: p.grad.clone() for name, p in engine.module.named_parameters() if p.grad is not None})
        engine.module.zero_grad()

    engine._worker.backend.step = look
    report = engine.train_epoch()
    engine._worker.backend.step = step
    return report, found


@pytest.mark.parametrize("name", MODELS)
def test_one_chunk_equals_full_graph_training(name):
    """Over 50 epochs the loss is that of an ordinary training loop."""
    graph, data = make_problem(torch.float64)
    model = make_model(name, dtype=torch.float64)
    engine = make_engine(model, graph, data, num_chunks=1)
    train, labels = data["masks"]["train"], data["labels"]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(50):
        loss = F.cross_entropy(model(graph, data["features"])[train], labels[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert engine.train_epoch().loss == pytest.approx(loss.item(), abs=1e-9)
    logits = model.eval()(graph, data["features"])
    test = data["masks"]["test"]
    assert engine.evaluate().accuracy["test"] == (logits[test].argmax(-1) == labels[test]).double().mean().item()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_detached_gradient_is_autograd_of_the_mixed_forward(name, recompute):
    """With the rescaling off: history is a constant, everything current is differentiated (fp64, 1e-10)."""
    graph, data = make_problem(torch.float64)
    model = make_model(name, dtype=torch.float64)
    engine = make_engine(
        model, graph, data, num_chunks=5, refresh_period=3, cross_chunk_gradient="detached", recompute=recompute
    )
    for _ in range(7):  # past two snapshots, so that the history is neither zero nor current
        engine.train_epoch()
    worker = engine._worker
    history = [site.history.clone() for site in worker.chunked.sites]
    oracle = copy.deepcopy(model)
    oracle.load_state_dict(engine.module.state_dict(), strict=True)
    order = engine._draw_order()
    expected = mixed_loss(
        oracle, worker.chunked.graph, worker.chunked.bounds, order, history,
        worker.data.features, worker.data.labels, worker.data.masks["train"],
    )  # fmt: skip
    expected.backward()
    report, found = gradients_of_next_epoch(engine)
    assert report.loss == pytest.approx(expected.item(), abs=1e-10)
    for parameter_name, parameter in oracle.named_parameters():
        torch.testing.assert_close(found[parameter_name], parameter.grad, rtol=1e-10, atol=1e-12)


def test_rescaled_gradient_is_unbiased_one_hop_behind_the_loss():
    """Averaged over all chunk orders with exact history, the doubled gradient of the last layer's input is exact."""
    graph, data = make_problem(torch.float64)
    torch.manual_seed(2)
    model = GraphSequential(nn.Linear(NUM_FEATURES, 8), nn.Tanh(), _Neighbors(8, "mean"), nn.Linear(8, NUM_CLASSES))
    model = model.double()
    engine = make_engine(model, graph, data, num_chunks=4, refresh_period=1, lr=0.0, optimizer="SGD")
    engine.train_epoch()  # fills the history; the learning rate is zero, so it stays exact
    total = {}
    orders = list(itertools.permutations(range(4)))
    for order in orders:
        engine._draw_order = lambda order=order: list(order)
        _, found = gradients_of_next_epoch(engine)
        total = {name: total.get(name, 0) + grad / len(orders) for name, grad in found.items()}
    train = data["masks"]["train"]
    loss = F.cross_entropy(model(graph, data["features"])[train], data["labels"][train])
    for (name, _), grad in zip(model.named_parameters(), torch.autograd.grad(loss, list(model.parameters()))):
        torch.testing.assert_close(total[name], grad, rtol=1e-10, atol=1e-14)


def test_history_is_zero_until_the_first_snapshot_and_frozen_between_two():
    graph, data = make_problem()
    engine = make_engine(make_model(), graph, data, num_chunks=5, refresh_period=3)
    snapshots = []
    for _ in range(7):
        engine.train_epoch()
        snapshots.append([site.history.clone() for site in engine._worker.chunked.sites])
    assert all((history == 0).all() for history in snapshots[0] + snapshots[1])
    assert all((history != 0).any() for history in snapshots[2])
    for earlier, later in [(2, 3), (3, 4), (5, 6)]:
        assert all(torch.equal(a, b) for a, b in zip(snapshots[earlier], snapshots[later]))
    assert not any(torch.equal(a, b) for a, b in zip(snapshots[4], snapshots[5]))


@pytest.mark.parametrize("gradient", ["rescaled", "detached", "stale"])
def test_recomputation_changes_no_bit(gradient):
    graph, data = make_problem()
    model = make_model(dropout=0.5)
    section = {"num_chunks": 6, "refresh_period": 2, "cross_chunk_gradient": gradient}
    engines = [make_engine(model, graph, data, recompute=recompute, **section) for recompute in (False, True)]
    for _ in range(5):
        assert len({engine.train_epoch().loss for engine in engines}) == 1


@pytest.mark.parametrize(
    ("section", "other"),
    [({"shuffle": True}, {"shuffle": False}), ({"refresh_period": 2}, {"refresh_period": 1})]
    + [({"cross_chunk_gradient": "rescaled"}, {"cross_chunk_gradient": kind}) for kind in ("detached", "stale")],
)
def test_every_technique_can_be_switched(section, other):
    """Each switch changes the training (and nothing else does: equal settings give equal losses)."""
    graph, data = make_problem()

    def losses(**settings):
        engine = make_engine(make_model(), graph, data, num_chunks=5, **settings)
        return [engine.train_epoch().loss for _ in range(6)]

    assert losses(**section) == losses(**section)
    assert losses(**section) != losses(**other)


def test_dropout_does_not_depend_on_the_chunks_of_an_exact_forward():
    """Masks are keyed by node: in the first epoch of a graph without edges, chunks change nothing."""
    _, data = make_problem()
    graph = CSR.from_edge_index(torch.empty(2, 0, dtype=torch.int64), NUM_NODES)
    model = make_model(dropout=0.5)
    losses = [make_engine(model, graph, data, num_chunks=k).train_epoch().loss for k in (1, 5)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


# Several processes.

WORLDS = [2, 4]


def _train(name, num_epochs):
    """Losses, gradients of the last epoch and evaluation of a run; in any number of processes."""
    torch.set_num_threads(1)
    graph, data = make_problem()
    engine = make_engine(make_model(name, dropout=0.3), graph, data, num_chunks=8, refresh_period=3, backend="torch")
    losses = [engine.train_epoch().loss for _ in range(num_epochs)]
    _, gradients = gradients_of_next_epoch(engine)
    return {
        "losses": losses,
        "gradients": gradients,
        "layers": list(engine.layer_ids),
        "bytes": engine.counters.as_dict(),
        "evaluation": engine.evaluate().accuracy,
    }


def _worker(rank, world, folder, name):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(_train(name, 8), os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.launch
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("world", WORLDS)
def test_processes_equal_the_emulation(world, name, tmp_path):
    """2 and 4 processes give the losses and all gradients of one process; bytes are 2 (S-1) N F 4 to the byte."""
    expected = _train(name, 8)
    mp.spawn(_worker, (world, str(tmp_path), name), nprocs=world)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    gradients = {}
    for one in found:
        assert one["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert one["evaluation"] == expected["evaluation"]
        gradients |= one["gradients"]
    assert gradients.keys() == expected["gradients"].keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected["gradients"][key], rtol=1e-5, atol=1e-7)
    assert sorted(i for one in found for i in one["layers"]) == expected["layers"]
    states = 2 if name == "gcnii" else 1  # GCNII's initial state travels with the activations
    assert (
        found[0]["bytes"]["total"] == found[0]["bytes"]["layer_level"] == states * 2 * (world - 1) * NUM_NODES * 8 * 4
    )


ZERO_STAGES = [0, 1, 2]


def _train_clipped(**config):
    """Losses with gradient clipping."""
    torch.set_num_threads(1)
    graph, data = make_problem()
    config = config | {"gradient_clipping": 0.1, "gossamer": {"num_chunks": 4, "refresh_period": 2}}
    engine = distributed.initialize(make_model(dropout=0.3), graph, **data, config=config)
    return [engine.train_epoch().loss for _ in range(5)]


def _deepspeed_worker(rank, port, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    distributed.init_distributed("cpu")
    losses = [_train_clipped(zero_optimization={"stage": stage}) for stage in ZERO_STAGES]
    torch.save(losses, os.path.join(folder, f"{rank}.pt"))


@pytest.mark.launch
def test_deepspeed_with_zero_and_clipping_equals_the_emulation(tmp_path):
    pytest.importorskip("deepspeed")
    expected = _train_clipped()
    mp.spawn(_deepspeed_worker, (str(free_port()), str(tmp_path)), nprocs=2)
    for rank in range(2):
        for losses in torch.load(tmp_path / f"{rank}.pt"):
            assert losses == pytest.approx(expected, rel=1e-5)


# Checkpoints.


def test_resumed_training_continues_to_the_bit(tmp_path):
    graph, data = make_problem()
    section = {"num_chunks": 5, "refresh_period": 3, "cross_chunk_gradient": "stale"}
    engine = make_engine(make_model(dropout=0.5), graph, data, **section)
    for _ in range(5):
        engine.train_epoch()
    engine.save_checkpoint(tmp_path)
    expected = [engine.train_epoch().loss for _ in range(5)]
    resumed = make_engine(make_model(dropout=0.5), graph, data, **section)
    resumed.load_checkpoint(tmp_path)
    assert resumed.epoch == 5
    assert [resumed.train_epoch().loss for _ in range(5)] == expected


def test_only_the_newest_checkpoints_stay(tmp_path):
    graph, data = make_problem()
    engine = make_engine(make_model(), graph, data, num_chunks=1)
    for _ in range(3):
        engine.train_epoch()
        newest = engine.save_checkpoint(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["epoch_000002", "epoch_000003"]
    assert distributed.find_latest(tmp_path) == newest


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove", "manifest"])
def test_a_damaged_checkpoint_is_refused(damage, tmp_path):
    graph, data = make_problem()
    engine = make_engine(make_model(), graph, data, num_chunks=5)
    engine.train_epoch()
    folder = engine.save_checkpoint(tmp_path)
    victim = os.path.join(folder, "manifest.json" if damage == "manifest" else "stage_00.pt")
    with open(victim, "rb") as file:
        content = bytearray(file.read())
    if damage == "remove":
        os.remove(victim)
    else:
        content = content[: len(content) // 2] if damage != "alter" else content[:100] + b"\0\1" + content[102:]
        with open(victim, "wb") as file:
            file.write(content)
    with pytest.raises(ValueError, match=r"load_checkpoint: .* must be"):
        engine.load_checkpoint(tmp_path)


def test_saving_after_an_older_checkpoint_was_loaded_keeps_the_new_one(tmp_path):
    graph, data = make_problem()
    engine = make_engine(make_model(), graph, data, num_chunks=1)
    paths = []
    for _ in range(2):
        engine.train_epoch()
        paths.append(engine.save_checkpoint(tmp_path))
    engine.train_epoch()
    engine.save_checkpoint(tmp_path / "elsewhere")
    engine.load_checkpoint(paths[0])
    engine.epoch = 0
    assert os.path.isdir(engine.save_checkpoint(tmp_path))


def test_resumed_training_continues_the_random_numbers_of_ordinary_dropout(tmp_path):
    graph, data = make_problem()
    torch.manual_seed(5)
    model = GraphSequential(
        nn.Linear(NUM_FEATURES, 8), nn.Dropout(0.5), _Neighbors(8, "mean"), nn.Linear(8, NUM_CLASSES)
    )
    engine = make_engine(model, graph, data, num_chunks=4)
    engine.train_epoch()
    engine.save_checkpoint(tmp_path)
    expected = engine.train_epoch().loss
    resumed = make_engine(model, graph, data, num_chunks=4)
    torch.rand(7)
    resumed.load_checkpoint(tmp_path)
    assert resumed.train_epoch().loss == expected


def test_a_checkpoint_of_other_techniques_is_refused(tmp_path):
    graph, data = make_problem()
    make_engine(make_model(), graph, data, num_chunks=5).save_checkpoint(tmp_path)
    other = make_engine(make_model(), graph, data, num_chunks=5, cross_chunk_gradient="stale")
    with pytest.raises(ValueError, match="cross_chunk_gradient must be the checkpoint's 'rescaled', got 'stale'"):
        other.load_checkpoint(tmp_path)


def test_a_checkpoint_of_another_number_of_chunks_is_refused(tmp_path):
    graph, data = make_problem()
    make_engine(make_model(), graph, data, num_chunks=5).save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="num_chunks must be the checkpoint's 5, got 6"):
        make_engine(make_model(), graph, data, num_chunks=6).load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="folder must hold a checkpoint"):
        make_engine(make_model(), graph, data, num_chunks=5).load_checkpoint(tmp_path / "nowhere")


# Bad input.


def _with(**changes):
    graph, data = make_problem()
    return graph, data | changes


def _nan_features():
    features = make_problem()[1]["features"]
    features[7, 3] = float("nan")
    return features


BAD_DATA = [
    pytest.param({"features": _nan_features()}, ValueError, "features must be finite, .* at node 7", id="nan"),
    pytest.param({"features": torch.zeros(3, 2)}, ValueError, r"features must be \[150, num_features\]", id="rows"),
    pytest.param({"features": torch.zeros(NUM_NODES, 2).long()}, TypeError, "features must be floating", id="dtype"),
    pytest.param({"labels": torch.zeros(4).long()}, ValueError, "labels must have 150 rows", id="labels"),
    pytest.param({"labels": torch.full((NUM_NODES,), 9)}, ValueError, r"labels must be in \[0, 4\), got 9", id="class"),
    pytest.param(
        {"features": torch.zeros(NUM_NODES, 12).double()}, TypeError, "features must be of the model's", id="fp64"
    ),
    pytest.param({"masks": {}}, ValueError, "masks must hold 'train'", id="no train mask"),
    pytest.param({"masks": {"train": torch.zeros(NUM_NODES)}}, ValueError, "must be bool", id="mask dtype"),
    pytest.param(
        {"masks": {"train": torch.zeros(NUM_NODES, dtype=torch.bool)}}, ValueError, "at least one node", id="empty mask"
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_DATA)
def test_bad_data_is_named(changes, error, message):
    graph, data = _with(**changes)
    with pytest.raises(error, match=message):
        make_engine(make_model(), graph, data)


BAD_SECTIONS = [
    ({"num_chunks": 0}, "num_chunks must be at least 1, got 0"),
    ({"num_chunks": NUM_NODES + 1}, "num_chunks must be at most the number of nodes"),
    ({"refresh_period": 0}, "refresh_period must be at least 1, got 0"),
    ({"cross_chunk_gradient": "some"}, "cross_chunk_gradient must be one of"),
    ({"stage_bounds": [3]}, "stage_bounds must be 0 ascending layer numbers"),
    ({"chunks": 3}, "config must be made of .*, got \\['chunks'\\]"),
    ({"backend": "other"}, "backend must be one of"),
]


@pytest.mark.parametrize(("section", "message"), BAD_SECTIONS)
def test_bad_configuration_is_named(section, message):
    graph, data = make_problem()
    with pytest.raises(ValueError, match=message):
        make_engine(make_model(), graph, data, **section)


def test_model_must_be_a_sequence_of_layers():
    graph, data = make_problem()
    with pytest.raises(TypeError, match="model must be a sequence of layers"):
        make_engine(nn.Linear(NUM_FEATURES, NUM_CLASSES), graph, data)


def test_a_stage_without_parameters_is_named():
    layers = [nn.ReLU(), nn.Linear(NUM_FEATURES, NUM_CLASSES)]
    with pytest.raises(ValueError, match="every stage must have parameters to train, got none in stage 0"):
        distributed.plan_stages(layers, torch.zeros(3, NUM_FEATURES), 2)


def test_more_stages_than_layers_and_fewer_chunks_than_stages():
    from gossamer.distributed.stages import split_layers

    with pytest.raises(ValueError, match="num_stages must be between 1 and the 2 layers, got 3"):
        split_layers([1, 1], 3)
    with pytest.raises(ValueError, match=r"num_chunks must be 1 or at least the number of stages \(4\), got 3"):
        distributed.PipelineConfig(num_chunks=3).chunks_for(4, 100)


class _Forgetful(GraphLayer):
    """A layer that aggregates another width for every chunk."""

    def forward(self, graph, x):
        width = 2 + graph.num_nodes % 2
        return gcn_aggregate(graph, x[:, :width]).sum(dim=1, keepdim=True).expand(-1, NUM_CLASSES)


def test_a_layer_that_changes_its_widths_is_named():
    graph, data = make_problem()
    engine = make_engine(GraphSequential(nn.Linear(NUM_FEATURES, 8), _Forgetful()), graph, data, num_chunks=7)
    with pytest.raises(ValueError, match="layers must aggregate the same widths"):
        engine.train_epoch()


@pytest.mark.parametrize("costs", [[1] * 33, [5, 1, 1, 1, 1, 1], [0, 0, 1, 0, 1, 0], [3.0, 0.1]])
@pytest.mark.parametrize("num_stages", [1, 2])
def test_split_is_contiguous_and_minimises_the_maximum(costs, num_stages):
    from gossamer.distributed.stages import split_layers

    ranges = split_layers(costs, num_stages)
    assert [i for one in ranges for i in one] == list(range(len(costs)))
    assert all(ranges)
    cuts = range(1, len(costs)) if num_stages == 2 else [len(costs)]
    best = min(max(sum(costs[:cut]), sum(costs[cut:])) for cut in cuts)
    assert max(sum(costs[i] for i in one) for one in ranges) == pytest.approx(best)
