"""k-hop rewiring against scipy, networkx and the way the DRew paper's code does it.

The ratios to the paper's way move with the speed of its dense products: 1.6 to 2.1 s for K=10 and 4.3 to 5.6 s for K=20
on the machine that the goals come from, 0.96 and 2.0 s on one with AVX-512 (where 225 and 300 would take 4.3 and
6.8 ms), 3.2 to 3.6 s for K=10 on one with AVX2. The bars in milliseconds move with the machine alike: on the last, K=10
took 8.5 ms and K=20 19.6 ms, and the ratio for K=10 was 413 where two searches had 229; that for K=20 was not taken.

Blocks of at most 256 nodes are searched once, in sets of 64, 128 or 256 bits; what is found is kept, one byte per pair,
and widened to columns when the row pointers are known. Larger blocks are searched twice, in sets of 512 bits. Processor
time for the 200 graphs, K=10 and K=20, AVX2, two cores shared with other work, so that only their order says something:

    two searches, sets of 512 bits                             count 4.7 and 9.7 ms, emit 11.8 and 26.1 ms
    two searches, narrow sets, two sources of a word unasked   count 3.1 and 5.0 ms, emit 10.0 and 18.3 ms
    two searches, narrow sets, four unasked                    count 2.3 and 5.1 ms, emit  7.7 and 17.4 ms
    one search, occupied words listed, four unasked            count and keep 6.4 and 13.5 ms, widen 0.3 and 1.4 ms
    the same, words of a set known when compiled, six unasked  count and keep 4.0 and  8.0 ms, widen alike
    the same, four ids put together in a register              count and keep 3.9 and  8.0 ms
    the same, one branchless step per source                   count and keep 6.8 and 11.8 ms
    the same, words of more than four from a table by bytes    count and keep 4.8 and  9.6 ms

The compiler had turned the six steps that ask nothing into six jumps, one of which is guessed wrong for most words. In
turns in one process, alone on the machine (1.05 and 2.10 M ids; the search without ids took 2.0 to 2.6 and 4.1 to 4.9):

    six jumps, as compiled before                              6.9 and 13.9 ms
    six steps that cannot become jumps (four, five alike)      5.3 and 10.4 ms; eight steps 6.9 and 13.0
    the rest of the large words first, by rounds, then four    5.5 and 10.3 ms
    pieces of 32 bits, eight in a register, four ids a step    3.3 and  6.3 ms; on cache lines 2.5 and 4.9
    the same, eight ids where four are not enough              2.5 and  4.9 ms
    the same, a table by bytes where four are not enough       2.5 and  5.2 ms (in use: less code)
    the same, neighbours after the fourth joined beforehand    2.5 and  5.1 ms

On dense graphs (degree 8, 3.4 M ids) the one in use takes 2.4 ms where the jumps took 6.5. What is found goes
straight to one place, not to pieces that grow and are copied.

A search without ids is about 45 instructions and 160 bytes of the first-level cache per node and level, and there are
303 000 and 607 000 of them. Beside it stand 0.5 ms to find the blocks, and for K=10 and K=20 the row pointers (2.4 and
4.8 MB) and the widening of ids. Row pointers as torch sums them, which widens the counts into a tensor of their own and
clears the result before it is written, against one pass that does neither, in turns in one process:

    torch                                                      all of k_hop 5.6 and 10.1 ms (slow minutes 7.2 and 12.9)
    one pass (in use)                                          all of k_hop 4.7 and  8.5 ms (slow minutes 6.7 and 11.3)

Where every result is in fresh pages (1100 faults of 4 KB for counts and kept ids, large pages for the rest) K=20 takes
13.5 to 22 ms, with torch's sums 0.4 to 0.7 ms more; whether it is, is up to the allocator: the row for K=20 gave
12.2 ms in one process and 21.8 (12.0 to 22.9) in another. Fresh memory of 13.3 MB alone, first touch: in pages of 4 KB
11.4 ms, the same asked for at once (MADV_POPULATE_WRITE) 6.8, large pages where they fit 3.5, aligned to them 2.2.
Large pages for the kept ids too were no gain, as they are few.

The large graph, AVX2, 388 MB of ids, times of the operator that emits (it searches again, 50 to 60 ms of them):

    ids written as each pass of 512 sources finds them, about 240 bytes a row     460 ms (390 into memory seen before)
    the same, words of more than four by a table of bytes, no list of words       370 to 460 ms
    what eight passes find kept in bits (25 MB), then written row by row          260 ms (in use)

So it is not the ids that cost but the lines they are written to: filling the same memory takes 52 ms where it was seen
before, 300 to 400 ms where it is fresh and in pages of 4 KB.

Counting the large graph reads 64 bytes per edge, pass and level from sets of 1 MB, of which the second-level cache
(512 KB) holds none: the reads wait for the third level, with the lines in flight that a core can have. In one loop
without torch (three levels, then all with what comes before; lines of other graphs: 14 edges per node without hubs, a
grid, half of the edges in one direction):

    all nodes and sources as they are, no set kept apart           13.3  12.6  12.6      42 ms   others 65, 22, 34
    sources of the first level from where the last pass left the
    row, nodes without edges left out, last level not written       3.7   7.6   7.4      22      48, 16, 17
    the same, nodes by the order of magnitude of their degree       2.8   6.8   6.5      19      37, 16, 18 (in use)
    the same, by their degree                                       3.5  10.0   9.2      28      36, 18, 20
    the same, sets of 1024 sources                                  4.7   9.0   8.7      26      57, 14, 21
    a row ends where no source is left that could be found          3.6  11.5   7.7      27      43, 19, 15

In another run, in which the third line took 19 ms (others 34, 13, 14) and the second 25 (35, 12, 16):

    the second, neighbours asked by a byte whether their set is empty       35 ms (64, 11, 25)
    the third, rows end early, asked after every second edge                18    (46, 13, 15)
    that, in sets of 256 sources, which fit the second-level cache          30    (60, 17, 23)

The loop wanders between 1 and 1.5 times these figures within minutes; only those of one line are of the same seconds.
What asks at an edge costs a branch that is often guessed wrong; rows that end early are those of the hubs, and save
less than asking costs elsewhere. 31 % of the nodes have no edges, and the first level, which had looked at every edge
in every pass, looks at it once. Sets on huge pages are no faster.
"""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gossamer.graph import CSR, k_hop, k_hop_count, k_hop_pairs, save_shells

import graphs
import harness

CAPABILITY = "k-hop rewiring"


@lru_cache
def peptides() -> CSR:
    return graphs.peptides(200)


@harness.goal(CAPABILITY, "on a GPU, 200 peptide-like graphs, K=10: against one thread of the CPU", unit="x", gpu=True)
def peptides_gpu() -> harness.Figure:
    on_gpu = peptides().to("cuda")
    for ours, cpu in zip(k_hop(on_gpu, 10), k_hop(peptides(), 10)):
        assert torch.equal(ours.rowptr.cpu(), cpu.rowptr)
        assert torch.equal(ours.col.cpu(), cpu.col)
    times = harness.compare({"GPU": lambda: k_hop(on_gpu, 10), "CPU": lambda: k_hop(peptides(), 10)}, wall=True)
    return times.figure("CPU", "GPU", size_of(peptides(), int(k_hop_count(peptides(), 10).sum())))


@lru_cache
def large() -> CSR:
    return graphs.rmat(14, 228_000)


def size_of(graph: CSR, num_pairs: int) -> str:
    return f"{graph.num_nodes} nodes, {graph.num_edges} edges, {num_pairs / 1e6:.3g} M pairs"


def milliseconds(graph: CSR, max_hops: int) -> harness.Figure:
    num_pairs = int(k_hop_count(graph, max_hops).sum())
    time = harness.compare({"ours": lambda: k_hop(graph, max_hops)})["ours"]
    return harness.Figure(1e3 * time.median, f"{size_of(graph, num_pairs)}, {time}")


@harness.goal(CAPABILITY, "200 peptide-like graphs, K=10, shells from CSR", at_most=7.0, unit="ms")
def peptides_10() -> harness.Figure:
    return milliseconds(peptides(), 10)


@harness.goal(CAPABILITY, "200 peptide-like graphs, K=20, shells from CSR", at_most=14.0, unit="ms")
def peptides_20() -> harness.Figure:
    return milliseconds(peptides(), 20)


def scipy_matrix(graph: CSR) -> Any:
    try:
        import scipy.sparse
    except ImportError as error:
        raise harness.NotHere("scipy is not installed") from error
    ones = torch.ones(graph.num_edges).numpy()
    return scipy.sparse.csr_matrix((ones, graph.col.numpy(), graph.rowptr.numpy()), (graph.num_nodes,) * 2)


def scipy_pairs(matrices: list[Any], max_hops: int, *, directed: bool = True) -> list[Any]:
    """Distances of every graph by one breadth-first search per source, then the pairs with their hops."""
    from scipy.sparse.csgraph import dijkstra

    pairs = []
    for matrix in matrices:
        distance = dijkstra(matrix, directed=directed, unweighted=True, limit=max_hops)
        source, target = ((distance > 0) & (distance <= max_hops)).nonzero()
        pairs.append((source, target, distance[source, target]))
    return pairs


def blocks_of(graph: CSR) -> list[tuple[int, int]]:
    bounds = torch.ops.gossamer.diagonal_blocks(graph.rowptr, graph.col).tolist()
    return list(pairwise(bounds))


def against_scipy(max_hops: int) -> harness.Figure:
    whole = scipy_matrix(peptides())
    matrices = [whole[begin:end, begin:end] for begin, end in blocks_of(peptides())]
    num_pairs = sum(len(pairs[0]) for pairs in scipy_pairs(matrices, max_hops))
    assert num_pairs == int(k_hop_count(peptides(), max_hops).sum())
    times = harness.compare(
        {"ours": lambda: k_hop(peptides(), max_hops), "scipy": lambda: scipy_pairs(matrices, max_hops)}
    )
    return times.figure("scipy", "ours", size_of(peptides(), num_pairs))


@harness.goal(
    CAPABILITY, "200 peptide-like graphs, K=10, against scipy dijkstra(unweighted, limit=K) per graph", at_least=8.0
)
def scipy_10() -> harness.Figure:
    return against_scipy(10)


@harness.goal(
    CAPABILITY, "200 peptide-like graphs, K=20, against scipy dijkstra(unweighted, limit=K) per graph", at_least=6.0
)
def scipy_20() -> harness.Figure:
    return against_scipy(20)


def paper_shells(edges: Tensor, max_hops: int) -> list[Tensor]:
    """The preprocessing of the paper's code: powers of the adjacency [1, N, N], each with its diagonal cleared entry by
    entry, minus all earlier hops, all of them dense and kept."""
    from torch_geometric.utils import dense_to_sparse, to_dense_adj

    power = to_dense_adj(edges).float()
    adjacency, hops, shells = power.to_sparse(), [power], [edges]
    for _ in range(1, max_hops):
        power = torch.bmm(adjacency, power)
        for node in range(power.shape[-1]):
            power[0, node, node] = 0
        power = (power > 0).float()
        for earlier in hops:
            power -= earlier
        power = (power > 0).float()
        shells.append(dense_to_sparse(power)[0])
        hops.append(power)
    return shells


def against_paper(max_hops: int) -> harness.Figure:
    small = []
    for begin, end in blocks_of(peptides()):
        rows = slice(int(peptides().rowptr[begin]), int(peptides().rowptr[end]))
        small.append(torch.stack([peptides().col[rows].long(), peptides()._rows[rows]]).unique(dim=1) - begin)

    def theirs() -> int:
        return sum(hop.shape[1] for edges in small for hop in paper_shells(edges, max_hops))

    num_pairs = theirs()
    assert num_pairs == int(k_hop_count(peptides(), max_hops).sum())
    times = harness.compare(
        {"ours": lambda: k_hop(peptides(), max_hops), "paper": theirs}, warmup=0, repeats=5, max_seconds=40
    )
    return times.figure("paper", "ours", size_of(peptides(), num_pairs))


@harness.goal(CAPABILITY, "200 peptide-like graphs, K=10, against the paper's dense powers", at_least=225.0)
def paper_10() -> harness.Figure:
    return against_paper(10)


@harness.goal(CAPABILITY, "200 peptide-like graphs, K=20, against the paper's dense powers", at_least=300.0)
def paper_20() -> harness.Figure:
    return against_paper(20)


@harness.goal(CAPABILITY, "one R-MAT graph, 16 k nodes, 228 k edges, K=3, counting", at_most=0.05, unit="s")
def large_count() -> harness.Figure:
    time = harness.compare({"ours": lambda: k_hop_count(large(), 3)})["ours"]
    return harness.Figure(time.median, f"{size_of(large(), int(k_hop_count(large(), 3).sum()))}, {time}")


@harness.goal(CAPABILITY, "one R-MAT graph, 16 k nodes, 228 k edges, K=3, counting and emitting", at_most=0.4, unit="s")
def large_emit() -> harness.Figure:
    time = harness.compare({"ours": lambda: k_hop(large(), 3)}, repeats=10)["ours"]
    return harness.Figure(time.median, f"{size_of(large(), int(k_hop_count(large(), 3).sum()))}, {time}")


@harness.goal(CAPABILITY, "200 peptide-like graphs, K=10, bytes per pair in the cache", at_most=4.5, unit="B")
def storage() -> harness.Figure:
    shells = k_hop(peptides(), 10)
    num_pairs = sum(shell.num_edges for shell in shells)
    in_memory = sum(8 * shell.rowptr.numel() + 4 * shell.num_edges for shell in shells) / num_pairs
    with tempfile.TemporaryDirectory() as folder:
        save_shells(f"{folder}/shells", shells)
        size = os.path.getsize(f"{folder}/shells")
    return harness.Figure(
        size / num_pairs, f"{in_memory:.2f} B in memory, of which 4 are columns and the rest row pointers"
    )


def networkx_pairs(edges: Tensor, max_hops: int, directed: bool) -> Any:
    try:
        import networkx
    except ImportError as error:
        raise harness.NotHere("networkx is not installed") from error
    graph = (networkx.MultiDiGraph if directed else networkx.MultiGraph)(edges.T.tolist())
    lengths = networkx.all_pairs_shortest_path_length(graph, cutoff=max_hops)
    pairs = [(source, target, hop) for source, found in lengths for target, hop in found.items() if hop > 0]
    return torch.tensor(pairs).view(-1, 3).T


def sorted_keys(source: Any, target: Any, hop: Any) -> Tensor:
    """One number per pair and distance, ascending: a pair that was said twice is there twice."""
    source, target, hop = (torch.as_tensor(column, dtype=torch.int64) for column in (source, target, hop))
    return ((source << 32) + (target << 16) + hop).sort().values


@harness.goal(CAPABILITY, "random graphs that differ from scipy or networkx in any pair", at_most=0, unit="graphs")
def exact_on_10000() -> harness.Figure:
    wrong = num_pairs = num_large = 0
    for seed in range(10_000):
        edges, num_nodes = graphs.random_graph(seed)
        max_hops, directed = 1 + seed % 7, seed % 2 == 0
        graph = CSR.from_edge_index(edges, num_nodes)
        pairs, hops = k_hop_pairs(graph, max_hops, directed=directed)
        ours = sorted_keys(*pairs, hops)
        peers = (
            scipy_pairs([scipy_matrix(graph).T], max_hops, directed=directed)[0],
            networkx_pairs(edges, max_hops, directed),
        )
        wrong += not all(torch.equal(ours, sorted_keys(*theirs)) for theirs in peers)
        num_pairs, num_large = num_pairs + len(ours), num_large + (num_nodes > 256)
    return harness.Figure(
        wrong,
        f"10000 graphs, directed and undirected, {num_large} of them of 257 to 900 nodes, K = 1..7, {num_pairs} pairs",
    )


if __name__ == "__main__":
    harness.main()
