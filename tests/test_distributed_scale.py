"""The simulator of clusters: closed forms, links inside and between machines, memory, and the engine's counters."""

from dataclasses import replace

import pytest

from gossamer.distributed import Calibration, Cluster, Link, ScaleJob, plan_parallelism, simulate_scale
from gossamer.graph import halo, partition

from pipeline_problem import make_engine, make_model, make_problem

UNIT = Calibration(1.0, 0.0, 2.0, 0.0, call=0.0)  # seconds per node and layer
FREE = Link(1e30)
NO_NETWORK = Cluster(4, FREE, FREE)
JOB = ScaleJob(num_nodes=3200, num_edges=32_000, num_layers=32, hidden_dim=10, calibration=UNIT)


def with_links(inside, between, **options):
    return Cluster(4, Link(inside), Link(between), **options)


def test_bytes_are_those_of_the_planner():
    graph, _ = make_problem()
    ratios = {ways: halo(graph, partition(graph, ways)).shape[1] / graph.num_nodes for ways in (1, 2, 4)}
    plan = plan_parallelism(graph, 6, 8, 4, num_states=2, num_weights=500, calibration=UNIT)
    job = ScaleJob(graph.num_nodes, graph.num_edges, 6, 8, UNIT, ratios.__getitem__, num_states=2, num_weights=500)
    for c in plan.candidates:
        found = simulate_scale(job, NO_NETWORK, 4, num_ways=c.num_ways)
        assert (found.layer_bytes, found.graph_bytes, found.sync_bytes) == (c.layer_bytes, c.graph_bytes, c.sync_bytes)
        assert found.kind == c.kind


def test_bytes_of_a_pipeline_do_not_grow_with_depth():
    found = {simulate_scale(replace(JOB, num_layers=depth), NO_NETWORK, 4).total_bytes for depth in (4, 16, 64, 256)}
    assert found == {2 * 3 * 3200 * 10 * 4}


@pytest.mark.parametrize(("num_stages", "num_chunks"), [(1, 1), (4, 16), (8, 32)])
def test_without_a_network_only_the_bubble_costs(num_stages, num_chunks):
    found = simulate_scale(JOB, NO_NETWORK, num_stages, num_chunks=num_chunks)
    ideal = 32 * 3200 * 3.0 / num_stages
    assert found.seconds == pytest.approx(ideal * (num_chunks + num_stages - 1) / num_chunks)
    assert found.bubble == pytest.approx((num_stages - 1) / (num_chunks + num_stages - 1))


def test_graph_parallelism_divides_the_work_and_waits_for_the_rows():
    job = replace(JOB, halo_ratio=lambda ways: 0.8)
    free = simulate_scale(job, NO_NETWORK, 4, num_ways=4).seconds
    assert free == pytest.approx(32 * 3200 * 3.0 / 4)
    rows = 0.8 * 3200 / 4 * 10 * 4  # bytes that a worker reads per layer, all inside one machine
    waiting = simulate_scale(job, with_links(rows / 5.0, 1e30, overlap=False), 4, num_ways=4)
    sync = 2 * 3 * 32 * 100 * 4 / 4 / (rows / 5.0)
    assert waiting.seconds == pytest.approx(free + 32 * 2 * 5.0 + sync)
    assert waiting.sync_seconds == pytest.approx(sync)


def test_workers_of_a_machine_share_its_link_to_others():
    """Eight ways on two machines: 4 of the 7 others are on the other machine, and 4 workers send there at once."""
    job = replace(JOB, halo_ratio=lambda ways: 0.7, num_weights=0)
    found = simulate_scale(job, with_links(1e30, 1e3, overlap=False), 8, num_ways=8)
    per_worker = 0.7 * 3200 / 8 * 10 * 4
    exchange = 4 * per_worker * 4 / 7 / 1e3
    assert found.seconds == pytest.approx(32 * 3200 * 3.0 / 8 + 32 * 2 * exchange)
    assert found.between_bytes == pytest.approx(2 * 32 * 4 * per_worker * 4 / 7)
    assert found.inside_bytes == pytest.approx(2 * 32 * per_worker * 3 / 7)


def test_only_borders_between_machines_use_their_link():
    message = 3200 * 10 * 4
    found = simulate_scale(JOB, NO_NETWORK, 8)
    assert found.between_bytes == message  # one border of two machines, one direction each
    assert found.inside_bytes == 2 * message
    assert found.worker_bytes == 2 * message
    inside, between = (simulate_scale(JOB, with_links(*speeds), 8).seconds for speeds in [(1.0, 1e30), (1e30, 1.0)])
    assert inside >= found.seconds
    assert between >= found.seconds


def test_a_slow_link_takes_one_message_after_the_other():
    """Where a message takes longer than everything else, the epoch is the messages of one border, there and back."""
    fast = replace(JOB, calibration=Calibration(0.0, 0.0, 0.0, 0.0, call=0.0))
    found = simulate_scale(fast, with_links(1e30, 100.0), 8, num_chunks=32)
    assert found.seconds == pytest.approx(2 * 3200 * 10 * 4 / 100.0)


def test_workers_that_share_cores_take_turns():
    alone = simulate_scale(JOB, NO_NETWORK, 1).seconds
    shared = simulate_scale(JOB, replace(NO_NETWORK, max_busy=1), 4, num_chunks=64).seconds
    assert shared == pytest.approx(alone)


def test_memory_counts_what_the_engine_keeps():
    """Rows and weights of the largest stage, against the buffers of the engine in one process."""
    graph, data = make_problem()
    engine = make_engine(make_model(), graph, data, num_chunks=5, refresh_period=2)
    engine.train_epoch()
    sites = engine._worker.chunked.sites
    rows = sum(4 * (s.inputs.numel() + s.gradients.numel()) + s.history.num_bytes for s in sites)
    job = ScaleJob(graph.num_nodes, graph.num_edges, 6, 8, UNIT, num_states=2, num_features=12, num_weights=100)
    memory = simulate_scale(job, NO_NETWORK, 1, num_chunks=5).memory
    assert memory.rows == rows
    assert memory.features == data["features"].numel() * 4
    assert memory.weights == 4 * 4 * 100
    assert memory.total == sum((memory.graph, memory.features, memory.rows, memory.activations, memory.weights))


def test_one_chunk_shares_its_rows_and_recomputes_in_segments():
    """Two rows per node for all aggregations together; kept for the backward pass: 64 modules in 8 segments."""
    stored, again = (simulate_scale(replace(JOB, recompute=r), NO_NETWORK, 1).memory for r in (False, True))
    assert stored.rows == again.rows == 2 * 3200 * 10 * 4
    assert stored.activations == 32 * 2 * 3200 * 10 * 4
    assert again.activations == (8 + 8) * 3200 * 10 * 4


def test_memory_falls_with_workers_and_recomputation():
    stored, again = (
        [simulate_scale(replace(JOB, recompute=r), NO_NETWORK, n).memory.total for n in (2, 4, 16)]
        for r in (False, True)
    )
    assert stored == sorted(stored, reverse=True)
    assert all(a < b for a, b in zip(again, stored))


BAD = [
    ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
    ({"num_ways": 3}, r"num_ways must divide num_workers \(8\), got 3"),
    ({"num_ways": 0}, r"num_ways must divide num_workers \(8\), got 0"),
    ({"num_workers": 64}, r"num_ways must be at least num_workers / num_layers \(64 / 32\), got 1"),
    ({"num_chunks": 4}, "num_chunks must be 1 or at least 8, got 4"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=f"simulate_scale: {message}"):
        simulate_scale(JOB, NO_NETWORK, **{"num_workers": 8} | changes)
