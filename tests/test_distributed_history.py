"""Gradients across chunks, and historical rows: their start, refresh, age and storage."""

import itertools
import math
import os
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from workers import run_workers

from gossamer import distributed
from gossamer.graph import CSR, GraphLayer, GraphSequential, aggregate

from pipeline_problem import (
    NUM_CLASSES,
    NUM_FEATURES,
    Neighbors,
    gradients_of_next_epoch,
    make_engine,
    make_model,
    make_problem,
)

RULES = ("rescaled", "detached", "positional", "stale", "compensated")


class Sum(GraphLayer):
    def forward(self, graph, x):
        return aggregate(graph, x)


def positional_weight(num_hops, num_chunks):
    """Mean over the orders of the product of num_chunks / position over the readers of a path."""
    places = itertools.combinations(range(num_chunks), num_hops + 1)  # of a path whose chunks come in its order
    kept = sum(math.prod(num_chunks / place for place in path[1:]) for path in places)
    return kept / math.perm(num_chunks, num_hops + 1)


def path_weight(rule, num_hops, num_chunks=4):
    """Mean over all orders of the gradient that reaches the first of num_hops + 1 nodes from the last.

    Every node is a chunk and reads the node before it; the network sums num_hops times. The full gradient is 1.
    """
    source = torch.arange(num_chunks - 1)
    graph = CSR.from_edge_index(torch.stack([source, source + 1]), num_chunks)
    last = torch.arange(num_chunks) == num_chunks - 1
    model = GraphSequential(nn.Linear(num_chunks, 1, bias=False), *[Sum() for _ in range(num_hops)]).double()
    engine = distributed.initialize(
        model, graph, features=torch.eye(num_chunks).double(), labels=torch.zeros(num_chunks), masks={"train": last},
        loss=lambda outputs, _: outputs.sum(),
        config={
            "optimizer": {"type": "SGD", "params": {"lr": 0.0}},
            "gossamer": {"num_chunks": num_chunks, "refresh_period": 1, "cross_chunk_gradient": rule},
        },
    )  # fmt: skip
    for _ in range(num_hops):  # last gradients, where a rule keeps them, reach every layer
        gradients_of_next_epoch(engine)
    total, orders = 0.0, list(itertools.permutations(range(num_chunks)))
    for order in orders:
        engine._draw_order = lambda order=order: list(order)
        _, found = gradients_of_next_epoch(engine)
        total += found["0.weight"][0, num_chunks - 1 - num_hops].item()
    return total / len(orders)


@pytest.mark.parametrize("num_hops", [0, 1, 2, 3])
def test_weight_of_a_path_over_all_orders(num_hops):
    """The table of docs/pipelines.md: k hops keep 1/(k+1)!, doubled 2^k/(k+1)!; two rules have all of them."""
    found = {rule: path_weight(rule, num_hops) for rule in RULES}
    kept = 1 / math.factorial(num_hops + 1)
    expected = {"detached": kept, "rescaled": 2**num_hops * kept, "positional": positional_weight(num_hops, 4)}
    assert found == pytest.approx(expected | {"stale": 1.0, "compensated": 1.0}, rel=1e-12)


def test_positional_weights_come_nearer_to_one_with_more_chunks():
    assert positional_weight(1, 8) == pytest.approx(1.0)
    weights = [positional_weight(2, num_chunks) for num_chunks in (4, 8, 16, 32)]
    assert weights == sorted(weights)
    assert weights[0] > 2 / 3
    assert weights[-1] > 0.92


def full_gradient(model, graph, data):
    train = data["masks"]["train"]
    loss = F.cross_entropy(model(graph, data["features"])[train], data["labels"][train])
    names, parameters = zip(*model.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, parameters)))


def test_compensated_gradient_is_unbiased_one_hop_behind_the_loss_for_any_last_gradients():
    graph, data = make_problem(torch.float64)
    torch.manual_seed(2)
    model = GraphSequential(nn.Linear(NUM_FEATURES, 8), nn.Tanh(), Neighbors(8, "mean"), nn.Linear(8, NUM_CLASSES))
    model = model.double()
    section = {"num_chunks": 4, "refresh_period": 1, "cross_chunk_gradient": "compensated"}
    engine = make_engine(model, graph, data, lr=0.0, optimizer="SGD", **section)
    engine.train_epoch()
    (site,) = engine._worker.chunked.sites
    wrong = torch.randn(site.gradients.shape, dtype=torch.float64) / len(data["labels"])
    total, orders = {}, list(itertools.permutations(range(4)))
    for order in orders:
        site.gradients.copy_(wrong)
        site.last_gradients.copy_(wrong)
        engine._draw_order = lambda order=order: list(order)
        _, found = gradients_of_next_epoch(engine)
        total = {name: total.get(name, 0) + grad / len(orders) for name, grad in found.items()}
    for name, grad in full_gradient(model, graph, data).items():
        torch.testing.assert_close(total[name], grad, rtol=1e-10, atol=1e-14)


def test_compensated_gradient_of_still_weights_is_the_full_gradient():
    """Whatever the order, once the last gradients have come through all layers."""
    graph, data = make_problem(torch.float64)
    model = make_model(dtype=torch.float64)
    section = {"num_chunks": 5, "history_start": "exact", "cross_chunk_gradient": "compensated"}
    engine = make_engine(model, graph, data, lr=0.0, optimizer="SGD", **section)
    for _ in range(7):  # one per aggregation
        _, found = gradients_of_next_epoch(engine)
    for name, grad in full_gradient(model, graph, data).items():
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-13)


def test_exact_start_makes_the_first_epoch_that_of_the_full_graph():
    graph, data = make_problem(torch.float64)
    model = make_model(dtype=torch.float64)
    losses = [
        make_engine(model, graph, data, **section).train_epoch().loss
        for section in ({"num_chunks": 1}, {"num_chunks": 5, "history_start": "exact"}, {"num_chunks": 5})
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert losses[2] != pytest.approx(losses[0], rel=1e-6)


def test_staleness_counts_what_chunks_read_of_others():
    graph, data = make_problem()
    engine = make_engine(make_model(), graph, data, num_chunks=5, refresh_period=3)
    chunked = engine._worker.chunked
    chunk = [c for c, (a, b) in enumerate(pairwise(chunked.bounds)) for _ in range(a, b)]
    source, target = chunked.graph.to_edge_index().tolist()
    reads = {(chunk[t], s) for s, t in zip(source, target) if chunk[s] != chunk[t]}
    for epoch, age in enumerate([None, None, None, 1, 2, 3, 1]):
        place = {c: i for i, c in enumerate(engine._draw_order())}
        current = sum(place[chunk[s]] < place[reader] for reader, s in reads)
        past = len(reads) - current
        staleness = engine.train_epoch().staleness
        assert staleness.current == current, epoch
        expected = ({}, past, 0.0) if age is None else ({age: past}, 0, float(age))
        assert (staleness.historical, staleness.empty, staleness.mean_age) == expected


def test_refresh_by_distance_takes_what_has_moved():
    """Rows that stand still keep their snapshot; rows that move get one, chunk by chunk and before the period is up."""
    graph, data = make_problem()
    section = {"num_chunks": 5, "history_start": "exact", "refresh_distance": 0.02}
    still = make_engine(make_model(), graph, data, lr=0.0, optimizer="SGD", **section)
    moving = make_engine(make_model(), graph, data, lr=3e-3, **section)
    ages = [[engine.train_epoch().staleness.historical for _ in range(8)] for engine in (still, moving)]
    assert [list(each) for each in ages[0]] == [[age] for age in range(8)]
    assert max(max(each) for each in ages[1]) < 7
    assert any(len(each) > 1 for each in ages[1])
    for before, after in pairwise(ages[1]):
        assert set(after) <= {1} | {age + 1 for age in before}


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("dtype", "error"), [("full", 0.0), ("bfloat16", 2**-8), ("int8", 0.02)])
def test_history_in_fewer_bits_is_near_the_rows(dtype, error):
    graph, data = make_problem()
    engine = make_engine(make_model(), graph, data, num_chunks=5, refresh_period=2, history_dtype=dtype)
    for _ in range(2):
        engine.train_epoch()
    sites = engine._worker.chunked.sites
    assert all(relative_error(site.history.rows(), site.inputs) <= error for site in sites)
    assert dtype == "full" or any(relative_error(site.history.rows(), site.inputs) > 0 for site in sites)
    row_bytes = {"full": 4 * 8, "bfloat16": 2 * 8, "int8": 8 + 4}[dtype]
    assert engine.history_bytes == len(sites) * len(data["labels"]) * row_bytes


def test_int8_history_has_no_bias():
    """The mean over many snapshots of the same rows comes nearer to them as 1 / sqrt(number)."""
    graph, data = make_problem()
    section = {"num_chunks": 3, "history_start": "exact", "refresh_period": 2, "history_dtype": "int8"}
    engine = make_engine(make_model(), graph, data, lr=0.0, optimizer="SGD", **section)
    total, count = 0, 0
    for epoch in range(128):
        engine.train_epoch()
        if epoch % 2:
            site = engine._worker.chunked.sites[0]  # reads the first layer: no history enters its rows
            total, count = total + site.history.rows().double(), count + 1
    single = relative_error(site.history.rows().double(), site.inputs.double())
    assert relative_error(total / count, site.inputs.double()) < 2 * single / math.sqrt(count)


OPTIONS = [
    {"cross_chunk_gradient": "compensated", "history_dtype": "int8"},
    {"cross_chunk_gradient": "positional", "history_start": "exact", "history_dtype": "bfloat16"},
    {"cross_chunk_gradient": "compensated", "history_start": "exact", "refresh_distance": 0.05},
]


@pytest.mark.parametrize("section", OPTIONS, ids=["int8", "bfloat16", "distance"])
def test_resumed_training_continues_to_the_bit(section, tmp_path):
    graph, data = make_problem()
    section = {"num_chunks": 5, "refresh_period": 3} | section
    engine = make_engine(make_model(dropout=0.5), graph, data, **section)
    for _ in range(4):
        engine.train_epoch()
    engine.save_checkpoint(tmp_path)
    expected = [engine.train_epoch() for _ in range(5)]
    resumed = make_engine(make_model(dropout=0.5), graph, data, **section)
    resumed.load_checkpoint(tmp_path)
    found = [resumed.train_epoch() for _ in range(5)]
    assert [(report.loss, report.staleness) for report in found] == [(r.loss, r.staleness) for r in expected]


@pytest.mark.parametrize("section", OPTIONS, ids=["int8", "bfloat16", "distance"])
def test_recomputed_and_split_backwards_change_no_gradient(section):
    graph, data = make_problem()
    section = {"num_chunks": 5, "refresh_period": 3} | section
    variants = [{}, {"recompute": True}, {"split_backward": True}]
    engines = [make_engine(make_model(dropout=0.5), graph, data, **section, **variant) for variant in variants]
    for _ in range(5):
        assert len({engine.train_epoch().loss for engine in engines}) == 1


def train(section):
    torch.set_num_threads(1)
    graph, data = make_problem()
    engine = make_engine(
        make_model(dropout=0.3), graph, data, num_chunks=6, refresh_period=3, backend="torch", **section
    )
    reports = [engine.train_epoch() for _ in range(7)]
    return [report.loss for report in reports], [report.staleness for report in reports], engine.counters.layer_level


def worker(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save([train(section) for section in OPTIONS], os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.launch
def test_several_processes_train_as_one(tmp_path):
    """The same losses, ages and snapshots due; rounding does not depend on the stages."""
    expected = [train(section) for section in OPTIONS]
    run_workers(worker, (2, str(tmp_path)), num_workers=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for (losses, staleness, sent), alone in zip(found, expected):
            assert losses == pytest.approx(alone[0], rel=1e-5)
            assert staleness == alone[1]
            assert sent == 2 * len(make_problem()[1]["labels"]) * 2 * 8 * 4  # two states of width 8, both ways
