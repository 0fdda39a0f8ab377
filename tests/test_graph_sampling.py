"""neighbor_sample: bits against the oracle, laws against exact probabilities, no edge from the future."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from gossamer.graph import CSR, neighbor_sample
from gossamer.graph.sampling import _PREPARED
from gossamer.graph.sampling_index import prepare_relation

import reference


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_graph(num_nodes: int, num_edges: int, seed: int = 0, *, max_time: int = 100) -> CSR:
    """Edges of skewed degree, with weights and times; some nodes have no edge."""
    g = generator(seed)
    source = torch.randint(num_nodes, (num_edges,), generator=g)
    target = (torch.rand(num_edges, generator=g) ** 2 * num_nodes * 0.9).long()
    weight = torch.rand(num_edges, generator=g)
    time = torch.randint(max_time, (num_edges,), generator=g)
    return CSR.from_edge_index(torch.stack([source, target]), num_nodes, weight=weight, time=time)


def equal(a, b) -> bool:
    tensors = all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("node", "row", "col", "edge"))
    batch = a.batch is None if b.batch is None else torch.equal(a.batch, b.batch)
    return tensors and batch and a.num_sampled_nodes == b.num_sampled_nodes


FANOUTS = [
    pytest.param([3], id="one hop"),
    pytest.param([4, 3, 2], id="three hops"),
    pytest.param([-1, 2], id="all, then some"),
    pytest.param([40], id="more than most rows have"),
    pytest.param([], id="no hop"),
]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("fanouts", FANOUTS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_uniform_equals_the_oracle_to_the_bit(fanouts, replace, dtype):
    full = random_graph(60, 500)
    graph = CSR(full.rowptr, full.col.to(dtype), num_nodes=60)
    seeds = [7, 0, 59, 30, 7]  # 7 twice; 59 has no edge
    out = neighbor_sample(graph, torch.tensor(seeds), fanouts, seed=11, replace=replace)
    node, edges = reference.neighbor_sample(graph, seeds, fanouts, 11, replace)
    assert out.node.tolist() == node
    assert list(zip(out.row.tolist(), out.col.tolist(), out.edge.tolist())) == edges
    assert sum(out.num_sampled_nodes) == len(node)
    assert sum(out.num_sampled_edges) == len(edges)
    assert len(out.num_sampled_nodes) == len(fanouts) + 1


MODES = [
    pytest.param({}, id="uniform"),
    pytest.param({"replace": True}, id="replace"),
    pytest.param({"weighted": True}, id="weighted"),
    pytest.param({"weighted": True, "replace": True}, id="weighted, replace"),
    pytest.param({"disjoint": True}, id="disjoint"),
    pytest.param({"weighted": True, "disjoint": True}, id="weighted, disjoint"),
    pytest.param({"timed": True}, id="temporal"),
    pytest.param({"timed": True, "weighted": True}, id="temporal, weighted"),
    pytest.param({"timed": True, "temporal": "last"}, id="last"),
    pytest.param({"timed": True, "temporal": "last", "weighted": True}, id="last, weighted"),
    pytest.param({"timed": True, "temporal": "recency"}, id="recency"),
    pytest.param(
        {"timed": True, "temporal": "recency", "weighted": True, "window": 30}, id="recency, weighted, window"
    ),
]


def sample(graph: CSR, seeds: Tensor, fanouts: list[float], options: dict, seed: int = 5):
    options = dict(options)
    if options.pop("timed", False):
        options["seed_time"] = (seeds * 7) % 100
    return neighbor_sample(graph, seeds, fanouts, seed=seed, **options)


@pytest.mark.parametrize("options", MODES)
def test_structure(options):
    graph = random_graph(2000, 20000)
    seeds = torch.arange(0, 2000, 5)
    out = sample(graph, seeds, [5, 0.3, -1], options)
    position = graph.edge_ids.argsort()[out.edge]  # edges come back with the caller's numbers
    assert torch.equal(out.node[: len(seeds)], seeds)
    assert torch.equal(out.node[out.row], graph.col[position].long())
    assert torch.equal(out.node[out.col], graph._rows[position])
    assert bool((out.col.diff() >= 0).all())
    first_use = out.row[out.row >= len(seeds)]
    assert torch.equal(first_use.unique(), torch.arange(len(seeds), len(out.node)))  # no node without an edge
    if out.batch is None:
        assert out.node.unique().numel() == out.node.numel()
    else:
        assert torch.equal(out.batch[: len(seeds)], torch.arange(len(seeds)))
        assert torch.equal(out.batch[out.row], out.batch[out.col])
        assert torch.stack([out.batch, out.node]).unique(dim=1).shape[1] == out.node.numel()
    if not options.get("replace"):
        assert torch.stack([out.col, out.edge]).unique(dim=1).shape[1] == out.edge.numel()


@pytest.mark.parametrize("options", MODES)
def test_same_bits_for_any_number_of_threads(options):
    graph = random_graph(20000, 300000)
    seeds = torch.randperm(20000, generator=generator())[:1500]
    before = torch.get_num_threads()
    try:
        results = []
        for num_threads in (1, 2, 4):
            torch.set_num_threads(num_threads)
            results.append(sample(graph, seeds, [5, 4, 3], options))
    finally:
        torch.set_num_threads(before)
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])
    assert not torch.equal(results[0].node, sample(graph, seeds, [5, 4, 3], options, seed=6).node) or (
        options.get("temporal") == "last"
    )


def test_concurrent_calls_do_not_share_a_table():
    graph = random_graph(5000, 60000)
    seeds = [torch.randperm(5000, generator=generator(i))[:300] for i in range(40)]
    expected = [neighbor_sample(graph, s, [5, 5], seed=1) for s in seeds]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda s: neighbor_sample(graph, s, [5, 5], seed=1), seeds))
    assert all(equal(a, b) for a, b in zip(results, expected))


def test_the_table_survives_the_end_of_its_numbers():
    graph = random_graph(500, 5000)
    seeds = torch.arange(100)
    expected = neighbor_sample(graph, seeds, [5, 5], seed=1)
    table = _PREPARED[graph][False, False][0].tables[-1]
    table[-1] = 2**31 - 1  # the first number of the next call; the call after that starts a cleared table
    for _ in range(3):
        assert equal(neighbor_sample(graph, seeds, [5, 5], seed=1), expected)
    assert 0 < table[-1] < 2**11


def test_choice_at_a_node_does_not_depend_on_batch_mates():
    graph = random_graph(1000, 20000)
    union = neighbor_sample(graph, torch.arange(100), [4, 3], seed=2)
    edges = set(union.edge[: union.num_sampled_edges[0]].tolist())
    for part in torch.arange(100).split(30):
        out = neighbor_sample(graph, part, [4], seed=2)
        assert set(out.edge.tolist()) <= edges


# Laws


def copies(weights: list[float], num_copies: int) -> CSR:
    """Many targets with the same sources and weights, times 0, 1, 2, ..."""
    n = len(weights)
    rowptr = torch.cat([torch.arange(num_copies + 1) * n, torch.full((n,), num_copies * n)])
    return CSR(
        rowptr,
        torch.arange(n).add(num_copies).repeat(num_copies),
        num_nodes=num_copies + n,
        weight=torch.tensor(weights).repeat(num_copies),
        time=torch.arange(n).repeat(num_copies),
    )


def chi_square_bound(freedom: int) -> float:
    """Exceeded with a probability of about 1e-6 (Wilson and Hilferty)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.75 * (2 / (9 * freedom)) ** 0.5) ** 3


def check_subsets(out, num_copies: int, n: int, expected: dict) -> None:
    chosen = torch.zeros(num_copies, n, dtype=torch.int64)
    chosen[out.node[out.col], out.node[out.row] - num_copies] = 1
    code = (chosen << torch.arange(n)).sum(1)
    counts = torch.bincount(code, minlength=2**n).double()
    probability = torch.zeros(2**n, dtype=torch.float64)
    for subset, p in expected.items():
        probability[sum(1 << i for i in subset)] = p
    assert bool((counts[probability == 0] == 0).all())
    likely = probability * num_copies > 5
    e = probability[likely] * num_copies
    statistic = float(((counts[likely] - e) ** 2 / e).sum())
    assert statistic < chi_square_bound(int(likely.sum()) - 1)


WEIGHTS = [
    pytest.param([1.0, 1.0, 1.0, 1.0, 1.0], id="equal"),
    pytest.param([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], id="linear"),
    pytest.param([1e6, 1.0, 2.0, 3.0, 1.0], id="one takes nearly all: ends in the scan"),
    pytest.param([0.0, 1.0, 0.0, 2.0, 3.0, 0.5], id="zeros"),
]


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_weighted_subsets_have_their_exact_probabilities(weights, disjoint):
    num_copies = 60000
    graph = copies(weights, num_copies)
    out = neighbor_sample(graph, torch.arange(num_copies), [3], seed=3, weighted=True, disjoint=disjoint)
    check_subsets(out, num_copies, len(weights), reference.subset_probabilities(weights, 3))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_uniform_subsets_have_their_exact_probabilities(count):
    num_copies = 60000
    out = neighbor_sample(copies([1.0] * 6, num_copies), torch.arange(num_copies), [count], seed=4)
    check_subsets(out, num_copies, 6, reference.subset_probabilities([1.0] * 6, count))


TIMED = [
    pytest.param({"temporal": "uniform"}, lambda w, rank: 1.0, id="uniform"),
    pytest.param({"temporal": "recency"}, lambda w, rank: rank, id="recency"),
    pytest.param({"temporal": "uniform", "weighted": True}, lambda w, rank: w, id="weighted"),
    pytest.param({"temporal": "recency", "weighted": True}, lambda w, rank: w * rank, id="recency, weighted"),
]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("seed_time", [4, 6], ids=["part of the row", "the whole row"])
@pytest.mark.parametrize(("options", "law"), TIMED)
def test_temporal_subsets_have_their_exact_probabilities(options, law, seed_time, window):
    weights, num_copies = [5.0, 1.0, 2.0, 0.5, 3.0, 1.0, 4.0], 40000
    begin = 0 if window is None else seed_time - window
    law_weights = [
        law(w, t - begin + 1) if begin <= t <= seed_time else 0.0 for t, w in enumerate(weights)
    ]  # time = place in the row
    out = neighbor_sample(
        copies(weights, num_copies), torch.arange(num_copies), [2], seed=8, window=window,
        seed_time=torch.full((num_copies,), seed_time), **options,
    )  # fmt: skip
    check_subsets(out, num_copies, len(weights), reference.subset_probabilities(law_weights, 2))


def test_replacement_draws_in_proportion():
    weights = [5.0, 1.0, 0.0, 2.0]
    num_copies = 20000
    out = neighbor_sample(
        copies(weights, num_copies), torch.arange(num_copies), [5], seed=1, weighted=True, replace=True
    )
    counts = torch.bincount(out.node[out.row] - num_copies, minlength=4)
    assert int(counts.sum()) == 5 * num_copies
    assert counts[2] == 0
    expected = torch.tensor([5.0, 1.0, 2.0], dtype=torch.float64) / 8 * 5 * num_copies
    assert float(((counts[[0, 1, 3]] - expected) ** 2 / expected).sum()) < chi_square_bound(2)


# Time


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


# Borders


@pytest.mark.parametrize("options", MODES)
def test_empty_inputs(options):
    graph = random_graph(50, 300)
    out = sample(graph, torch.empty(0, dtype=torch.int64), [3, 2], options)
    assert out.node.numel() == out.edge.numel() == 0
    assert out.num_sampled_nodes == [0, 0, 0]
    bare = CSR(torch.zeros(4, dtype=torch.int64), torch.empty(0, dtype=torch.int64), num_nodes=3,
               weight=torch.empty(0), time=torch.empty(0, dtype=torch.int64))  # fmt: skip
    out = sample(bare, torch.tensor([2, 0]), [3, -1], options)
    assert out.node.tolist() == [2, 0]
    assert out.num_sampled_edges == [0, 0]


def test_a_share_of_the_row_is_rounded_up():
    graph = copies([1.0] * 7, 3)
    out = neighbor_sample(graph, torch.arange(3), [0.3], seed=0)
    assert out.num_sampled_edges == [9]


def test_weights_of_zero_only():
    out = neighbor_sample(copies([0.0, 0.0, 0.0], 4), torch.arange(4), [2], seed=0, weighted=True)
    assert out.edge.numel() == 0


def test_alias_tables_hold_the_weights():
    weights = torch.rand(1000, generator=generator())
    weights[::7] = 0
    table = torch.ops.gossamer.alias_table(torch.tensor([0, 1000]), weights)
    keep, other = (table >> 32) & 0xFFFFFFFF, table & 0xFFFFFFFF
    mass = keep.double().index_add(0, other, (2**32 - keep).double())
    torch.testing.assert_close(mass / 2**32, weights.double() / weights.double().mean(), rtol=1e-6, atol=1e-6)
    assert bool((mass[::7] == 0).all())


WRONG = [
    pytest.param({"seeds": torch.tensor([50])}, ValueError, r"seeds must be in \[0, 50\), got 50 to 50", id="seed"),
    pytest.param({"seeds": torch.tensor([-1])}, ValueError, "seeds must be in", id="negative seed"),
    pytest.param({"seeds": torch.tensor([0.5])}, TypeError, "seeds must be a vector of int64", id="float seeds"),
    pytest.param({"fanouts": [0]}, ValueError, "fanouts must be -1, at least 1", id="fanout 0"),
    pytest.param({"fanouts": [-2]}, ValueError, "fanouts must be -1", id="fanout -2"),
    pytest.param({"fanouts": [float("nan")]}, ValueError, "fanouts must be -1", id="fanout nan"),
    pytest.param({"temporal": "newest"}, ValueError, "temporal must be uniform, last or recency", id="temporal"),
    pytest.param({"temporal": "last"}, ValueError, "seed_time must be given", id="no seed time"),
    pytest.param({"seed_time": torch.tensor([1])}, ValueError, "seed_time must be one integer per seed", id="times"),
    pytest.param({"window": 3}, ValueError, "seed_time must be given", id="window"),
    pytest.param({"seed_time": torch.tensor([1, 2]), "window": -1}, ValueError, "window must be at least 0", id="-1"),
    pytest.param({"node_time": torch.tensor([1]), "seed_time": torch.tensor([1, 2])}, ValueError, "node_time must be",
                 id="node time"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_wrong_inputs(change, error, message):
    arguments = {"seeds": torch.tensor([1, 2]), "fanouts": [2], "seed": 0} | change
    with pytest.raises(error, match=f"neighbor_sample: {message}"):
        neighbor_sample(random_graph(50, 300), arguments.pop("seeds"), arguments.pop("fanouts"), **arguments)


def test_graphs_without_what_is_asked_for():
    graph = CSR(torch.tensor([0, 1, 1]), torch.tensor([1]), num_nodes=2)
    with pytest.raises(ValueError, match="graph must have weights"):
        neighbor_sample(graph, torch.tensor([0]), [1], seed=0, weighted=True)
    with pytest.raises(ValueError, match="graph must have edge times"):
        neighbor_sample(graph, torch.tensor([0]), [1], seed=0, seed_time=torch.tensor([0]))
    negative = CSR(torch.tensor([0, 1, 1]), torch.tensor([1]), num_nodes=2, weight=torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="weight must be finite and not negative"):
        neighbor_sample(negative, torch.tensor([0]), [1], seed=0, weighted=True)


@pytest.mark.parametrize("disjoint", [False, True])
def test_columns_out_of_range_are_an_error(disjoint):
    relation = prepare_relation(torch.tensor([0, 2, 2]), torch.tensor([1, 7], dtype=torch.int32))
    with pytest.raises(RuntimeError, match=r"columns in \[0, num_nodes\)"):
        torch.ops.gossamer.neighbor_sample(*operator_arguments(relation, disjoint))


def operator_arguments(relation, disjoint: bool) -> tuple:
    table = torch.zeros(0 if disjoint else relation.rowptr.numel(), dtype=torch.int32)
    return (
        [relation.rowptr], [relation.col], [], [], [], [], [0], [0], [relation.rowptr.numel() - 1],
        [torch.tensor([0, 1])], [], [2.0], 0, False, "uniform", None, disjoint, table, [],
    )  # fmt: skip


@pytest.mark.parametrize("disjoint", [False, True])
def test_opcheck(disjoint):
    graph = random_graph(50, 300)
    relation = prepare_relation(graph.rowptr, graph.col)
    checks = (
        "test_schema",
        "test_autograd_registration",
        "test_faketensor",
    )  # loads data: never part of a traced graph
    operator = torch.ops.gossamer.neighbor_sample.default
    torch.library.opcheck(operator, operator_arguments(relation, disjoint), test_utils=checks)


def test_opcheck_of_the_weight_tables():
    graph = random_graph(50, 300)
    torch.library.opcheck(torch.ops.gossamer.alias_table.default, (graph.rowptr, graph.weight))
    torch.library.opcheck(torch.ops.gossamer.cumulative_weights.default, (graph.rowptr, graph.weight))
