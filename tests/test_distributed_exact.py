"""The exact mode: synchronous full-graph training in chunks that wait for the chunks they read, and for no others."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from workers import run_workers

from gossamer import distributed
from gossamer.distributed import exact_schedule, simulate
from gossamer.distributed.dependencies import chunk_needs, spread_in_order
from gossamer.distributed.launcher import free_port
from gossamer.distributed.schedule import Costs, Kind, check_schedule
from gossamer.distributed.suspended import Suspended
from gossamer.graph import CSR, DRew, GraphSequential, HopGraph, aggregate

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

PATH = [[max(m - 1, 0), m, min(m + 1, 15)] for m in range(16)]
DIRECTED = [[m, min(m + 2, 15)] for m in range(16)]
ALL = [list(range(16))] * 16
NEEDS = {"nothing": [[]] * 16, "path": PATH, "directed": DIRECTED, "all": ALL, "one chunk": [[0]]}


def path_problem(dtype):
    """The data of the usual problem on a long path, whose chunks read their neighbours only."""
    _, data = make_problem(dtype)
    node = torch.randperm(NUM_NODES, generator=torch.Generator().manual_seed(0))
    edges = torch.stack([node[1:], node[:-1]])
    return CSR.from_edge_index(torch.cat([edges, edges.flip(0)], 1), NUM_NODES), data


# The schedule.


@pytest.mark.parametrize("needs", NEEDS.values(), ids=NEEDS)
@pytest.mark.parametrize("aggregations", [(0,), (3,), (2, 2), (1, 0, 4)], ids=str)
def test_every_schedule_is_complete_and_respects_its_needs(needs, aggregations):
    schedule = exact_schedule(needs, aggregations)
    check_schedule(schedule)
    total = sum(simulate(schedule, Costs(2.0, 1.0, 1.0)).busy)
    assert total == pytest.approx(4.0 * len(needs) * len(aggregations))


def test_a_schedule_that_does_not_wait_is_found():
    schedule = exact_schedule(PATH, (1, 1))
    first, second = schedule.stages
    ran = [a for a in second if a.kind is Kind.FORWARD]
    early = sorted(second, key=lambda a: ran.index(a) % 2 if a in ran[:4] else 2)
    object.__setattr__(schedule, "stages", (first, tuple(early)))
    with pytest.raises(ValueError, match="stage 1 must run piece 1 of micro-batch 0 after piece 0 of micro-batch 1"):
        check_schedule(schedule)


@pytest.mark.parametrize("aggregations", [(6,), (3, 3), (2, 2, 2)], ids=str)
def test_every_aggregation_takes_the_chunks_in_order(aggregations):
    """So sums over chunks do not depend on the number of stages."""
    for actions in exact_schedule(DIRECTED, aggregations).stages:
        for kind, order in ((Kind.FORWARD, list(range(16))), (Kind.BACKWARD, list(range(16))[::-1])):
            ran = [(a.piece, a.micro_batches[0]) for a in actions if a.kind is kind]
            for piece in {p for p, _ in ran}:
                assert [m for p, m in ran if p == piece] == order


def test_fewer_needs_overlap_more():
    """Without edges between chunks the pipeline is GNNPipe's; with all of them it is one stage after the other."""
    makespans = {
        name: simulate(exact_schedule(NEEDS[name], (4, 4)), Costs(4.0, 4.0, 0.0)).makespan
        for name in ("nothing", "path", "all")
    }
    assert makespans["nothing"] == pytest.approx(simulate(distributed.gnnpipe(2, 16), Costs(4.0, 4.0, 0.0)).makespan)
    assert makespans["nothing"] < makespans["path"] < makespans["all"]
    assert makespans["all"] == pytest.approx(2 * 16 * 8.0)


@pytest.mark.parametrize(
    ("needs", "aggregations", "message"),
    [
        ([], (1,), "num_chunks must be at least 1, got 0"),
        ([[0]], (), "num_stages must be at least 1, got 0"),
        ([[1]], (1,), r"needs must hold chunks in \[0, 1\), got \[\[1\]\]"),
        ([[0]], (-1,), r"aggregations must not be negative, got \[-1\]"),
    ],
)
def test_bad_schedules_are_named(needs, aggregations, message):
    with pytest.raises(ValueError, match=f"exact_schedule: {message}"):
        exact_schedule(needs, aggregations)


# Chunks in order.


def test_needs_are_the_chunks_of_in_neighbours():
    graph = CSR.from_edge_index(torch.tensor([[0, 1, 5], [1, 2, 3]]), 6)
    assert chunk_needs([graph], torch.tensor([0, 0, 1, 1, 2, 2]), 3) == ((0,), (0, 1, 2), (2,))
    again = CSR.from_edge_index(torch.tensor([[2], [0]]), 6)
    assert chunk_needs([graph, again], torch.tensor([0, 0, 1, 1, 2, 2]), 3)[0] == (0, 1)


@pytest.mark.parametrize("num_ways", [1, 2])
def test_chunks_are_ordered_so_that_few_are_waited_for(num_ways):
    graph, _ = path_problem(torch.float32)
    way, chunk, needs = spread_in_order(graph, num_ways, 10)
    assert (way * 10 + chunk).bincount(minlength=num_ways * 10).min() > 0
    if num_ways == 1:
        assert [max(chunks) - m for m, chunks in enumerate(needs)] == [1] * 9 + [0]


def test_a_hub_leaves_no_chunk_empty():
    node = torch.arange(1, 40)
    graph = CSR.from_edge_index(torch.stack([node, torch.zeros_like(node)]), 40)
    for num_chunks in (1, 7, 40):
        _, chunk, needs = spread_in_order(graph, 1, num_chunks)
        assert chunk.bincount(minlength=num_chunks).min() > 0
        assert len(needs) == num_chunks


# Calls that pause.


def test_a_suspended_call_goes_on_where_it_paused():
    seen = []

    def count(pause):
        for i in range(3):
            seen.append(i)
            pause()
        return "end"

    call = Suspended(count)
    for i in range(3):
        assert call.resume() is None
        assert seen == list(range(i + 1))
    assert (call.resume(), call.done, call.resume()) == ("end", True, "end")


def test_a_suspended_call_raises_where_it_is_resumed_and_can_be_given_up():
    def fail(pause):
        pause()
        raise KeyError("inside")

    call = Suspended(fail)
    call.resume()
    with pytest.raises(KeyError, match="inside"):
        call.resume()
    unwound = []

    def wait(pause):
        try:
            pause()
        finally:
            unwound.append(True)

    paused = Suspended(wait)
    paused.resume()
    paused.close()
    assert unwound == [True]
    assert not paused._thread.is_alive()


# One process.

PROBLEMS = {"random": lambda dtype: make_problem(dtype, weighted=True), "path": path_problem}


@pytest.mark.parametrize("recompute", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", MODELS)
def test_exact_is_full_graph_training(name, problem, recompute):
    """Losses, all gradients and evaluation of one chunk, to float64 rounding."""
    graph, data = PROBLEMS[problem](torch.float64)
    model = make_model(name, dropout=0.3, dtype=torch.float64)
    whole = make_engine(model, graph, data, num_chunks=1)
    exact = make_engine(model, graph, data, mode="exact", num_chunks=7, recompute=recompute)
    for _ in range(5):
        assert exact.train_epoch().loss == pytest.approx(whole.train_epoch().loss, rel=1e-11)
    assert exact.evaluate().loss == pytest.approx(whole.evaluate().loss, rel=1e-11)
    (_, expected), (_, found) = gradients_of_next_epoch(whole), gradients_of_next_epoch(exact)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert (found[key] - gradient).norm() <= 1e-10 * gradient.norm()


class Hops(Neighbors):
    """Reads two shells of a HopGraph."""

    def forward(self, graph, x):
        return x + torch.tanh(self.linear(sum(aggregate(shell, x, reduce=self.reduce) for shell in graph.shells)))


@pytest.mark.parametrize("recompute", [False, True], ids=["stored", "recomputed"])
def test_layers_of_a_hop_graph_wait_along_every_hop(recompute):
    graph, data = path_problem(torch.float64)
    torch.manual_seed(1)
    ends = nn.Linear(NUM_FEATURES, 8), nn.Linear(8, NUM_CLASSES)
    model = GraphSequential(ends[0], Hops(8, "mean"), Hops(8, "max"), ends[1]).double()
    hops = HopGraph.of(graph, 2)
    whole = make_engine(model, hops, data, num_chunks=1)
    exact = make_engine(model, hops, data, mode="exact", num_chunks=9, recompute=recompute)
    assert exact._num_aggregations == (4,)
    for _ in range(3):
        assert exact.train_epoch().loss == pytest.approx(whole.train_epoch().loss, rel=1e-11)
    drew = DRew(NUM_FEATURES, 8, NUM_CLASSES, 2).double()
    with pytest.raises(ValueError, match="model must have no BatchNorm1d in mode 'exact'"):
        make_engine(drew, hops, data, mode="exact", num_chunks=4)


def test_ordinary_dropout_is_recomputed_with_its_own_random_numbers():
    """Chunks take turns inside a layer; each must find the masks that it drew."""
    graph, data = make_problem()
    torch.manual_seed(5)
    middle = [module for _ in range(3) for module in (nn.Dropout(0.5), Neighbors(8, "mean"))]
    model = GraphSequential(nn.Linear(NUM_FEATURES, 8), *middle, nn.Linear(8, NUM_CLASSES))

    def losses(recompute):
        torch.manual_seed(6)
        engine = make_engine(model, graph, data, mode="exact", num_chunks=5, recompute=recompute)
        return [engine.train_epoch().loss for _ in range(4)]

    assert losses(True) == losses(False)


def test_an_interrupted_epoch_can_be_run_again():
    graph, data = make_problem()
    model = make_model(dropout=0.3)
    expected = make_engine(model, graph, data, mode="exact", num_chunks=5).train_epoch().loss
    engine = make_engine(model, graph, data, mode="exact", num_chunks=5)
    worker, backward = engine._worker, engine._worker.backward

    def interrupt(*_):
        raise KeyboardInterrupt

    forward, worker.backward, calls = worker.forward, interrupt, iter(range(4))
    worker.forward = lambda *arguments: forward(*arguments) if next(calls, None) is not None else interrupt()
    with pytest.raises(KeyboardInterrupt):
        engine.train_epoch()
    worker.forward, worker.backward = forward, backward
    assert engine.train_epoch().loss == expected


def test_resumed_training_continues_to_the_bit(tmp_path):
    graph, data = make_problem()
    model = make_model(dropout=0.5)
    engine = make_engine(model, graph, data, mode="exact", num_chunks=5)
    for _ in range(3):
        engine.train_epoch()
    engine.save_checkpoint(tmp_path)
    expected = [engine.train_epoch().loss for _ in range(3)]
    resumed = make_engine(model, graph, data, mode="exact", num_chunks=5)
    resumed.load_checkpoint(tmp_path)
    assert [resumed.train_epoch().loss for _ in range(3)] == expected
    with pytest.raises(ValueError, match="mode must be the checkpoint's 'exact', got 'stale'"):
        make_engine(model, graph, data, num_chunks=5).load_checkpoint(tmp_path)


class Extra(Neighbors):
    """Aggregates once more where there are rows."""

    def forward(self, graph, x):
        x = super().forward(graph, x)
        return super().forward(graph, x) if len(x) else x


BAD = [
    ({"mode": "eager"}, "mode must be one of stale, exact, got 'eager'"),
    ({"mode": "exact", "boundary_bits": 8}, "boundary_bits must be None in mode 'exact', got 8"),
    ({"mode": "exact", "split_backward": True}, "split_backward must be false in mode 'exact', got True"),
]


@pytest.mark.parametrize(("section", "message"), BAD)
def test_what_contradicts_the_mode_is_named(section, message):
    graph, data = make_problem()
    with pytest.raises(ValueError, match=f"initialize: {message}"):
        make_engine(make_model(), graph, data, **section)


def test_batch_norms_and_changing_numbers_of_aggregations_are_refused():
    graph, data = make_problem()
    ends = nn.Linear(NUM_FEATURES, 8), nn.Linear(8, NUM_CLASSES)
    model = GraphSequential(ends[0], nn.BatchNorm1d(8), Neighbors(8, "mean"), ends[1])
    with pytest.raises(ValueError, match="model must have no BatchNorm1d in mode 'exact'"):
        make_engine(model, graph, data, mode="exact", num_chunks=4)
    assert make_engine(model, graph, data, mode="exact", num_chunks=1).train_epoch().loss > 0
    engine = make_engine(GraphSequential(ends[0], Extra(8, "mean"), ends[1]), graph, data, mode="exact", num_chunks=4)
    with pytest.raises(ValueError, match=r"must aggregate as often .* \(1 times in this stage\), got one more"):
        engine.train_epoch()


# Several processes.

RUNS = {  # by number of workers: problem, dtype, section
    2: [("path", torch.float64, {}), ("random", torch.float32, {"recompute": True})],
    3: [("path", torch.float64, {"recompute": True}), ("random", torch.float64, {"num_ways": 3})],
    4: [("path", torch.float32, {}), ("path", torch.float64, {"num_ways": 2, "num_chunks": 6})],
}


NAMES = ("gcnii", "own layers")


def _train(name, problem, dtype, section):
    torch.set_num_threads(1)
    graph, data = PROBLEMS[problem](dtype)
    model = make_model(name, dropout=0.3, dtype=dtype)
    section = {"mode": "exact", "num_chunks": 10, "backend": "torch"} | section
    engine = make_engine(model, graph, data, **section)
    losses = [engine.train_epoch().loss for _ in range(4)]
    _, gradients = gradients_of_next_epoch(engine, summed_over_ways=True)
    timeline = engine.timeline()
    return {"losses": losses, "gradients": gradients, "bytes": engine.counters.as_dict(), "stages": timeline.num_stages}


def _worker(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    found = {(i, name): _train(name, *run) for i, run in enumerate(RUNS[world]) for name in NAMES}
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    distributed.leave_distributed()


@pytest.mark.launch
@pytest.mark.parametrize("world", RUNS)
def test_processes_give_the_bits_of_one(world, tmp_path):
    """Without ways the bits of one process with as many chunks; with ways, and against one chunk, the rounding."""
    run_workers(_worker, (world, str(tmp_path)), num_workers=world)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(world)]
    for i, (problem, dtype, section) in enumerate(RUNS[world]):
        tolerance = 1e-5 if dtype == torch.float32 else 1e-10
        for name in NAMES:
            ours = [one[i, name] for one in found]
            same, whole = (_train(name, problem, dtype, section | chunks) for chunks in ({}, {"num_chunks": 1}))
            ways = section.get("num_ways", 1)
            if ways == 1:
                assert all(one["losses"] == same["losses"] for one in ours)
                assert all(g.equal(same["gradients"][key]) for one in ours for key, g in one["gradients"].items())
            assert ours[0]["stages"] == world
            for one in ours:
                assert one["losses"] == pytest.approx(whole["losses"], rel=tolerance)
                for key, gradient in one["gradients"].items():
                    expected = whole["gradients"][key]
                    assert (gradient - expected).norm() <= tolerance * expected.norm()
            states = 2 if name == "gcnii" else 1
            layer_level = states * 2 * (world // ways - 1) * NUM_NODES * 8 * dtype.itemsize
            assert ours[0]["bytes"]["layer_level"] == layer_level


def _deepspeed_worker(rank, port, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    distributed.init_distributed("cpu")
    losses = [_train_clipped(zero_optimization={"stage": stage}) for stage in (0, 2)]
    torch.save(losses, os.path.join(folder, f"{rank}.pt"))
    distributed.leave_distributed()


def _train_clipped(**config):
    graph, data = make_problem()
    config = config | {"gradient_clipping": 0.1, "gossamer": {"mode": "exact", "num_chunks": 5}}
    engine = distributed.initialize(make_model(dropout=0.3), graph, **data, config=config)
    return [engine.train_epoch().loss for _ in range(4)]


@pytest.mark.launch
def test_deepspeed_with_zero_and_clipping_equals_one_process(tmp_path):
    pytest.importorskip("deepspeed")
    run_workers(_deepspeed_worker, (str(free_port()), str(tmp_path)), num_workers=2)
    expected = _train_clipped()
    for rank in range(2):
        for losses in torch.load(tmp_path / f"{rank}.pt"):
            assert losses == pytest.approx(expected, rel=1e-5)
