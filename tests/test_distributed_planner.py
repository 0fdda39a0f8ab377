"""The planner: bytes by the closed forms, the break-even depth, and plans that the engine carries out."""

from dataclasses import replace

import pytest
import torch

from gossamer import distributed
from gossamer.distributed import Calibration, calibrate, plan_parallelism
from gossamer.graph import CSR, halo, partition

from pipeline_problem import make_engine, make_model, make_problem

MACHINE = Calibration(1e-7, 1e-8, 2e-7, 1e-8, call=1e-5, byte=1e-9, latency=1e-5, num_cores=64)
SLOW_LINKS = Calibration(1e-7, 1e-8, 2e-7, 1e-8, call=1e-6, byte=1e-7, latency=1e-5, num_cores=64)


def ring(num_nodes=400):
    ids = torch.arange(num_nodes)
    edges = torch.stack([ids, (ids + 1) % num_nodes])
    return CSR.from_edge_index(torch.cat([edges, edges.flip(0)], 1), num_nodes)


def test_bytes_are_the_closed_forms():
    graph, _ = make_problem()
    plan = plan_parallelism(graph, 6, 8, 4, num_states=2, num_weights=500, calibration=MACHINE)
    assert {(c.num_ways, c.num_stages) for c in plan.candidates} == {(1, 4), (2, 2), (4, 1)}
    for c in plan.candidates:
        num_halo = halo(graph, partition(graph, c.num_ways)).shape[1]
        assert c.graph_bytes == 2 * 6 * num_halo * 8 * 4
        assert c.layer_bytes == 2 * 2 * (c.num_stages - 1) * graph.num_nodes * 8 * 4
        assert c.sync_bytes == 2 * (c.num_ways - 1) * 500 * 4


@pytest.mark.parametrize("calibration", [MACHINE, SLOW_LINKS], ids=["fast links", "slow links"])
@pytest.mark.parametrize("num_states", [1, 2])
def test_no_pipeline_below_the_break_even_depth(calibration, num_states):
    graph, _ = make_problem()
    kinds = set()
    for num_layers in range(1, 40):
        plan = plan_parallelism(graph, num_layers, 64, 2, num_states=num_states, calibration=calibration)
        num_halo = halo(graph, partition(graph, 2)).shape[1]
        assert plan.break_even == num_states * graph.num_nodes / num_halo
        assert plan.kind == "graph" or num_layers >= plan.break_even
        kinds.add(plan.kind)
    assert "graph" in kinds


def test_slow_links_and_depth_choose_the_pipeline_and_a_good_cut_graph_parallelism():
    graph, _ = make_problem()
    assert plan_parallelism(graph, 64, 64, 4, calibration=SLOW_LINKS).kind == "pipeline"
    assert plan_parallelism(ring(), 4, 64, 4, calibration=SLOW_LINKS).kind == "graph"


def test_a_graph_without_halo_never_takes_the_pipeline():
    graph = CSR.from_edge_index(torch.empty(2, 0, dtype=torch.int64), 8)
    plan = plan_parallelism(graph, 64, 8, 2, calibration=SLOW_LINKS)
    assert (plan.kind, plan.break_even) == ("graph", float("inf"))


def test_no_hybrid_whose_stages_are_below_their_break_even_depth():
    """Two ways in two stages against four ways: what the stages add to the bytes, and what they spare."""
    graph, _ = make_problem()
    halos = {ways: halo(graph, partition(graph, ways)).shape[1] for ways in (2, 4)}
    border = graph.num_nodes / (halos[4] - halos[2])
    refused = {}
    for num_layers in range(2, 30):
        plan = plan_parallelism(graph, num_layers, 8, 4, num_states=2, calibration=MACHINE)
        hybrids = {bool(c.refused) for c in plan.candidates if c.kind == "hybrid"}
        assert hybrids == {num_layers < 2 * border}
        refused[num_layers] = hybrids == {True}
    assert set(refused.values()) == {True, False}


def test_exact_plans_say_how_much_the_graph_lets_stages_overlap():
    """A ring is swept in slices that read their neighbours; in a random graph every chunk reads every other."""
    busy = {}
    for name, graph in (("ring", ring()), ("random", make_problem()[0])):
        plan = plan_parallelism(graph, 8, 8, 2, exact=True, calibration=MACHINE)
        of_chunks = {c.num_chunks: c.busy for c in plan.candidates if c.kind == "pipeline"}
        assert set(of_chunks) == {1, 16, 32, 64}
        assert of_chunks[1] <= 0.5
        busy[name] = of_chunks[64]
    assert busy["ring"] > 0.85
    assert busy["random"] < 0.6


def test_the_engine_carries_an_exact_plan_out():
    graph, data = make_problem()
    plan = plan_parallelism(ring(150), 40, 8, 2, exact=True, calibration=SLOW_LINKS)
    chosen = next(c for c in plan.candidates if c.kind == "pipeline" and c.num_chunks == 16)
    section = replace(plan, chosen=chosen).section
    assert section == {"num_ways": 1, "num_chunks": 16, "mode": "exact"}
    assert make_engine(make_model(), graph, data, **section).schedule.needs
    assert {c.num_chunks for c in plan_parallelism(graph, 8, 8, 1, exact=True, calibration=MACHINE).candidates} == {1}


def test_one_worker_is_alone():
    graph, _ = make_problem()
    assert plan_parallelism(graph, 8, 8, 1, calibration=MACHINE).kind == "alone"


def test_more_cores_than_workers_hide_the_exchange():
    graph, _ = make_problem()
    shared = Calibration(1e-7, 1e-8, 2e-7, 1e-8, byte=1e-9, latency=1e-5, num_cores=4)
    seconds = {}
    for name, calibration in (("shared", shared), ("spare", MACHINE)):
        plan = plan_parallelism(graph, 8, 8, 4, calibration=calibration)
        seconds[name] = next(c.seconds for c in plan.candidates if c.kind == "graph")
    assert seconds["spare"] < seconds["shared"]


def test_the_table_says_why():
    graph, _ = make_problem()
    lines = str(plan_parallelism(graph, 1, 8, 2, calibration=SLOW_LINKS)).splitlines()
    assert lines[0].startswith("halo / N = ")
    assert sum(line.startswith("->") for line in lines) == 1
    lines = str(plan_parallelism(ring(), 3, 8, 2, calibration=SLOW_LINKS)).splitlines()
    assert any("pipeline" in line and "refused: 3 layers are below its L* = " in line for line in lines)


def test_the_engine_carries_a_plan_out():
    graph, data = make_problem()
    plan = plan_parallelism(graph, 6, 8, 4, calibration=MACHINE)
    engine = make_engine(make_model(), graph, data, **plan.section)
    assert engine.num_chunks == plan.chosen.num_chunks
    assert engine.train_epoch().loss > 0


def test_calibration_measures_something():
    graph, _ = make_problem()
    found = calibrate(graph, 16, num_cores=3)
    assert found.num_cores == 3
    assert found.forward_edge > 0
    assert found.call > 0
    assert found.forward(100, 1000) > found.forward(10, 100)
    assert isinstance(plan_parallelism(graph, 4, 16, 2), distributed.ParallelPlan)


BAD = [
    ({"num_layers": 0}, "num_layers must be an int of at least 1, got 0"),
    ({"hidden_dim": True}, "hidden_dim must be an int of at least 1, got True"),
    ({"num_workers": 2.0}, "num_workers must be an int, got float"),
    ({"num_workers": 500}, r"num_workers must be at most the number of nodes \(400\), got 500"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_input_is_named(changes, message):
    arguments = {"num_layers": 4, "hidden_dim": 8, "num_workers": 2} | changes
    with pytest.raises((TypeError, ValueError), match=f"plan_parallelism: {message}"):
        plan_parallelism(ring(), **arguments, calibration=MACHINE)
