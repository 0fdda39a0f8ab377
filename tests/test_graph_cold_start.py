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
        assert dense.col[dense.rowptr[u] : dense.rowptr[u + 1]].tolist() == old + new


def test_nothing_to_do():
    graph, embeddings = make()
    assert densify(graph, embeddings, low=0.0) is graph
    assert densify(graph, embeddings, high=1.0) is graph


def test_wrong_arguments():
    graph, embeddings = make()
    for changes, message in [
        ({"embeddings": embeddings[1:]}, r"embeddings must be finite \[200, dim\], got \[199, 8\]"),
        ({"low": 0.95}, "low and high must be 0 <= low <= high <= 1, got 0.95 and 0.9"),
        ({"num_neighbors": 0}, "num_neighbors must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=f"densify: {message}"):
            densify(**({"graph": graph, "embeddings": embeddings} | changes))
