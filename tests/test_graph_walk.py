"""walk_neighbors: to the draw against walks in Python, and on average against the exact sum."""

import pytest
import torch

from gossamer.graph import CSR, walk_neighbors

import reference
from ppr_problem import dense, undirected


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("num_walks", "num_steps"), [(1, 1), (20, 2), (40, 5)])
def test_walks_are_those_of_the_oracle(num_walks, num_steps, dtype):
    graph = undirected(60, 200)
    graph = CSR(graph.rowptr, graph.col.to(dtype), num_nodes=60)
    seeds = torch.arange(0, 60, 7)
    found = dense(
        graph, *walk_neighbors(graph, seeds, top_k=60, seed=9, num_walks=num_walks, num_steps=num_steps, alpha=0.2)
    )
    expected = [reference.walk_scores(graph, s, num_walks, num_steps, 0.2, 9) for s in seeds.tolist()]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_mean_is_the_exact_sum(num_steps):
    graph, seeds, num_walks = undirected(60, 200), torch.arange(0, 60, 11), 40000
    found = dense(graph, *walk_neighbors(graph, seeds, top_k=60, seed=3, num_walks=num_walks, num_steps=num_steps))
    exact = reference.cut_off_ppr(graph, seeds, 0.15, num_steps)
    deviation = (exact / num_walks).sqrt()  # of a walk's share, which lies in [0, 1]: at most the root of its mean
    assert bool(((found - exact).abs() <= 5 * deviation + 1e-4).all())
    assert bool((exact <= reference.ppr(graph, seeds, 0.15) + 1e-12).all())


def test_walks_end_where_there_is_no_source():
    graph = CSR.from_edge_index(torch.tensor([[1, 2], [0, 1]]), 4)  # 2 -> 1 -> 0, and 3 alone
    node, score = walk_neighbors(graph, torch.tensor([0, 3]), top_k=4, seed=0, num_walks=8, num_steps=6, alpha=0.5)
    assert node.tolist() == [[0, 1, 2, -1], [3, -1, -1, -1]]
    torch.testing.assert_close(score, torch.tensor([[0.5, 0.25, 0.25, 0], [1.0, 0, 0, 0]]))


def test_same_bits_for_any_number_of_threads_and_any_batch():
    graph, seeds = undirected(2000, 20000), torch.arange(100)
    before = torch.get_num_threads()
    try:
        results = []
        for num_threads in (1, 4):
            torch.set_num_threads(num_threads)
            results.append(walk_neighbors(graph, seeds, top_k=50, seed=1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results))
    part = walk_neighbors(graph, seeds[40:50], top_k=50, seed=1)
    assert all(torch.equal(a, b[40:50]) for a, b in zip(part, results[0]))
    assert not torch.equal(walk_neighbors(graph, seeds, top_k=50, seed=2)[0], results[0][0])


def test_no_seeds():
    node, score = walk_neighbors(undirected(60, 200), torch.empty(0, dtype=torch.int64), top_k=3, seed=0)
    assert node.shape == score.shape == (0, 3)


WRONG = [
    pytest.param({"top_k": 0}, r"top_k must be in \[1, 16777216\], got 0", id="top_k"),
    pytest.param({"alpha": 0.0}, r"alpha must be in \[1e-4, 1\), got 0.0", id="alpha"),
    pytest.param({"num_walks": 0}, "num_walks must be at least 1, got 0", id="num_walks"),
    pytest.param({"num_steps": -1}, "num_steps must be at least 1, got -1", id="num_steps"),
    pytest.param({"num_walks": 1 << 60}, r"num_walks \* num_steps must be at most 16777216, got", id="walks"),
    pytest.param({"num_steps": 1 << 20}, r"num_walks \* num_steps must be at most 16777216, got", id="endless"),
    pytest.param({"seeds": torch.tensor([60])}, r"seeds must be in \[0, 60\)", id="seed"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_inputs(change, message):
    arguments = {"seeds": torch.tensor([1]), "top_k": 2, "seed": 0} | change
    with pytest.raises(ValueError, match=f"walk_neighbors: {message}"):
        walk_neighbors(undirected(60, 200), arguments.pop("seeds"), **arguments)


def test_opcheck():
    graph = undirected(60, 200)
    torch.library.opcheck(
        torch.ops.gossamer.walk_neighbors.default,
        (graph.rowptr, graph.col, torch.tensor([0, 5]), 7, 16, 2, 0.15, 3, [20, 40]),
    )
