"""ppr_neighbors: against a power iteration, within the promised error."""

import pytest
import torch

from gossamer.graph import CSR, ppr_neighbors
from gossamer.graph.ppr import _is_symmetric

import reference
from ppr_problem import dense, undirected


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("eps", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("alpha", [0.15, 0.5])
def test_error_is_bounded_by_eps_times_degree(alpha, eps, dtype):
    graph = undirected(200, 600)
    graph = CSR(graph.rowptr, graph.col.to(dtype), num_nodes=graph.num_nodes)
    seeds = torch.arange(0, 200, 9)
    found = dense(graph, *ppr_neighbors(graph, seeds, top_k=200, alpha=alpha, eps=eps))
    error = reference.ppr(graph, seeds, alpha) - found
    assert bool((error.abs() <= eps * graph.in_degree() + 1e-6).all())  # 1e-6 for float32


def test_top_k_is_the_head_of_the_whole():
    graph, seeds = undirected(200, 600), torch.tensor([3, 50, 3])
    node, score = ppr_neighbors(graph, seeds, top_k=200, eps=1e-5)
    head = ppr_neighbors(graph, seeds, top_k=10, eps=1e-5)
    assert torch.equal(head[0], node[:, :10])
    assert bool(((head[1] - score[:, :10]).abs() <= 1e-5 * graph.in_degree()[head[0]]).all())
    assert torch.equal(node[0], node[2])
    assert bool((score.diff(dim=1) <= 0).all())


def test_overlap_with_the_exact_top():
    graph, seeds = undirected(1000, 8000), torch.arange(20)  # mixes fast: most of the top is close in score
    exact = reference.ppr(graph, seeds, 0.15).topk(200).indices
    found = ppr_neighbors(graph, seeds, top_k=200, eps=1e-5)[0]
    overlap = torch.tensor([len(set(a.tolist()) & set(b.tolist())) / 200 for a, b in zip(exact, found)])
    assert float(overlap.mean()) >= 0.99


def test_directed_graphs_are_told_apart():
    graph = undirected(200, 600)
    assert _is_symmetric(graph)
    source, target = graph.to_edge_index()
    assert not _is_symmetric(CSR.from_edge_index(torch.stack([source, target])[:, 1:], 200))
    turned = torch.stack([source, target.roll(1)])  # every degree stays as it was
    assert not _is_symmetric(CSR.from_edge_index(turned, 200))
    assert _is_symmetric(CSR.from_edge_index(torch.empty(2, 0, dtype=torch.int64), 3))


def test_directed_edges_are_followed_backwards_and_walks_end():
    graph = CSR.from_edge_index(torch.tensor([[1, 2], [0, 1]]), 4)  # 2 -> 1 -> 0, and 3 alone
    node, score = ppr_neighbors(graph, torch.tensor([0, 3]), top_k=4, alpha=0.5, eps=1e-6)
    assert node.tolist() == [[0, 1, 2, -1], [3, -1, -1, -1]]
    torch.testing.assert_close(score, torch.tensor([[0.5, 0.25, 0.25, 0], [1.0, 0, 0, 0]]))


def test_same_bits_for_any_number_of_threads():
    graph, seeds = undirected(2000, 20000), torch.arange(100)
    before = torch.get_num_threads()
    try:
        results = []
        for num_threads in (1, 4):
            torch.set_num_threads(num_threads)
            results.append(ppr_neighbors(graph, seeds, top_k=50))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_no_seeds():
    node, score = ppr_neighbors(undirected(200, 600), torch.empty(0, dtype=torch.int64), top_k=3)
    assert node.shape == score.shape == (0, 3)


WRONG = [
    pytest.param({"top_k": 0}, r"top_k must be in \[1, 16777216\], got 0", id="top_k"),
    pytest.param({"alpha": 1.0}, r"alpha must be in \[1e-4, 1\), got 1.0", id="alpha"),
    pytest.param({"alpha": 1e-300}, r"alpha must be in \[1e-4, 1\), got 1e-300", id="endless"),
    pytest.param({"eps": 0.0}, r"eps must be in \[1e-9, 1\), got 0.0", id="eps"),
    pytest.param({"seeds": torch.tensor([200])}, r"seeds must be in \[0, 200\)", id="seed"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_inputs(change, message):
    arguments = {"seeds": torch.tensor([1]), "top_k": 2} | change
    with pytest.raises(ValueError, match=f"ppr_neighbors: {message}"):
        ppr_neighbors(undirected(200, 600), arguments.pop("seeds"), **arguments)


def test_opcheck():
    graph = undirected(200, 600)
    torch.library.opcheck(
        torch.ops.gossamer.ppr_neighbors.default,
        (graph.rowptr, graph.col, torch.tensor([0, 5]), 7, 0.15, 1e-3, True, [150, 50]),
    )
