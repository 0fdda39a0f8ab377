"""HeteroCSR and the neighbours of each type: against a power iteration over all edge types."""

import pytest
import torch

from gossamer.graph import CSR, HeteroCSR, hetero_ppr_neighbors, hetero_walk_neighbors

import reference

SIZES = {"user": 30, "item": 50, "tag": 4}
ENDS = [("user", "likes", "item"), ("item", "has", "tag"), ("user", "knows", "user")]


def typed_edges() -> dict[tuple[str, str, str], torch.Tensor]:
    """Random edges of three types, each with its reverse."""
    generator = torch.Generator().manual_seed(0)
    edges = {}
    for source, name, target in ENDS:
        index = torch.stack([torch.randint(SIZES[t], (120,), generator=generator) for t in (source, target)])
        edges |= {(source, name, target): index, (target, f"rev_{name}", source): index.flip(0)}
    return edges


def united() -> CSR:
    """The same edges with users from 0, items from 30 and tags from 80."""
    first = {"user": 0, "item": 30, "tag": 80}
    edges = [index + torch.tensor([[first[s]], [first[t]]]) for (s, _, t), index in typed_edges().items()]
    return CSR.from_edge_index(torch.cat(edges, 1), 84)


def dense(found: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """[num_seeds, 84] of scores, one type after the other."""
    parts = []
    for name, (node, score) in found.items():
        full = torch.zeros(len(node), SIZES[name] + 1)
        parts.append(full.scatter(1, node.where(node >= 0, torch.tensor(SIZES[name])), score)[:, :-1])
    return torch.cat(parts, 1).double()


@pytest.mark.parametrize(("seed_type", "first"), [("user", 0), ("item", 30), ("tag", 80)])
@pytest.mark.parametrize("eps", [1e-2, 1e-5])
def test_error_is_bounded_by_eps_times_degree(seed_type, first, eps):
    seeds = torch.arange(SIZES[seed_type])
    found = hetero_ppr_neighbors(HeteroCSR(typed_edges(), SIZES), seed_type, seeds, top_k=84, eps=eps)
    graph = united()
    error = reference.ppr(graph, seeds + first, 0.15) - dense(found)
    assert bool((error.abs() <= eps * graph.in_degree() + 1e-6).all())


def test_walks_have_the_exact_mean():
    seeds, num_walks = torch.arange(0, 50, 9), 40000
    found = hetero_walk_neighbors(HeteroCSR(typed_edges(), SIZES), "item", seeds, top_k=50, seed=1, num_walks=num_walks)
    exact = reference.cut_off_ppr(united(), seeds + 30, 0.15, 2)
    assert bool(((dense(found) - exact).abs() <= 5 * (exact / num_walks).sqrt() + 1e-4).all())


def test_every_type_has_its_own_head():
    graph, seeds = HeteroCSR(typed_edges(), SIZES), torch.tensor([3, 29])
    whole, head = (hetero_ppr_neighbors(graph, "user", seeds, top_k=k, eps=1e-5) for k in (60, 3))
    for name, size in SIZES.items():
        node, score = whole[name]
        assert torch.equal(head[name][0], node[:, :3])
        torch.testing.assert_close(head[name][1], score[:, :3], rtol=0, atol=1e-5 * int(graph.graph.in_degree().max()))
        assert bool((score.diff(dim=1) <= 0).all())
        assert bool((node < size).all())
        assert bool((node[:, size:] == -1).all())


def test_same_bits_for_any_number_of_threads():
    graph, before = HeteroCSR(typed_edges(), SIZES), torch.get_num_threads()
    try:
        results = []
        for num_threads in (1, 4):
            torch.set_num_threads(num_threads)
            results.append(hetero_ppr_neighbors(graph, "item", torch.arange(50), top_k=5))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0][name][i], results[1][name][i]) for name in SIZES for i in (0, 1))


def test_types_without_nodes_or_edges():
    graph = HeteroCSR({("a", "to", "b"): torch.empty(2, 0, dtype=torch.int64)}, {"a": 2, "none": 0, "b": 1})
    found = hetero_ppr_neighbors(graph, "b", torch.tensor([0]), top_k=2)
    assert {name: node.tolist() for name, (node, _) in found.items()} == {
        "a": [[-1, -1]],
        "none": [[-1, -1]],
        "b": [[0, -1]],
    }
    assert found["b"][1].tolist() == [[1, 0]]
    assert HeteroCSR({}, {"a": 3}).graph.num_edges == 0


def test_from_pyg():
    data = pytest.importorskip("torch_geometric.data").HeteroData()
    for name, size in SIZES.items():
        data[name].num_nodes = size
    for edge_type, index in typed_edges().items():
        data[edge_type].edge_index = index
    assert HeteroCSR.from_pyg(data).graph.equal(HeteroCSR(typed_edges(), SIZES).graph)


EDGE = torch.tensor([[0], [3]])
WRONG = [
    pytest.param({("x", "to", "tag"): EDGE}, {"tag": 4}, "node types must be among .*, got 'x'", id="type"),
    pytest.param({("tag", "to", "tag"): EDGE}, {"tag": 3}, r"edge_index of .* node ids in \[0, 3\), got 3", id="node"),
    pytest.param({("tag", "to", "tag"): EDGE[0]}, {"tag": 4}, r"edge_index of .* must be \[2, num_edges\]", id="shape"),
    pytest.param({}, {"tag": -1}, r"num_nodes must be in \[0, 2\*\*48\), got -1", id="size"),
]


@pytest.mark.parametrize(("edges", "num_nodes", "message"), WRONG)
def test_wrong_graphs(edges, num_nodes, message):
    with pytest.raises(ValueError, match=f"HeteroCSR: {message}"):
        HeteroCSR(edges, num_nodes)


@pytest.mark.parametrize("function", [hetero_ppr_neighbors, hetero_walk_neighbors])
def test_wrong_seeds(function):
    graph, name = HeteroCSR(typed_edges(), SIZES), function.__name__
    options = {"seed": 0} if function is hetero_walk_neighbors else {}
    with pytest.raises(ValueError, match=f"{name}: node types must be among .*, got 'film'"):
        function(graph, "film", torch.tensor([0]), top_k=1, **options)
    with pytest.raises(ValueError, match=rf"{name}: seeds must be in \[0, 4\), got 4 to 4"):
        function(graph, "tag", torch.tensor([4]), top_k=1, **options)
    with pytest.raises(ValueError, match=rf"{name}: top_k must be in \[1, 16777216\], got 0"):
        function(graph, "tag", torch.tensor([0]), top_k=0, **options)
