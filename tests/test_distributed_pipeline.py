"""The pipelined engine against its oracles: full-graph training, the mixed forward, and one process against several."""

import copy
import itertools
import os

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from workers import run_workers

from gossamer import distributed
from gossamer.distributed.launcher import free_port
from gossamer.graph import (
    CSR,
    GraphSequential,
)

from mixed_forward import mixed_loss
from pipeline_problem import (
    MODELS,
    NUM_CLASSES,
    NUM_FEATURES,
    NUM_NODES,
    Neighbors,
    gradients_of_next_epoch,
    make_engine,
    make_model,
    make_problem,
)


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


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("recompute", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("name", MODELS)
def test_detached_gradient_is_autograd_of_the_mixed_forward(name, recompute, weighted):
    """With the rescaling off: history is a constant, everything current is differentiated (fp64, 1e-10)."""
    graph, data = make_problem(torch.float64, weighted=weighted)
    model = make_model(name, dtype=torch.float64)
    engine = make_engine(
        model, graph, data, num_chunks=5, refresh_period=3, cross_chunk_gradient="detached", recompute=recompute
    )
    for _ in range(7):  # past two snapshots, so that the history is neither zero nor current
        engine.train_epoch()
    worker = engine._worker
    history = [site.history.rows().clone() for site in worker.chunked.sites]
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
    model = GraphSequential(nn.Linear(NUM_FEATURES, 8), nn.Tanh(), Neighbors(8, "mean"), nn.Linear(8, NUM_CLASSES))
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
        snapshots.append([site.history.rows().clone() for site in engine._worker.chunked.sites])
    assert all((history == 0).all() for history in snapshots[0] + snapshots[1])
    assert all((history != 0).any() for history in snapshots[2])
    for earlier, later in [(2, 3), (3, 4), (5, 6)]:
        assert all(torch.equal(a, b) for a, b in zip(snapshots[earlier], snapshots[later]))
    assert not any(torch.equal(a, b) for a, b in zip(snapshots[4], snapshots[5]))


@pytest.mark.parametrize("gradient", ["rescaled", "detached", "stale"])
@pytest.mark.parametrize(("name", "num_chunks"), [("gcnii", 6), *((name, 1) for name in MODELS)])
def test_recomputation_changes_no_bit(name, num_chunks, gradient):
    graph, data = make_problem()
    model = make_model(name, dropout=0.5)
    section = {"num_chunks": num_chunks, "refresh_period": 2, "cross_chunk_gradient": gradient}
    engines = [make_engine(model, graph, data, recompute=recompute, **section) for recompute in (False, True)]
    for _ in range(5):
        assert len({engine.train_epoch().loss for engine in engines}) == 1


@pytest.mark.parametrize("recompute", [False, True])
def test_aggregations_share_their_rows_where_one_chunk_is_the_graph(recompute):
    graph, data = make_problem()
    engine = make_engine(make_model(), graph, data, num_chunks=1, recompute=recompute)
    engine.train_epoch()
    sites = engine._worker.chunked.sites
    assert len(sites) == 6
    assert len({site.inputs.data_ptr() for site in sites}) == len({site.gradients.data_ptr() for site in sites}) == 1
    assert all(site.history is None and site.outputs is None for site in sites)


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
    run_workers(_worker, (world, str(tmp_path), name), num_workers=world)
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
    run_workers(_deepspeed_worker, (str(free_port()), str(tmp_path)), num_workers=2)
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
    victim = os.path.join(folder, "manifest.json" if damage == "manifest" else "worker_00.pt")
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
        nn.Linear(NUM_FEATURES, 8), nn.Dropout(0.5), Neighbors(8, "mean"), nn.Linear(8, NUM_CLASSES)
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
