"""neighbor_sample with times: no edge from the future, and the reports of others' errors."""

import pytest
import torch
from sampling_problem import MODES, chi_square_bound, generator, random_graph

from gossamer.graph import CSR, neighbor_sample


@pytest.mark.parametrize("options", [p for p in MODES if p.values[0].get("timed")])
def test_no_edge_from_the_future(options):
    graph = random_graph(3000, 60000, max_time=1000)
    time = graph.time[graph.edge_ids.argsort()]  # by the caller's number
    num_edges = 0
    for seed in range(5):
        seeds = torch.randint(3000, (2000,), generator=generator(seed))
        seed_time = torch.randint(1000, (2000,), generator=generator(seed + 9))
        named = {k: v for k, v in options.items() if k != "timed"}
        out = neighbor_sample(graph, seeds, [6, 5], seed=seed, seed_time=seed_time, **named)
        limit = seed_time[out.batch[out.col]]
        assert bool((time[out.edge] <= limit).all())
        if "window" in options:
            assert bool((time[out.edge] >= limit - options["window"]).all())
        num_edges += out.edge.numel()
    assert num_edges > (1e3 if "window" in options else 1e5)


def test_last_takes_the_latest():
    graph = CSR.from_edge_index(torch.tensor([[1, 2, 3, 4, 5], [0] * 5]), 6, time=torch.tensor([5, 1, 4, 2, 3]))
    out = neighbor_sample(graph, torch.tensor([0]), [2], seed=0, seed_time=torch.tensor([4]), temporal="last")
    assert out.edge.tolist() == [4, 2]  # times 3 and 4, though the row is not sorted by time


def test_node_time_is_the_time_of_the_source():
    graph = CSR.from_edge_index(torch.tensor([[1, 2, 3], [0, 0, 0]]), 4)
    node_time = torch.tensor([9, 3, 1, 2])
    out = neighbor_sample(graph, torch.tensor([0]), [-1], seed=0, seed_time=torch.tensor([2]), node_time=node_time)
    assert sorted(out.node[out.row].tolist()) == [2, 3]
    later = neighbor_sample(
        graph, torch.tensor([0]), [-1], seed=0, seed_time=torch.tensor([2]), node_time=node_time - 5
    )
    assert later.edge.numel() == 3  # other node times are not mistaken for the first


@pytest.mark.parametrize("weighted", [False, True])
def test_node_and_edge_times_hold_jointly(weighted):
    g = torch.Generator().manual_seed(0)
    graph = CSR.from_edge_index(
        torch.randint(200, (2, 4000), generator=g), 200, weight=torch.rand(4000, generator=g),
        time=torch.randint(100, (4000,), generator=g),
    )  # fmt: skip
    node_time, edge_time = torch.randint(100, (200,), generator=g), graph.time[graph.edge_ids.argsort()]
    out = neighbor_sample(
        graph, torch.arange(50), [-1, 5], seed=0, seed_time=torch.full((50,), 60), node_time=node_time,
        weighted=weighted,
    )  # fmt: skip
    source = out.node[out.row]
    assert bool((node_time[source] <= 60).all())
    assert bool((edge_time[out.edge] <= 60).all())
    source, target = graph.to_edge_index()
    seen = (target < 50) & (node_time[source] <= 60) & (graph.time <= 60)
    assert out.num_sampled_edges[0] == int(seen.sum())  # and nothing else is left out


def test_edge_newer_than_its_seed_is_not_returned():
    """pytorch_geometric#7794: an edge of time 2 came back for a seed of time 1."""
    edge_index = torch.tensor([[1, 0, 1, 1, 2], [0, 1, 2, 0, 0]])
    graph = CSR.from_edge_index(edge_index, 3, time=torch.tensor([1, 2, 3, 4, 5]))
    out = neighbor_sample(graph, torch.tensor([1]), [-1], seed=0, seed_time=torch.tensor([1]))
    assert out.edge.numel() == 0
    out = neighbor_sample(graph, torch.tensor([0]), [-1, -1], seed=0, seed_time=torch.tensor([2]))
    assert out.edge.tolist() == [0, 1]


def test_rows_need_not_be_sorted_by_time():
    """pytorch_geometric#10019: a row out of order ended the run."""
    time = torch.tensor([9, 1, 8, 2, 7, 3])
    graph = CSR(torch.tensor([0, 6] + [6] * 6), torch.arange(1, 7), num_nodes=7, time=time)
    out = neighbor_sample(graph, torch.tensor([0]), [-1], seed=0, seed_time=torch.tensor([7]))
    assert sorted(out.edge.tolist()) == [1, 3, 4, 5]
    assert torch.equal(graph.time, time)


def test_long_rows_with_edge_times_are_sampled():
    """The fast temporal path of GraphBolt never accepted an edge of a row longer than 1000 that has edge times."""
    n = 5000
    graph = CSR(torch.tensor([0, n] + [n] * n), torch.arange(1, n + 1), num_nodes=n + 1, time=torch.arange(n))
    out = neighbor_sample(graph, torch.zeros(2000, dtype=torch.int64), [10], seed=0, seed_time=torch.full((2000,), 99))
    assert out.num_sampled_edges == [20000]
    assert bool((out.edge < 100).all())
    counts = torch.bincount(out.edge, minlength=100).double()
    assert float(((counts - 200) ** 2 / 200).sum()) < chi_square_bound(99)


def test_the_earliest_times_have_windows_too():
    """time - window is no 64-bit number here."""
    graph = CSR.from_edge_index(torch.tensor([[1, 2], [0, 0]]), 3, time=torch.tensor([-(2**63), 5 - 2**63]))
    out = neighbor_sample(graph, torch.tensor([0, 0]), [-1], seed=0, seed_time=graph.time, window=9)
    assert out.edge.tolist() == [0, 0, 1]
