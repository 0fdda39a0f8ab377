"""Curvature, SDRF and FoSR: equal to dense brute force on random graphs, and to what the papers ask for."""

import math

import numpy
import pytest
import torch

from gossamer.graph import CSR, balanced_forman_curvature, fosr, sdrf

import reference

pytestmark = pytest.mark.usefixtures("one_thread")


def random_adjacency(seed, num_nodes=None):
    """A simple undirected graph: sparse or dense, with leaves and isolated nodes."""
    rng = numpy.random.default_rng(seed)
    num_nodes = num_nodes or int(rng.integers(2, 16))
    upper = torch.from_numpy(numpy.triu(rng.random((num_nodes, num_nodes)) < rng.uniform(0.1, 0.7), 1)).long()
    return upper + upper.T


def graph_of(adjacency):
    return CSR.from_edge_index(adjacency.nonzero().T.flip(0), len(adjacency))


def dumbbell(size):
    """Two cliques joined by one edge."""
    adjacency = torch.block_diag(*[torch.ones(size, size) - torch.eye(size)] * 2).long()
    adjacency[size - 1, size] = adjacency[size, size - 1] = 1
    return adjacency


def changed(adjacency, added, removed):
    out = adjacency.clone()
    for edges, value in ((added, 1), (removed, 0)):
        assert (edges[0] < edges[1]).all()
        assert (out[edges[0], edges[1]] == 1 - value).all()
        out[edges[0], edges[1]] = out[edges[1], edges[0]] = value
    return out


def test_curvature_matches_the_definition():
    for seed in range(150):
        adjacency = random_adjacency(seed)
        graph = graph_of(adjacency)
        expected = reference.curvatures(adjacency)[graph._rows, graph.col]
        torch.testing.assert_close(balanced_forman_curvature(graph), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        pytest.param([(0, 1), (1, 2), (2, 0)], 1.5, id="triangle: positive"),
        pytest.param([(0, 1), (1, 2), (2, 3), (3, 0)], 1.0, id="square"),
        pytest.param([(i, (i + 1) % 5) for i in range(5)], 0.0, id="ring of five: flat"),
        pytest.param([(0, 1), (1, 2), (1, 3)], 0.0, id="leaves"),
    ],
)
def test_curvature_of_known_graphs(edges, expected):
    graph = CSR.from_edge_index(torch.tensor(edges).T)
    torch.testing.assert_close(balanced_forman_curvature(graph), torch.full((len(edges),), expected).double())


def test_every_edge_has_a_curvature():
    """... where the code in common use leaves a row at its first non-neighbour, and then finds another weakest edge."""
    adjacency = random_adjacency(5, 40)
    graph = graph_of(adjacency)
    ours = balanced_forman_curvature(graph)
    left_early = reference.curvatures(adjacency, leaves_row=True)
    assert (ours != 0).sum() > 10 * (left_early != 0).sum() > 0
    torch.testing.assert_close(ours, reference.curvatures(adjacency)[graph._rows, graph.col])
    assert left_early.min() > ours.min()


def test_direction_repetition_and_loops_do_not_matter():
    edges = torch.tensor([[0, 1, 1, 2, 2, 2, 0], [1, 0, 2, 0, 2, 0, 1]])
    values = balanced_forman_curvature(CSR.from_edge_index(edges))
    plain = CSR.from_edge_index(edges)
    assert (values[plain._rows == plain.col] == 0).all()
    assert (values[plain._rows != plain.col] == 1.5).all()


@pytest.mark.parametrize("removal_bound", [None, 0.6])
def test_sdrf_matches_brute_force(removal_bound):
    for seed in range(25):
        adjacency = random_adjacency(seed, 4 + seed % 9)
        if not adjacency.any():
            continue
        edges = sdrf(graph_of(adjacency), 6, tau=math.inf, removal_bound=removal_bound)
        assert torch.equal(changed(adjacency, *edges), reference.sdrf(adjacency, 6, removal_bound)), f"graph {seed}"


def test_sdrf_keeps_all_curvatures_up_to_date():
    """One long flow is the same as one that starts anew, with all curvatures computed anew, after every edge."""
    adjacency = random_adjacency(3, 20)
    whole = changed(adjacency, *sdrf(graph_of(adjacency), 40, tau=math.inf, removal_bound=1.0))
    for _ in range(40):
        adjacency = changed(adjacency, *sdrf(graph_of(adjacency), 1, tau=math.inf, removal_bound=1.0))
    assert torch.equal(whole, adjacency)


def test_sdrf_draws_by_softmax():
    adjacency = dumbbell(4)
    pairs, gains = reference.sdrf_choices(adjacency)
    expected = (5.0 * torch.tensor(gains, dtype=torch.float64)).softmax(0)
    counts, num_draws = torch.zeros(len(pairs)), 2000
    for seed in range(num_draws):
        added, _ = sdrf(graph_of(adjacency), 1, tau=5.0, seed=seed)
        counts[[tuple(sorted(pair)) for pair in pairs].index(tuple(added[:, 0].tolist()))] += 1
    spread = (expected * (1 - expected) / num_draws).sqrt()
    assert ((counts / num_draws - expected).abs() < 4.5 * spread + 1e-12).all()
    assert expected.max() < 0.9


def test_fosr_matches_brute_force():
    for seed in range(60):
        adjacency = random_adjacency(seed, 5 + seed % 20)
        added = fosr(graph_of(adjacency), 12, num_power_iterations=30, seed=seed)
        assert added.T.tolist() == [list(edge) for edge in reference.fosr(adjacency, 12, 30, seed)], f"graph {seed}"


def spectral_gap(adjacency):
    scale = adjacency.sum(1).double().rsqrt()
    return 1 - torch.linalg.eigvalsh(scale[:, None] * adjacency * scale)[-2]


def test_fosr_widens_the_gap_of_a_dumbbell():
    adjacency = dumbbell(10)
    added = fosr(graph_of(adjacency), 8)
    assert ((added[0] < 10) & (added[1] >= 10)).all()  # every edge joins the two halves
    assert spectral_gap(changed(adjacency, added, added[:, :0])) > 4 * spectral_gap(adjacency)


def test_fosr_stops_where_no_edge_helps():
    complete = torch.ones(6, 6).long() - torch.eye(6).long()
    assert fosr(graph_of(complete), 5).shape == (2, 0)


@pytest.mark.parametrize("num_nodes", [0, 1, 5])
def test_graphs_without_edges(num_nodes):
    graph = CSR.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), num_nodes)
    assert balanced_forman_curvature(graph).shape == (0,)
    assert [edges.shape for edges in sdrf(graph, 3)] == [(2, 0), (2, 0)]
    assert fosr(graph, 0).shape == (2, 0)
    assert fosr(graph, 3).shape[0] == 2


def test_same_bits_for_any_number_of_threads_and_every_call():
    graph = CSR.from_edge_index(torch.randint(0, 1500, (2, 4000), generator=torch.Generator().manual_seed(0)), 1500)
    first = balanced_forman_curvature(graph), *sdrf(graph, 5, seed=3), fosr(graph, 5, seed=3)
    torch.set_num_threads(4)
    again = balanced_forman_curvature(graph), *sdrf(graph, 5, seed=3), fosr(graph, 5, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(sdrf(graph, 5, seed=4)[0], first[1])


PATH = CSR.from_edge_index(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "balanced_forman_curvature: graph must be a CSR, got int", lambda: balanced_forman_curvature(3)),
        (ValueError, "sdrf: num_iterations must be at least 0, got -1", lambda: sdrf(PATH, -1)),
        (ValueError, "sdrf: tau must be at least 0, got nan", lambda: sdrf(PATH, 1, tau=math.nan)),
        (ValueError, "sdrf: removal_bound must be a number or None", lambda: sdrf(PATH, 1, removal_bound=math.nan)),
        (ValueError, "fosr: num_edges must be at least 0, got -2", lambda: fosr(PATH, -2)),
        (ValueError, "fosr: num_power_iterations must be at least 0", lambda: fosr(PATH, 1, num_power_iterations=-1)),
    ],
)
def test_wrong_inputs(error, message, call):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("rowptr", "col"),
    [
        pytest.param([0, 1, 1], [1], id="one direction only"),
        pytest.param([0, 1, 2], [0, 1], id="loops"),
        pytest.param([0, 1, 2], [1, 7], id="node out of range"),
        pytest.param([0, 2, 1], [1], id="rows do not ascend"),
        pytest.param([0, 2, 4], [1, 1, 0, 0], id="repeated"),
    ],
)
def test_operators_refuse_rows_that_are_no_simple_graph(rowptr, col):
    rowptr, col = torch.tensor(rowptr), torch.tensor(col, dtype=torch.int32)
    operators = torch.ops.gossamer
    for call in (
        lambda: operators.balanced_forman_curvature(rowptr, col),
        lambda: operators.sdrf(rowptr, col, torch.zeros(len(col), dtype=torch.float64), 1, 1.0, None, 0),
        lambda: operators.fosr(rowptr, col, 1, 1, 0),
    ):
        with pytest.raises(RuntimeError, match="rows must be those of a simple undirected graph"):
            call()


def test_operators_pass_opcheck():
    adjacency = dumbbell(4)
    graph = graph_of(adjacency)
    rowptr, col = graph.rowptr, graph.col.int()
    operators = torch.ops.gossamer
    curvature = operators.balanced_forman_curvature(rowptr, col)
    torch.library.opcheck(operators.balanced_forman_curvature.default, (rowptr, col))
    torch.library.opcheck(operators.sdrf.default, (rowptr, col, curvature, 3, 1.0, 0.5, 0))
    torch.library.opcheck(operators.fosr.default, (rowptr, col, 3, 10, 0))
