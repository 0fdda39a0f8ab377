"""neighbor_sample: bits against the oracle, structure, threads, borders and wrong inputs."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from sampling_problem import MODES, copies, generator, random_graph, sample

from gossamer.graph import CSR, neighbor_sample
from gossamer.graph.sampling import _PREPARED
from gossamer.graph.sampling_index import prepare_relation

import reference


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


@pytest.mark.parametrize("weighted", [False, True])
def test_edge_ids_beyond_32_bits(weighted):
    graph = random_graph(50, 300)
    far = CSR(
        graph.rowptr, graph.col, num_nodes=50, weight=graph.weight, time=graph.time, edge_ids=graph.edge_ids + 2**31
    )
    options = {"seed": 0, "weighted": weighted, "seed_time": torch.full((50,), 70)}
    near, out = (neighbor_sample(g, torch.arange(50), [3, 2], **options) for g in (graph, far))
    assert near.edge.numel() > 100
    assert torch.equal(out.edge, near.edge + 2**31)
    assert torch.equal(out.row, near.row)


def test_alias_tables_hold_the_weights():
    weights = torch.rand(1000, generator=generator())
    weights[::7] = 0
    table = torch.ops.gossamer.alias_table(torch.tensor([0, 1000]), weights)
    first, second = table.long() & 0xFFFFFFFF
    keep, other = first >> 16 << 16 | second >> 16, (second & 0xFFFF) << 16 | first & 0xFFFF
    mass = keep.double().index_add(0, other, (2**32 - keep).double())
    torch.testing.assert_close(mass / 2**32, weights.double() / weights.double().mean(), rtol=1e-6, atol=1e-6)
    assert bool((mass[::7] == 0).all())


WRONG = [
    pytest.param({"seeds": torch.tensor([50])}, ValueError, r"seeds must be in \[0, 50\), got 50 to 50", id="seed"),
    pytest.param({"seeds": torch.tensor([-1])}, ValueError, "seeds must be in", id="negative seed"),
    pytest.param({"seeds": torch.tensor([0.5])}, TypeError, "seeds must be a vector of int64", id="float seeds"),
    pytest.param({"fanouts": [0]}, ValueError, "fanouts must be -1, in ", id="fanout 0"),
    pytest.param({"fanouts": [1 << 63]}, ValueError, "fanouts must be -1, in ", id="fanout beyond all rows"),
    pytest.param({"fanouts": [-2]}, ValueError, "fanouts must be -1", id="fanout -2"),
    pytest.param({"fanouts": [float("nan")]}, ValueError, "fanouts must be -1", id="fanout nan"),
    pytest.param({"temporal": "newest"}, ValueError, "temporal must be uniform, last or recency", id="temporal"),
    pytest.param({"temporal": "last"}, ValueError, "seed_time must be given", id="no seed time"),
    pytest.param({"seed_time": torch.tensor([1])}, ValueError, "seed_time must be one integer per seed", id="times"),
    pytest.param({"window": 3}, ValueError, "seed_time must be given", id="no times"),
    pytest.param({"seed_time": torch.tensor([1, 2]), "window": -1}, ValueError,
                 r"window must be in \[0, 2\^63\), got -1", id="window"),
    pytest.param({"seed_time": torch.tensor([1, 2]), "window": 2**63}, ValueError,
                 r"window must be in \[0, 2\^63\), got 9223372036854775808", id="large window"),
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
