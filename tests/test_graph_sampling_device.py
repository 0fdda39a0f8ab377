"""Sampling on a device gives the samples of the CPU. Without a GPU its operators run on the CPU, from one source."""

import pytest
import torch
from sampling_problem import copies, random_graph

from gossamer.graph import CSR, neighbor_sample
from gossamer.graph.sampling_device import sample_on_device

FANOUTS = [
    pytest.param([3], id="one hop"),
    pytest.param([4, 3, 2], id="three hops"),
    pytest.param([-1, 0.3], id="all, then a share"),
    pytest.param([40], id="more than most rows have"),
    pytest.param([], id="no hop"),
]
MODES = [
    pytest.param(replace, weighted, id=f"{'weighted' if weighted else 'uniform'}{', replace' if replace else ''}")
    for replace in (False, True)
    for weighted in (False, True)
]


def assert_same(graph: CSR, seeds: torch.Tensor, fanouts: list[float], device: str, **options) -> None:
    expected = neighbor_sample(graph, seeds, fanouts, **options)
    options = {"replace": False, "weighted": False} | options
    found = sample_on_device(graph.to(device), seeds.to(device), fanouts, **options)
    for name in ("node", "row", "col", "edge"):
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name
    assert found.num_nodes == expected.num_sampled_nodes
    assert found.num_edges == expected.num_sampled_edges


@pytest.mark.parametrize(("replace", "weighted"), MODES)
@pytest.mark.parametrize("fanouts", FANOUTS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_same_sample_as_the_cpu(dtype, fanouts, replace, weighted, device):
    full = random_graph(400, 6000)
    weight = full.weight.where(torch.arange(6000) % 3 > 0, torch.tensor(0.0))  # a third is never chosen
    graph = CSR(full.rowptr, full.col.to(dtype), num_nodes=400, weight=weight, edge_ids=full.edge_ids)
    seeds = torch.tensor([7, 0, 399, 30, 7, *range(100, 160)])  # 7 twice; 399 has no edge
    assert_same(graph, seeds, fanouts, device, seed=-3, replace=replace, weighted=weighted)


@pytest.mark.parametrize("replace", [False, True])
def test_rows_that_end_in_the_scan(replace, device):
    """One edge takes nearly all the weight: the rest is drawn by keys, in a row and again in the next ones."""
    graph = copies([1e9, 1.0, 2.0, 0.0, 3.0, 1.0], 300)
    assert_same(graph, torch.arange(300), [4], device, seed=2, weighted=True, replace=replace)
    assert_same(copies([0.0] * 5, 9), torch.arange(9), [2], device, seed=2, weighted=True, replace=replace)


def test_no_seeds_and_no_edges(device):
    graph = random_graph(50, 300)
    assert_same(graph, torch.empty(0, dtype=torch.int64), [3, 2], device, seed=0)
    assert_same(CSR(torch.zeros(4, dtype=torch.int64), torch.empty(0, dtype=torch.int64), num_nodes=3),
                torch.tensor([2, 0]), [3, -1], device, seed=0)  # fmt: skip


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


WRONG = [
    pytest.param({}, r"graph must be on meta like the seeds or in pinned memory, got cpu", id="graph elsewhere"),
    pytest.param({"disjoint": True}, "seeds must be on the CPU for times and disjoint trees, got meta", id="disjoint"),
    pytest.param({"seed_time": torch.tensor([0])}, "seeds must be on the CPU for times", id="times"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_devices_refuse(options, message):
    with pytest.raises(ValueError, match=f"neighbor_sample: {message}"):
        neighbor_sample(random_graph(9, 9), torch.tensor([0], device="meta"), [1], seed=0, **options)


def test_unweighted_graphs_are_refused(device):
    graph = CSR(torch.tensor([0, 1, 1]), torch.tensor([1]), num_nodes=2).to(device)
    with pytest.raises(ValueError, match="neighbor_sample: graph must have weights"):
        sample_on_device(graph, torch.tensor([0], device=device), [1], seed=0, replace=False, weighted=True)


def test_opcheck(device):
    graph = random_graph(50, 300).to(device)
    targets = torch.tensor([3, 7], device=device)
    torch.library.opcheck(torch.ops.gossamer.sample_bounds.default, (graph.rowptr, targets, 2.0, False))
    bounds = torch.ops.gossamer.sample_bounds(graph.rowptr, targets, 2.0, False)
    offsets = torch.nn.functional.pad(bounds.cumsum(0), (1, 0))
    arguments = (graph.rowptr, graph.col, None, None, graph.edge_ids, targets, offsets, int(offsets[-1]), 2.0, 0, 0,
                 False)  # fmt: skip
    torch.library.opcheck(torch.ops.gossamer.sample_rows.default, arguments)
