"""DRew as layers of the pipelined engine: a delayed state is one more tensor that crosses stages."""

import copy
import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from workers import run_workers

from gossamer.distributed import plan_stages
from gossamer.graph import CSR, DRew, HopGraph

from mixed_forward import mixed_loss
from pipeline_problem import NUM_CLASSES, NUM_FEATURES, NUM_NODES, gradients_of_next_epoch, make_engine, make_problem

NUM_LAYERS, WIDTH = 4, 8
KINDS = {
    "gcn, nu=1": {"conv": "gcn"},
    "gcn, nu=2, learned hop weights": {"conv": "gcn", "delay": 2, "learn_hop_weights": True},
    "gcn, no delay": {"conv": "gcn", "delay": math.inf},
    "gin, nu=1, 3 hops": {"conv": "gin", "max_hops": 3},
    "gin, shared weights": {"conv": "gin", "share_weights": True},
}
# tensors that leave the encoder and every layer: all states that a later layer reads
NUM_STATES = {
    "gcn, nu=1": [1, 2, 3, 4, 1],
    "gcn, nu=2, learned hop weights": [1, 1, 2, 3, 1],
    "gcn, no delay": [1, 1, 1, 1, 1],
    "gin, nu=1, 3 hops": [1, 2, 3, 3, 1],
    "gin, shared weights": [1, 2, 3, 4, 1],
}


def make_drew(dtype=torch.float32, **options):
    torch.manual_seed(1)
    return DRew(NUM_FEATURES, WIDTH, NUM_CLASSES, NUM_LAYERS, **options).to(dtype)


def make_hops(dtype=torch.float32):
    """A sparse graph of one far-reaching component, and the data of the pipeline's problem."""
    _, data = make_problem(dtype)
    generator = torch.Generator().manual_seed(3)
    node = torch.arange(NUM_NODES)
    far = torch.randint(0, NUM_NODES, (2, 30), generator=generator)
    edges = torch.cat([torch.stack([node, (node + 1) % NUM_NODES]), far], 1)
    return HopGraph.of(CSR.from_edge_index(torch.cat([edges, edges.flip(0)], 1), NUM_NODES), NUM_LAYERS), data


@pytest.mark.parametrize("options", [*KINDS.values(), {"conv": "gatedgcn"}, {"reference_quirks": False}], ids=str)
def test_stack_of_layers_is_the_model(options):
    graph, data = make_hops(torch.float64)
    model = make_drew(torch.float64, **options)
    for module in (model, model.eval()):
        results = []
        for out in (
            module(data["features"], graph.shells),
            module.layers(graph, data["features"]),
        ):
            gradients = torch.autograd.grad(out.square().sum(), list(model.parameters()), allow_unused=True)
            results.append((out, *(gradient for gradient in gradients if gradient is not None)))
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", KINDS)
def test_only_states_that_a_later_layer_reads_travel(name):
    graph, data = make_hops()
    _, states = plan_stages(list(make_drew(**KINDS[name]).layers), data["features"], 2, num_shells=len(graph.shells))
    assert [len(state) for state in states[:-1]] == NUM_STATES[name]
    assert [len(state) for state in states[-1:]] == [1]


@pytest.mark.parametrize("name", KINDS)
def test_one_chunk_equals_full_graph_training(name):
    graph, data = make_hops(torch.float64)
    model = make_drew(torch.float64, **KINDS[name])
    engine = make_engine(model, graph, data, num_chunks=1)
    train, labels = data["masks"]["train"], data["labels"]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(10):
        loss = F.cross_entropy(model(data["features"], graph.shells)[train], labels[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert engine.train_epoch().loss == pytest.approx(loss.item(), abs=1e-9)
    logits, test = model.eval()(data["features"], graph.shells), data["masks"]["test"]
    assert engine.evaluate().loss["test"] == pytest.approx(F.cross_entropy(logits[test], labels[test]).item(), abs=1e-9)


@pytest.mark.parametrize("recompute", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("name", KINDS)
def test_chunks_read_history_along_every_hop(name, recompute):
    """The gradient is that of the mixed forward: history is a constant, everything current is differentiated."""
    graph, data = make_hops(torch.float64)
    model = make_drew(torch.float64, **KINDS[name])
    section = {"refresh_period": 2, "cross_chunk_gradient": "detached", "recompute": recompute}
    engine = make_engine(model, graph, data, num_chunks=4, **section)
    for _ in range(3):
        engine.train_epoch()
    worker = engine._worker
    chunked, masks = worker.chunked, worker.data.masks
    history = [site.history.rows().clone() for site in chunked.sites]
    oracle = copy.deepcopy(model).layers
    oracle.load_state_dict(engine.module.state_dict(), strict=True)
    expected = mixed_loss(
        oracle, chunked.graph, chunked.bounds, engine._draw_order(), history, worker.data.features,
        worker.data.labels, masks["train"], chunked.shells,
    )  # fmt: skip
    expected.backward()
    report, found = gradients_of_next_epoch(engine)
    assert report.loss == pytest.approx(expected.item(), abs=1e-10)
    for parameter_name, parameter in oracle.named_parameters():
        torch.testing.assert_close(found[parameter_name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_recomputation_changes_no_bit_and_counts_no_batch_twice():
    graph, data = make_hops()
    engines = [make_engine(make_drew(), graph, data, num_chunks=4, recompute=recompute) for recompute in (False, True)]
    for _ in range(4):
        assert len({engine.train_epoch().loss for engine in engines}) == 1
    for name, value in engines[0].module.state_dict().items():
        assert torch.equal(value, engines[1].module.state_dict()[name]), name


def _train(name, num_chunks):
    """Losses, gradients of the last epoch and evaluation of a run; in any number of processes."""
    torch.set_num_threads(1)
    graph, data = make_hops()
    section = {"num_chunks": num_chunks, "refresh_period": 3, "backend": "torch", "stage_bounds": [3]}
    if not dist.is_initialized():
        del section["stage_bounds"]
    engine = make_engine(make_drew(**KINDS[name]), graph, data, **section)
    losses = [engine.train_epoch().loss for _ in range(4)]
    _, gradients = gradients_of_next_epoch(engine)
    scores = engine.evaluate().loss
    return {"losses": losses, "gradients": gradients, "bytes": engine.counters.as_dict(), "scores": scores}


def _worker(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({(name, k): _train(name, k) for name in KINDS for k in (1, 4)}, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.launch
def test_two_stages_equal_one_process(tmp_path):
    """Losses, all gradients and the bytes of every state that crosses, for every kind, whole and in chunks."""
    run_workers(_worker, (str(tmp_path),), num_workers=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in KINDS:
        for num_chunks in (1, 4):
            expected = _train(name, num_chunks)
            parts = [part[name, num_chunks] for part in found]
            for part in parts:
                assert part["losses"] == pytest.approx(expected["losses"], rel=1e-5)
                assert part["scores"] == pytest.approx(expected["scores"], rel=1e-5)
                # the stage ends behind the second of the layers, that is behind state 2
                assert part["bytes"]["total"] == NUM_STATES[name][2] * 2 * NUM_NODES * WIDTH * 4
            gradients = parts[0]["gradients"] | parts[1]["gradients"]
            assert gradients.keys() == expected["gradients"].keys()
            for key, gradient in gradients.items():
                torch.testing.assert_close(gradient, expected["gradients"][key], rtol=1e-4, atol=1e-6)


def test_resumed_training_continues_to_the_bit(tmp_path):
    graph, data = make_hops()
    section = {"num_chunks": 4, "refresh_period": 3}
    engine = make_engine(make_drew(), graph, data, **section)
    for _ in range(3):
        engine.train_epoch()
    engine.save_checkpoint(tmp_path)
    expected = [engine.train_epoch().loss for _ in range(3)]
    resumed = make_engine(make_drew(), graph, data, **section)
    resumed.load_checkpoint(tmp_path)
    assert [resumed.train_epoch().loss for _ in range(3)] == expected


def test_what_a_pipeline_cannot_serve_is_said():
    graph, data = make_hops()
    with pytest.raises(ValueError, match=r"DRewLayer: conv must be gcn .* or gin in a pipeline, got DRewGatedGCNConv"):
        make_engine(make_drew(conv="gatedgcn"), graph, data)
    with pytest.raises(ValueError, match="got DRewGCNConv without reference_quirks"):
        make_engine(make_drew(reference_quirks=False), graph, data)
    with pytest.raises(ValueError, match="shells must be at least 1 graphs, got 0"):
        make_engine(make_drew(), graph.shells[0], data)
    with pytest.raises(ValueError, match="shells must be at least 3 graphs, got 2"):
        make_engine(make_drew(), HopGraph(graph.shells[:2]), data)
    with pytest.raises(ValueError, match="num_ways must be 1 for a HopGraph, got 2"):
        make_engine(make_drew(), graph, data, num_ways=2, num_chunks=1)
    with pytest.raises(TypeError, match="DRewLayer: graph must be a HopGraph or a view of one, got CSR"):
        make_drew().layers(graph.shells[0], data["features"])


@pytest.mark.parametrize(
    ("shells", "message"),
    [
        ([], r"shells must be graphs of the same nodes, at least 1, got sizes \[\]"),
        ([CSR.from_edge_index(torch.zeros(2, 1, dtype=torch.int64), n) for n in (2, 3)], r"got sizes \[2, 3\]"),
        ([CSR.from_edge_index(torch.zeros(2, 1, dtype=torch.int64), 2, weight=torch.ones(1))], "no weights"),
    ],
)
def test_bad_shells(shells, message):
    with pytest.raises(ValueError, match=f"HopGraph: .*{message}"):
        HopGraph(shells)


def test_shells_of_another_type():
    with pytest.raises(TypeError, match="HopGraph: shells must be a sequence, each element a CSR, got list of Tensor"):
        HopGraph([torch.zeros(2, 2)])
