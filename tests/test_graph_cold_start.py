"""densify against a loop."""

import pytest
import torch

from gossamer.graph import CSR, densify


def make():
    g = torch.Generator().manual_seed(0)
    index = torch.stack([torch.randint(200, (3000,), generator=g), (torch.rand(3000, generator=g).pow(3) * 200).long()])
    return CSR.from_edge_index(index, 200), torch.randn(200, 8, generator=g)


def test_cold_nodes_get_the_nearest_well_connected_ones():
    graph, embeddings = make()
    dense = densify(graph, embeddings, num_neighbors=4)
    degree = graph.in_degree()
    low, high = degree.double().quantile(0.36), degree.double().quantile(0.90)
    candidates = [v for v in range(200) if degree[v] > high]
    cosine = torch.nn.functional.cosine_similarity(embeddings[:, None].double(), embeddings[None].double(), dim=2)
    for u in range(200):
        old = graph.col[graph.rowptr[u] : graph.rowptr[u + 1]].tolist()
        new = sorted(candidates, key=lambda v: -cosine[u, v])[:4] if degree[u] < low else []
        assert dense.col[dense.rowptr[u] : dense.rowptr[u + 1]].tolist() == old + [v for v in new if v not in old]


def test_nothing_to_do():
    graph, embeddings = make()
    assert densify(graph, embeddings, low=0.0) is graph
    assert densify(graph, embeddings, high=1.0) is graph


@pytest.mark.parametrize(("weight", "time"), [(None, None), (0.25, 7)])
def test_new_edges_have_weights_and_times(weight, time):
    """... the mean weight and the earliest time, unless said otherwise; old edges keep theirs."""
    plain, embeddings = make()
    g = torch.Generator().manual_seed(1)
    old_weight, old_time = torch.rand(3000, generator=g), torch.randint(5, 90, (3000,), generator=g)
    index = plain.to_edge_index()
    graph = CSR.from_edge_index(index, 200, weight=old_weight, time=old_time)
    dense = densify(graph, embeddings, num_neighbors=4, weight=weight, time=time)
    assert dense.col.equal(densify(plain, embeddings, num_neighbors=4).col)
    is_old = dense.edge_ids < 3000
    assert dense.weight[is_old].equal(old_weight[dense.edge_ids[is_old]])
    assert dense.time[is_old].equal(old_time[dense.edge_ids[is_old]])
    torch.testing.assert_close(
        dense.weight[~is_old].unique(), old_weight.mean()[None] if weight is None else torch.tensor([weight])
    )
    assert dense.time[~is_old].unique().tolist() == [int(old_time.min()) if time is None else time]


def test_quantiles_among_some_nodes():
    """Items of a bipartite graph: members are neither cold nor candidates, and do not move the quantiles."""
    graph, embeddings = make()
    items = torch.arange(120, 200)
    dense = densify(graph, embeddings, num_neighbors=3, nodes=items.flip(0))
    degree = graph.in_degree()
    low, high = (degree[items].double().quantile(share) for share in (0.36, 0.90))
    grown = (dense.in_degree() > degree).nonzero().flatten()
    assert grown.tolist() == [v for v in items.tolist() if degree[v] < low]
    new = dense.col[dense.edge_ids >= graph.num_edges].unique()
    assert set(new.tolist()) <= {v for v in items.tolist() if degree[v] > high}
    assert densify(graph, embeddings, nodes=items[:0]) is graph


def test_index_finds_what_the_exact_search_finds():
    pytest.importorskip("hnswlib")
    g = torch.Generator().manual_seed(0)
    index = torch.stack(
        [torch.randint(4000, (60_000,), generator=g), (torch.rand(60_000, generator=g).pow(3) * 4000).long()]
    )
    graph, embeddings = CSR.from_edge_index(index, 4000), torch.randn(4000, 16, generator=g)
    options = {"num_neighbors": 20, "high": 0.5}
    exact, fast = densify(graph, embeddings, **options), densify(graph, embeddings, search="hnsw", **options)
    assert fast.rowptr.equal(exact.rowptr)
    new = fast.edge_ids >= 60_000
    pairs = [set(zip(g._rows[new].tolist(), g.col[new].tolist())) for g in (exact, fast)]
    assert len(pairs[0] & pairs[1]) >= 0.98 * len(pairs[0])
    assert densify(graph, embeddings, search="hnsw", **options).equal(fast)


def test_wrong_arguments():
    graph, embeddings = make()
    for changes, message in [
        ({"embeddings": embeddings[1:]}, r"embeddings must be finite \[200, dim\], got \[199, 8\]"),
        ({"low": 0.95}, "low and high must be 0 <= low <= high <= 1, got 0.95 and 0.9"),
        ({"num_neighbors": 0}, "num_neighbors must be at least 1, got 0"),
        ({"search": "fast"}, "search must be exact or hnsw, got 'fast'"),
        ({"weight": -1.0}, "weight must be finite and at least 0, got -1.0"),
        ({"nodes": torch.tensor([200])}, r"nodes must be a vector of ids in \[0, 200\)"),
    ]:
        with pytest.raises(ValueError, match=f"densify: {message}"):
            densify(**({"graph": graph, "embeddings": embeddings} | changes))


def test_in_neighbours_get_no_second_edge():
    edges = torch.tensor([[0, 1, 2, 3, 0], [0, 0, 0, 0, 1]])  # node 0 is the candidate, and known to node 1
    dense = densify(CSR.from_edge_index(edges, 4), torch.ones(4, 2), low=0.9, high=0.9)
    assert dense.to_edge_index()[:, dense.edge_ids >= 5].tolist() == [[0, 0], [2, 3]]
