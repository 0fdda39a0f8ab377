"""Hash tables, contextual hashes, and the route plan they lead to."""

import pytest
import torch
from torch.library import opcheck

from gossamer import sparse_nn as nn


def zipf_counts(vocab_size, total=100_000):
    return (total / torch.arange(1, vocab_size + 1)).long()


def stable_plan(expert_ids, num_experts, capacity=None):
    """Oracle: one list per expert, filled in token order."""
    lists = [[] for _ in range(num_experts)]
    for route, expert in enumerate(expert_ids.flatten().tolist()):
        if expert >= 0 and (capacity is None or len(lists[expert]) < capacity):
            lists[expert].append(route)
    order = [route for routes in lists for route in routes]
    offsets = [sum(map(len, lists[:e])) for e in range(num_experts + 1)]
    position = {route: i for i, route in enumerate(order)}
    inverse = [position.get(route, -1) for route in range(expert_ids.numel())]
    return [torch.tensor(x, dtype=torch.int32) for x in (order, offsets, inverse)]


PLANS = [
    pytest.param(torch.randint(7, (50, 3)), 7, None, id="dropless"),
    pytest.param(torch.randint(7, (50, 3), dtype=torch.int32), 7, 5, id="capacity, int32 ids"),
    pytest.param(torch.randint(-1, 7, (50, 3)), 7, 1000, id="absent routes"),
    pytest.param(torch.full((40, 2), 4), 7, None, id="all tokens to one expert, duplicate routes"),
    pytest.param(torch.full((40, 1), 4), 7, 0, id="capacity zero"),
    pytest.param(torch.empty(0, 3, dtype=torch.int64), 7, None, id="no tokens"),
    pytest.param(torch.zeros(9, 1, dtype=torch.int64), 1, None, id="one expert"),
    pytest.param(torch.randint(64, (9000, 4)), 64, None, id="several chunks"),
    pytest.param(torch.randint(-1, 64, (9000, 4)), 64, 300, id="several chunks with capacity"),
]


@pytest.mark.parametrize(("expert_ids", "num_experts", "capacity"), PLANS)
def test_route_plan_matches_reference(expert_ids, num_experts, capacity):
    plan = nn.RoutePlan.from_expert_ids(expert_ids, num_experts, capacity=capacity)
    for got, wanted in zip((plan.order, plan.offsets, plan.inverse), stable_plan(expert_ids, num_experts, capacity)):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert plan.counts.sum() == plan.num_routes
    assert plan.touched_experts().tolist() == [e for e in range(num_experts) if plan.counts[e] > 0]


@pytest.mark.parametrize("table_dtype", [torch.int16, torch.int32, torch.int64])
def test_hash_plan_is_the_route_plan_of_the_looked_up_ids(table_dtype):
    table = nn.random_table(500, 16, 4, seed=0).to(table_dtype)
    token_ids = torch.randint(500, (3, 1000))
    plan = nn.hash_plan(table, token_ids, 16)
    wanted = nn.RoutePlan.from_expert_ids(table.int()[token_ids.flatten()], 16)
    for name in ("expert_ids", "order", "offsets", "inverse"):
        assert torch.equal(getattr(plan, name), getattr(wanted, name)), name


def test_plans_are_the_same_for_any_number_of_threads():
    ids, plans = torch.randint(64, (20_000, 4)), []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        plans.append(nn.RoutePlan.from_expert_ids(ids, 64))
    torch.set_num_threads(1)
    assert torch.equal(plans[0].order, plans[1].order)
    assert torch.equal(plans[0].inverse, plans[1].inverse)


def test_plan_operators_pass_opcheck():
    opcheck(torch.ops.gossamer.route_plan, (torch.randint(5, (8, 2)), 5, -1))
    opcheck(torch.ops.gossamer.hash_plan, (nn.random_table(20, 5, 2, seed=0), torch.randint(20, (8,)), 5))


def test_plan_compiles_without_a_graph_break():
    table, token_ids = nn.random_table(50, 8, 2, seed=0), torch.randint(50, (30,))
    order = lambda ids: nn.hash_plan(table, ids, 8).order  # noqa: E731
    compiled = torch.compile(order, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(token_ids), order(token_ids))


def test_splits_follow_the_placement_of_experts():
    plan = nn.RoutePlan.from_expert_ids(torch.tensor([[0, 1], [5, 5], [2, 0]]), 6)
    assert plan.splits(3).tolist() == [3, 1, 2]


PLAN_ERRORS = [
    pytest.param(lambda: nn.RoutePlan.from_expert_ids(torch.tensor([[7]]), 7), "expert_ids must be in", id="too large"),
    pytest.param(lambda: nn.RoutePlan.from_expert_ids(torch.tensor([[-1]]), 7), "expert_ids must be in", id="absent"),
    pytest.param(
        lambda: nn.RoutePlan.from_expert_ids(torch.tensor([[-2]]), 7, capacity=3),
        "expert_ids must be in",
        id="below -1",
    ),
    pytest.param(lambda: nn.RoutePlan.from_expert_ids(torch.tensor([1]), 7), r"\[num_tokens, k\]", id="one dimension"),
    pytest.param(
        lambda: nn.RoutePlan.from_expert_ids(torch.tensor([[1]]), 7, capacity=-1), "capacity must be", id="capacity"
    ),
    pytest.param(lambda: nn.hash_plan(torch.zeros(4, 1).int(), torch.tensor([4]), 2), "token_ids must", id="token"),
    pytest.param(lambda: nn.hash_plan(torch.zeros(4, 1).int(), torch.tensor([-1]), 2), "token_ids must", id="below 0"),
    pytest.param(lambda: nn.hash_plan(torch.full((4, 1), 2).int(), torch.tensor([1]), 2), "table entries", id="expert"),
]


@pytest.mark.parametrize(("call", "message"), PLAN_ERRORS)
def test_plans_refuse_ids_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_plans_refuse_floating_point_ids():
    with pytest.raises(TypeError, match="RoutePlan: expert_ids must be int32 or int64"):
        nn.RoutePlan.from_expert_ids(torch.rand(3, 1), 7)


TABLES = [
    pytest.param(lambda k, seed: nn.random_table(1000, 16, k, seed=seed), id="random"),
    pytest.param(lambda k, seed: nn.balanced_table(zipf_counts(1000), 16, k, seed=seed), id="balanced"),
]


@pytest.mark.parametrize("build", TABLES)
@pytest.mark.parametrize("k", [1, 3, 16])
def test_table_rows_hold_different_experts(build, k):
    table = build(k, 0)
    assert table.shape == (1000, k)
    assert table.min() >= 0
    assert table.max() < 16
    assert all(len(set(row)) == k for row in table.tolist())
    assert torch.equal(table, build(k, 0))


@pytest.mark.parametrize("build", TABLES)
def test_seeds_give_different_tables(build):
    assert not torch.equal(build(1, 0), build(1, 1))


def test_random_table_is_uniform():
    table = nn.random_table(16_000, 16, 4, seed=3)
    counts = table.flatten().bincount(minlength=16)
    assert (counts - 4000).abs().max() < 300  # more than five standard deviations


def test_a_row_of_a_random_table_does_not_depend_on_the_vocabulary():
    assert torch.equal(nn.random_table(10, 8, 2, seed=5), nn.random_table(100, 8, 2, seed=5)[:10])


@pytest.mark.parametrize("num_experts", [4, 16, 64])
def test_balanced_is_never_worse_than_random_on_its_own_counts(num_experts):
    counts = zipf_counts(2000)
    stream = torch.repeat_interleave(torch.arange(2000), counts)
    balanced = nn.load_balance(nn.balanced_table(counts, num_experts, seed=0), stream, num_experts)
    for seed in range(5):
        random = nn.load_balance(nn.random_table(2000, num_experts, seed=seed), stream, num_experts)
        assert balanced.max_over_mean <= random.max_over_mean
    floor = max(1.0, num_experts * (counts[0] / counts.sum()).item())  # the expert of the most frequent token
    assert balanced.max_over_mean < floor + 0.01


def test_balanced_table_deals_unseen_tokens_evenly():
    counts = torch.zeros(100, dtype=torch.int64)
    counts[0] = 1000
    held = nn.balanced_table(counts, 10, seed=0).flatten().bincount(minlength=10)
    assert held.tolist() == [10] * 10


def test_clustered_keeps_similar_tokens_together_and_dispersed_parts_them():
    centres = 10 * torch.eye(4)
    group = torch.arange(40) % 4
    embeddings = centres[group] + 0.1 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    table = nn.clustered_table(embeddings, 4, seed=0).flatten()
    assert [len(table[group == g].unique()) for g in range(4)] == [1] * 4
    dispersed = nn.dispersed_table(embeddings, torch.ones(40), 4, seed=0).flatten()
    assert dispersed.bincount(minlength=4).max() - dispersed.bincount(minlength=4).min() <= 4
    assert all(len(dispersed[group == g].unique()) == 4 for g in range(4))


def test_multi_hash_gives_each_segment_its_own_experts():
    table = nn.multi_hash_table(100, 8, 3, seed=1)
    assert torch.equal(table // 8, torch.arange(3).int().expand(100, 3))
    assert torch.equal(table[:, :1], nn.random_table(100, 8, seed=1))


def test_tables_are_saved_with_their_sizes(tmp_path):
    table = nn.random_table(30, 4, 2, seed=0)
    nn.save_table(tmp_path / "table.pt", table, 4)
    assert torch.equal(nn.load_table(tmp_path / "table.pt", vocab_size=30, num_experts=4), table)
    with pytest.raises(ValueError, match="load_table: vocab_size must be 30, as the table was saved, got 31"):
        nn.load_table(tmp_path / "table.pt", vocab_size=31, num_experts=4)
    with pytest.raises(ValueError, match="load_table: num_experts must be 4"):
        nn.load_table(tmp_path / "table.pt", vocab_size=30, num_experts=8)


def test_tokens_are_counted_from_a_tensor_or_a_stream():
    ids = torch.randint(30, (4, 25))
    counts = nn.count_tokens(ids, 40)
    assert counts.tolist() == [(ids == v).sum().item() for v in range(40)]
    assert torch.equal(nn.count_tokens((row.int() for row in ids), 40), counts)
    assert nn.count_tokens([], 3).tolist() == [0, 0, 0]


TABLE_ERRORS = [
    pytest.param(lambda: nn.count_tokens(torch.tensor([3]), 3), r"token_ids must be in \[0, 3\), got", id="counting"),
    pytest.param(lambda: nn.random_table(5, 4, 5, seed=0), "random_table: k must be in", id="k"),
    pytest.param(lambda: nn.random_table(0, 4, seed=0), r"vocab_size must be in \[1, .*\], got 0", id="vocabulary"),
    pytest.param(lambda: nn.balanced_table(torch.tensor([-1]), 2, seed=0), "must be not negative", id="counts"),
    pytest.param(lambda: nn.clustered_table(torch.rand(3, 2), 4, seed=0), "at least 4 rows", id="clusters"),
    pytest.param(lambda: nn.load_balance(torch.zeros(3, 1).int(), torch.tensor([]).int(), 2), "one token", id="stream"),
]


@pytest.mark.parametrize(("call", "message"), TABLE_ERRORS)
def test_tables_refuse_wrong_sizes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_contextual_hashes_look_where_they_say():
    table = nn.random_table(10, 4, seed=0)
    x = torch.tensor([[3, 1, 4], [1, 5, 9]])
    assert torch.equal(nn.token_hash(table, x), table[x])
    assert torch.equal(nn.previous_token_hash(table, x, bos_id=0), table[torch.tensor([[0, 3, 1], [0, 1, 5]])])
    assert torch.equal(nn.oracle_future_hash(table, x, eos_id=2), table[torch.tensor([[1, 4, 2], [5, 9, 2]])])
    assert nn.position_hash(x, 2).flatten().tolist() == [0, 1, 0, 0, 1, 0]
    assert nn.bigram_hash(x, 4, bos_id=0, prime=7)[0].flatten().tolist() == [3, (1 + 21) % 4, (4 + 7) % 4]


@pytest.mark.parametrize("hash_name", ["token", "previous", "bigram", "position", "oracle"])
def test_only_the_oracle_sees_the_future(hash_name):
    table = torch.arange(10, dtype=torch.int32)[:, None]  # injective: a leak shows
    hashes = {
        "token": lambda x: nn.token_hash(table, x),
        "previous": lambda x: nn.previous_token_hash(table, x, bos_id=0),
        "bigram": lambda x: nn.bigram_hash(x, 10, bos_id=0, prime=7),
        "position": lambda x: nn.position_hash(x, 10),
        "oracle": lambda x: nn.oracle_future_hash(table, x, eos_id=0),
    }
    x, changed = torch.tensor([3, 1, 4, 1]), torch.tensor([3, 1, 5, 1])
    same = torch.equal(hashes[hash_name](x)[:2], hashes[hash_name](changed)[:2])
    assert same == (hash_name != "oracle")
