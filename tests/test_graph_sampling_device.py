"""Sampling on a device gives the samples of the CPU. Without a GPU its operators run on the CPU, from one source."""

import pytest
import torch
from sampling_problem import MODES, copies, random_graph

from gossamer.graph import CSR, neighbor_sample
from gossamer.graph.sampling import _index_of
from gossamer.graph.sampling_device import Rules, sample_on_device

FANOUTS = [
    pytest.param([3], id="one hop"),
    pytest.param([4, 3, 2], id="three hops"),
    pytest.param([-1, 0.3], id="all, then a share"),
    pytest.param([40], id="more than most rows have"),
    pytest.param([], id="no hop"),
]


def assert_same(graph: CSR, seeds: torch.Tensor, fanouts: list[float], device: str, seed: int, options: dict) -> None:
    options = {**options, "seed_time": (seeds * 7) % 100} if options.get("timed") else dict(options)
    timed = options.pop("timed", False)
    expected = neighbor_sample(graph, seeds, fanouts, seed=seed, **options)
    index = _index_of(graph.to(device), options.pop("weighted", False), timed, None)
    if timed:
        options |= {"seed_time": options["seed_time"].to(device), "disjoint": True}
    found = sample_on_device(index.relations[0], graph.num_nodes, seeds.to(device), fanouts, Rules(seed, **options))
    for name in ("node", "row", "col", "edge", "batch"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None), name
        assert ours is None or torch.equal(ours.cpu(), theirs), name
    assert found.num_nodes == expected.num_sampled_nodes
    assert found.num_edges == expected.num_sampled_edges


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("fanouts", FANOUTS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_same_sample_as_the_cpu(dtype, fanouts, options, device):
    full = random_graph(400, 6000)
    weight = full.weight.where(torch.arange(6000) % 3 > 0, torch.tensor(0.0))  # a third is never chosen
    graph = CSR(full.rowptr, full.col.to(dtype), num_nodes=400, weight=weight, time=full.time, edge_ids=full.edge_ids)
    seeds = torch.tensor([7, 0, 399, 30, 7, *range(100, 160)])  # 7 twice; 399 has no edge
    assert_same(graph, seeds, fanouts, device, -3, options)


@pytest.mark.parametrize("replace", [False, True])
def test_rows_that_end_in_the_scan(replace, device):
    """One edge takes nearly all the weight: the rest is drawn by keys, in a row and again in the next ones."""
    options = {"weighted": True, "replace": replace}
    assert_same(copies([1e9, 1.0, 2.0, 0.0, 3.0, 1.0], 300), torch.arange(300), [4], device, 2, options)
    assert_same(copies([0.0] * 5, 9), torch.arange(9), [2], device, 2, options)


@pytest.mark.parametrize("disjoint", [False, True])
def test_no_seeds_and_no_edges(disjoint, device):
    options = {"disjoint": disjoint}
    assert_same(random_graph(50, 300), torch.empty(0, dtype=torch.int64), [3, 2], device, 0, options)
    empty = CSR(torch.zeros(4, dtype=torch.int64), torch.empty(0, dtype=torch.int64), num_nodes=3)
    assert_same(empty, torch.tensor([2, 0]), [3, -1], device, 0, options)


def test_compact_row_pointers(device):
    assert_same(random_graph(400, 6000).compact(), torch.arange(50), [4, 3], device, 0, {"weighted": True})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_graphs_are_sampled_from_where_they_are():
    full = random_graph(400, 6000)
    graph = CSR(full.rowptr.pin_memory(), full.col.pin_memory(), num_nodes=400, weight=full.weight.pin_memory())
    seeds = torch.arange(50)
    for weighted in (False, True):
        found = neighbor_sample(graph, seeds.cuda(), [4, 3], seed=1, weighted=weighted)
        expected = neighbor_sample(graph, seeds, [4, 3], seed=1, weighted=weighted)
        assert torch.equal(found.node.cpu(), expected.node)
        assert torch.equal(found.edge.cpu(), expected.edge)


def test_what_devices_refuse():
    message = "neighbor_sample: graph must be on meta like the seeds or in pinned memory, got cpu"
    with pytest.raises(ValueError, match=message):
        neighbor_sample(random_graph(9, 9), torch.tensor([0], device="meta"), [1], seed=0)
    with pytest.raises(ValueError, match=r"seed_time must be one integer per seed on cpu, got .* on meta"):
        neighbor_sample(random_graph(9, 9), torch.tensor([0]), [1], seed=0, seed_time=torch.zeros(1, device="meta"))


@pytest.mark.parametrize("timed", [False, True])
def test_opcheck(timed, device):
    graph = random_graph(50, 300).to(device)
    relation = _index_of(graph, True, True, None).relations[0]
    targets = torch.tensor([3, 7], device=device)
    trees = (torch.tensor([0, 1], device=device), torch.tensor([50, 60], device=device)) if timed else (None, None)
    bounding = (graph.rowptr, relation.time, targets, *trees, 2.0, False, -1)
    torch.library.opcheck(torch.ops.gossamer.sample_bounds.default, bounding)
    offsets = torch.nn.functional.pad(torch.ops.gossamer.sample_bounds(*bounding).cumsum(0), (1, 0))
    arguments = (relation.rowptr, relation.col, relation.weight, relation.alias, relation.cumulative, relation.time,
                 relation.edge_ids, targets, *trees, offsets, int(offsets[-1]), 2.0, 0, 0, False, "recency",
                 -1)  # fmt: skip
    torch.library.opcheck(torch.ops.gossamer.sample_rows.default, arguments)
