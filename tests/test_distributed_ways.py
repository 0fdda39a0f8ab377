"""Graph parallelism and the hybrid: several processes against one, bytes against the halo, checkpoints."""

import os

import pytest
import torch
import torch.distributed as dist
from workers import run_workers

from gossamer import distributed
from gossamer.distributed.grid import Grid
from gossamer.distributed.launcher import free_port
from gossamer.distributed.layout import spread, take_part
from gossamer.graph import CSR, aggregate, halo

from pipeline_problem import MODELS, NUM_NODES, gradients_of_next_epoch, make_engine, make_model, make_problem

HIDDEN, NUM_LAYERS = 8, 6


def directed_graph():
    generator = torch.Generator().manual_seed(3)
    return CSR.from_edge_index(torch.randint(0, 60, (2, 200), generator=generator), 60)


@pytest.mark.parametrize(("num_ways", "num_chunks"), [(1, 4), (2, 1), (3, 4)])
def test_parts_hold_every_node_once_and_aggregate_as_the_whole_graph(num_ways, num_chunks):
    """With the halo filled in, the rows of a way have the bits of the whole graph, and interiors read no halo."""
    graph = directed_graph()
    x = torch.randn(60, 5)
    expected = {reduce: aggregate(graph, x, reduce=reduce) for reduce in ("sum", "max")}
    way, chunk = spread(graph, num_ways, num_chunks)
    parts = [take_part(graph, way, chunk, w if num_ways > 1 else None) for w in range(num_ways)]
    assert torch.cat([part.node_ids for part in parts]).sort().values.equal(torch.arange(60))
    pairs = halo(graph, way)
    for w, part in enumerate(parts):
        rows = torch.full((part.graph.num_nodes, 5), torch.nan)
        rows[: part.num_own] = x[part.node_ids]
        for k in range(num_chunks):
            assert (chunk[part.node_ids[part.bounds[k] : part.bounds[k + 1]]] == k).all()
            for v in range(num_ways if num_ways > 1 else 0):
                sender = parts[v]
                ids = sender.send_ids[k][w] + sender.bounds[k]
                rows[part.halo_bounds[k][v] : part.halo_bounds[k][v + 1]] = x[sender.node_ids[ids]]
            interior = slice(part.bounds[k], part.middles[k])
            cols = part.graph.col[part.graph.rowptr[interior.start] : part.graph.rowptr[interior.stop]]
            assert (cols < part.num_own).all()
        assert part.graph.num_nodes - part.num_own == (pairs[0] == w).sum() * (num_ways > 1)
        for reduce, value in expected.items():
            assert aggregate(part.graph, rows, reduce=reduce)[: part.num_own].equal(value[part.node_ids])


def test_halo_is_the_distinct_remote_in_neighbours():
    graph = CSR.from_edge_index(torch.tensor([[0, 0, 1, 2, 3, 0], [2, 3, 2, 0, 3, 2]]), 4)
    assert halo(graph, torch.tensor([0, 0, 1, 1])).tolist() == [[0, 1, 1], [2, 0, 1]]
    with pytest.raises(ValueError, match=r"halo: part must be \[4\] \(num_nodes\), got \[3\]"):
        halo(graph, torch.zeros(3, dtype=torch.int64))


def test_a_worker_alone_is_the_whole_grid():
    assert Grid.of_world(4) == Grid(1, 1, 0, 0)
    assert Grid(2, 3, 1, 2).rank == 5
    assert Grid(2, 3, 1, 2).ways == [3, 4, 5]
    assert Grid(2, 3, 1, 2).pipeline == [2, 5]
    assert Grid(2, 3, 1, 2).name(4) == "stage 1, way 1"


def test_ways_that_do_not_divide_the_workers_are_refused(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    assert Grid.of_world(3) == Grid(1, 3, 0, 1)
    with pytest.raises(ValueError, match=r"num_ways must divide the number of workers \(3\), got 2"):
        Grid.of_world(2)


def test_more_chunks_than_nodes_of_a_way_are_refused():
    graph, data = make_problem()
    with pytest.raises(ValueError, match=r"num_chunks must be at most the .* nodes of a way, got 100"):
        make_engine(make_model(), graph, data, num_ways=2, num_chunks=100)


# Several processes.

FP32, FP64 = torch.float32, torch.float64
RUNS = {  # by number of workers: (dtype, section)
    2: [
        (FP64, {"num_ways": 2}),
        (FP32, {"num_ways": 2, "num_chunks": 4, "cross_chunk_gradient": "stale", "recompute": True}),
    ],
    3: [(FP64, {"num_ways": 3}), (FP32, {"num_ways": 3})],
    4: [
        (FP64, {"num_ways": 4}),
        (FP64, {"num_ways": 2, "num_chunks": 1}),
        (FP32, {"num_ways": 2, "num_chunks": 5, "refresh_period": 2}),
        (FP32, {"num_ways": 2, "num_chunks": 3, "split_backward": True}),
    ],
}


def _train(name, dtype, section, num_epochs=4):
    """Losses, gradients of the last epoch, bytes and evaluation; in any number of processes."""
    torch.set_num_threads(1)
    graph, data = make_problem(dtype)
    model = make_model(name, NUM_LAYERS, dropout=0.3, dtype=dtype)
    engine = make_engine(model, graph, data, backend="torch", **section)
    losses = [engine.train_epoch().loss for _ in range(num_epochs)]
    _, gradients = gradients_of_next_epoch(engine, summed_over_ways=True)
    result = {"losses": losses, "gradients": gradients, "bytes": engine.counters.as_dict()}
    return result | {"evaluation": engine.evaluate(), "place": (engine.stage, engine.way)}


def _worker(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    found = {(i, name): _train(name, *run) for i, run in enumerate(RUNS[world]) for name in MODELS}
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    distributed.leave_distributed()


@pytest.mark.launch
@pytest.mark.parametrize("world", RUNS)
def test_ways_have_the_losses_gradients_and_bytes_of_the_closed_form(world, tmp_path):
    """Against one process: relative error 1e-5, in float64 1e-10; equal gradients on all ways of a stage."""
    run_workers(_worker, (world, str(tmp_path)), num_workers=world)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(world)]
    for i, (dtype, section) in enumerate(RUNS[world]):
        tolerance = 1e-5 if dtype == FP32 else 1e-10
        for name in MODELS:
            expected = _train(name, dtype, {"num_chunks": 1} | section)
            ours = [one[i, name] for one in found]
            assert [one["place"] for one in ours] == [divmod(r, section["num_ways"]) for r in range(world)]
            _compare(ours, expected, tolerance)
        _check_bytes(found[0][i, "gcnii"]["bytes"], world, **{"num_chunks": 1} | section, dtype=dtype)


def _compare(ours, expected, tolerance):
    gradients = {}
    for one in ours:
        assert one["losses"] == pytest.approx(expected["losses"], rel=tolerance)
        assert one["evaluation"].loss == pytest.approx(expected["evaluation"].loss, rel=tolerance)
        assert one["evaluation"].accuracy == pytest.approx(expected["evaluation"].accuracy)
        for key, gradient in one["gradients"].items():
            assert gradients.setdefault(key, gradient).equal(gradient)
    assert gradients.keys() == expected["gradients"].keys()
    for key, gradient in gradients.items():
        scale = expected["gradients"][key].norm()
        assert (gradient - expected["gradients"][key]).norm() <= tolerance * scale


def _check_bytes(counted, world, *, num_ways, num_chunks, dtype, **_):
    """GCNII: 2 L halo F b between ways, 2 x 2 (S - 1) N F b between stages, 2 (W - 1) |weights| between replicas."""
    graph, _ = make_problem()
    num_halo = halo(graph, spread(graph, num_ways, num_chunks)[0]).shape[1]
    num_weights = sum(p.numel() for p in make_model("gcnii", NUM_LAYERS).parameters())
    num_stages = world // num_ways
    assert counted["graph_level"] == 2 * NUM_LAYERS * num_halo * HIDDEN * dtype.itemsize
    assert counted["layer_level"] == 2 * 2 * (num_stages - 1) * NUM_NODES * HIDDEN * dtype.itemsize
    assert counted["weight_sync"] == 2 * (num_ways - 1) * num_weights * dtype.itemsize


# DeepSpeed and checkpoints.

SETTINGS = {  # by number of workers: ZeRO stage and section
    2: [(0, {}), (1, {"num_chunks": 3}), (2, {"num_chunks": 3}), (2, {"num_chunks": 3, "split_backward": True})],
    4: [(1, {"num_chunks": 3, "split_backward": True}), (2, {"num_chunks": 3})],
}


def _train_clipped(folder, zero, section):
    """Losses with gradient clipping, with a checkpoint in the middle that a second engine resumes from."""
    graph, data = make_problem()
    section = {"num_ways": 2, "num_chunks": 1, "refresh_period": 2} | section
    config = {"gradient_clipping": 0.1, "zero_optimization": {"stage": zero}, "gossamer": section}

    def engine():
        return distributed.initialize(make_model(dropout=0.3), graph, **data, config=config)

    first = engine()
    losses = [first.train_epoch().loss for _ in range(3)]
    first.save_checkpoint(folder)
    losses += [first.train_epoch().loss for _ in range(3)]
    resumed = engine()
    resumed.load_checkpoint(folder)
    assert [resumed.train_epoch().loss for _ in range(3)] == losses[3:]
    return losses


def _deepspeed_worker(rank, world, port, folder):
    torch.set_num_threads(1)
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ.update(place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
    distributed.init_distributed("cpu")
    losses = [_train_clipped(f"{folder}/{i}", *setting) for i, setting in enumerate(SETTINGS[world])]
    torch.save(losses, os.path.join(folder, f"{rank}.pt"))
    distributed.leave_distributed()


@pytest.mark.launch
@pytest.mark.parametrize("world", [2, 4])
def test_deepspeed_ways_with_zero_clipping_and_2bp_resume_to_the_bit(world, tmp_path):
    """ZeRO 0, 1 and 2 over two ways (of one or two stages) have the losses of one process."""
    pytest.importorskip("deepspeed")
    run_workers(_deepspeed_worker, (world, str(free_port()), str(tmp_path)), num_workers=world)
    for i, (_, section) in enumerate(SETTINGS[world]):
        expected = _train_clipped(tmp_path / "alone", 0, section)
        for rank in range(world):
            assert torch.load(tmp_path / f"{rank}.pt")[i] == pytest.approx(expected, rel=1e-5)
