"""k-hop shells: equal to scipy and networkx on random graphs, to the bit on every path and number of threads."""

import networkx
import numpy
import pytest
import scipy.sparse
import scipy.sparse.csgraph
import torch

from gossamer.graph import CSR, k_hop, k_hop_count, k_hop_pairs

import reference

pytestmark = pytest.mark.usefixtures("one_thread")


def random_graph(seed):
    """Edges [2, E] and number of nodes; self loops, repeated edges, isolated nodes and no edges at all do occur."""
    rng = numpy.random.default_rng(seed)
    num_nodes = int(rng.integers(1, 30))
    edges = rng.integers(0, num_nodes, (2, int(rng.integers(0, 2 * num_nodes))))
    return torch.from_numpy(edges), num_nodes


def islands(*sizes, extra=2, seed=0):
    """Disjoint random trees with a few more edges, in both directions, behind each other."""
    rng = numpy.random.default_rng(seed)
    edges, start = [], 0
    for size in sizes:
        child = numpy.arange(1, size)
        parent = rng.integers(numpy.maximum(child - 5, 0), child) if size > 1 else child
        more = rng.integers(0, size, (2, extra))
        edges.append(start + numpy.concatenate([numpy.stack([parent, child]), more], 1))
        start += size
    forward = numpy.concatenate(edges, 1)
    return CSR.from_edge_index(torch.from_numpy(numpy.concatenate([forward, forward[::-1]], 1)), start)


def distances(shells):
    """[N, N] distance from column to row, 0 where none of the shells has the pair; a pair in two shells fails."""
    num_nodes = shells[0].num_nodes
    out = torch.zeros(num_nodes, num_nodes, dtype=torch.int64)
    for hop, shell in enumerate(shells, 1):
        row = torch.arange(num_nodes).repeat_interleave(shell.in_degree())
        assert not out[row, shell.col].any()
        out[row, shell.col.long()] = hop
    return out


def scipy_distances(edges, num_nodes, max_hops, directed):
    matrix = scipy.sparse.coo_matrix((numpy.ones(edges.shape[1]), edges.numpy()), (num_nodes, num_nodes)).tocsr()
    found = scipy.sparse.csgraph.dijkstra(matrix, directed=directed, unweighted=True, limit=max_hops)
    found[~numpy.isfinite(found)] = 0
    return torch.from_numpy(found.T).long()


def networkx_distances(edges, num_nodes, max_hops, directed):
    graph = (networkx.MultiDiGraph if directed else networkx.MultiGraph)()
    graph.add_nodes_from(range(num_nodes))
    graph.add_edges_from(edges.T.tolist())
    out = torch.zeros(num_nodes, num_nodes, dtype=torch.int64)
    for source, lengths in networkx.all_pairs_shortest_path_length(graph, cutoff=max_hops):
        for target, length in lengths.items():
            out[target, source] = length
    return out


@pytest.mark.parametrize("directed", [True, False])
@pytest.mark.parametrize("peer", [scipy_distances, networkx_distances])
def test_equals_peers_on_random_graphs(peer, directed):
    for seed in range(250):
        edges, num_nodes = random_graph(seed + 250 * directed)
        max_hops = 1 + seed % 7
        shells = k_hop(CSR.from_edge_index(edges, num_nodes), max_hops, directed=directed)
        assert len(shells) == max_hops
        assert torch.equal(distances(shells), peer(edges, num_nodes, max_hops, directed)), f"graph {seed}"


def one_way(num_nodes, num_edges):
    """Random edges, each in one direction: some nodes have none that come in, none that go out, or neither."""
    edges = numpy.random.default_rng(0).integers(0, num_nodes, (2, num_edges))
    return CSR.from_edge_index(torch.from_numpy(edges), num_nodes)


CASES = [
    pytest.param(islands(1), 3, id="one node with self loops"),
    pytest.param(islands(64, 65, 1, 128), 9, id="blocks at the edge of a word"),
    pytest.param(islands(512, 513), 5, id="blocks at the edge of a pass"),
    pytest.param(islands(3, 1300, 2, extra=40), 6, id="a block of three passes between small ones"),
    pytest.param(islands(4608, extra=500), 3, id="a block that all threads share, in chunks as long as a pass"),
    pytest.param(islands(*[7] * 60), 3, id="many small blocks"),
    pytest.param(one_way(4700, 7000), 5, id="a large block with nodes that nothing reaches, reads or touches"),
    pytest.param(islands(300, extra=9000), 2, id="dense: a word is almost full"),
    pytest.param(islands(128, 129, 2, 192, 193, 256, 257), 12, id="blocks at the edge of a narrow set"),
    pytest.param(islands(100, 200, extra=900), 4, id="narrow sets of many neighbours, almost full"),
]


@pytest.mark.parametrize(("graph", "max_hops"), CASES)
def test_matches_reference(graph, max_hops, device):
    shells = k_hop(graph.to(device), max_hops)
    for shell, expected in zip(shells, reference.k_hop(graph.rowptr, graph.col, max_hops)):
        assert torch.equal(torch.stack([shell._rows, shell.col.long()]).cpu(), expected.nonzero().T)
    assert torch.equal(
        k_hop_count(graph.to(device), max_hops), torch.stack([shell.in_degree() for shell in shells]).int()
    )


@pytest.mark.parametrize(("graph", "max_hops"), CASES)
@pytest.mark.parametrize("isa", ["scalar", "avx2"])
def test_same_bits_on_every_path_and_number_of_threads(graph, max_hops, isa, monkeypatch):
    expected = k_hop(graph, max_hops)
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    for num_threads in (1, 4):
        torch.set_num_threads(num_threads)
        shells = k_hop(graph, max_hops)
        for shell, other in zip(shells, expected):
            assert torch.equal(shell.rowptr, other.rowptr)
            assert torch.equal(shell.col, other.col)


@pytest.mark.parametrize("isa", ["scalar", "avx2"])
def test_a_block_that_takes_several_runs_of_passes(isa, monkeypatch):
    """4700 nodes are ten passes, of which at most eight are emitted together; the last one is not full."""
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    graph, rows = islands(4700, extra=3000), torch.arange(0, 4700, 47)
    for num_threads in (1, 4):
        torch.set_num_threads(num_threads)
        shells = k_hop(graph, 5)
        matrix = scipy.sparse.csr_matrix((numpy.ones(graph.num_edges), graph.col, graph.rowptr), (4700, 4700))
        distance = scipy.sparse.csgraph.dijkstra(matrix, unweighted=True, limit=5, indices=rows.numpy())
        for hop, shell in enumerate(shells, 1):
            found = torch.zeros(4700, 4700, dtype=torch.bool)
            found[shell._rows, shell.col.long()] = True
            assert torch.equal(found[rows], torch.from_numpy(distance == hop))
            assert int(found.sum()) == shell.num_edges  # no pair twice
            assert torch.equal(shell.in_degree().int(), k_hop_count(graph, 5)[hop - 1])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_pairs_carry_their_hops(dtype):
    graph = islands(9, 14)
    graph = CSR(graph.rowptr, graph.col.to(dtype), num_nodes=graph.num_nodes)
    pairs, hops = k_hop_pairs(graph, 4)
    found = torch.zeros(23, 23, dtype=torch.int64)
    found[pairs[1].long(), pairs[0].long()] = hops.long()
    assert torch.equal(found, distances(k_hop(graph, 4)))
    assert pairs.shape[1] == k_hop_count(graph, 4).sum()
    order = (hops.long() * 23 + pairs[1]) * 23 + pairs[0]
    assert (order.diff() > 0).all()


def test_empty_graphs():
    empty = torch.zeros(2, 0, dtype=torch.int64)
    for num_nodes in (0, 5):
        shells = k_hop(CSR.from_edge_index(empty, num_nodes), 3)
        assert [shell.num_edges for shell in shells] == [0, 0, 0]
        assert [shell.rowptr.tolist() for shell in shells] == [[0] * (num_nodes + 1)] * 3
        pairs, hops = k_hop_pairs(CSR.from_edge_index(empty, num_nodes), 3)
        assert pairs.shape == (2, 0)
        assert hops.shape == (0,)


def test_inputs_are_not_changed():
    graph = islands(40)
    rowptr, col = graph.rowptr.clone(), graph.col.clone()
    k_hop(graph, 5, directed=False)
    assert torch.equal(graph.rowptr, rowptr)
    assert torch.equal(graph.col, col)


PATH = CSR.from_edge_index(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "k_hop: graph must be a CSR", lambda: k_hop(torch.zeros(2, 3), 2)),
        (TypeError, "k_hop: max_hops must be an int", lambda: k_hop(PATH, 2.0)),
        (ValueError, r"k_hop: max_hops must be in \[1, 32767\] for 4 nodes, got 0", lambda: k_hop(PATH, 0)),
        (ValueError, "k_hop_count: max_hops must be in", lambda: k_hop_count(PATH, 10**9)),
        (ValueError, "k_hop: max_pairs must be at least 6, .* got 5", lambda: k_hop(PATH, 3, max_pairs=5)),
    ],
)
def test_wrong_inputs(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_cap_is_met_exactly_and_says_how_many_pairs_there_are():
    graph = islands(60, 150, 300, 40)  # the last but one is searched twice, the others once
    num_pairs = int(k_hop_count(graph, 4).sum())
    shells = k_hop(graph, 4, max_pairs=num_pairs)
    for shell, expected in zip(shells, reference.k_hop(graph.rowptr, graph.col, 4)):
        assert torch.equal(torch.stack([shell._rows, shell.col.long()]), expected.nonzero().T)
    for max_pairs in (num_pairs - 1, 100, 0):
        with pytest.raises(ValueError, match=f"k_hop: max_pairs must be at least {num_pairs}, .* got {max_pairs}"):
            k_hop(graph, 4, max_pairs=max_pairs)


def test_operator_refuses_a_damaged_graph():
    rowptr, col = PATH.rowptr, PATH.col
    for damaged, message in [
        ((rowptr, torch.tensor([0, 7, 2])), r"node ids must be in \[0, 4\), got 7"),
        ((torch.tensor([0, 2, 1, 2, 3]), col), "rowptr must ascend"),
        ((torch.tensor([0, 1, 2, 3, 9]), col), "rowptr must go from 0 to 3"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.gossamer.diagonal_blocks(*damaged)


def test_operators_pass_opcheck():
    graph = islands(20, 30)
    blocks = torch.ops.gossamer.diagonal_blocks(graph.rowptr, graph.col)
    counts, kept = torch.ops.gossamer.k_hop_count(graph.rowptr, graph.col, blocks, 3, 10**6)
    starts = torch.ops.gossamer.row_pointers(counts)
    arguments = (graph.rowptr, graph.col, blocks, kept, starts, int(counts.sum()))
    assert blocks.tolist() == [0, 20, 50]
    torch.library.opcheck(torch.ops.gossamer.diagonal_blocks.default, (graph.rowptr, graph.col))
    torch.library.opcheck(torch.ops.gossamer.k_hop_count.default, (graph.rowptr, graph.col, blocks, 3, 10**6))
    torch.library.opcheck(torch.ops.gossamer.row_pointers.default, (counts,))
    torch.library.opcheck(torch.ops.gossamer.k_hop.default, arguments)
