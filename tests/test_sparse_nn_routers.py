"""Routers behind one interface, their losses, and the layer made of them."""

import math

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gossamer import sparse_nn as nn
from gossamer.sparse_nn.assignment import balanced_assignment, sinkhorn

TABLE = nn.random_table(50, 8, 2, seed=0)
ROUTERS = {
    "hash": lambda: nn.HashRouter(TABLE, 8),
    "multi hash": lambda: nn.HashRouter(nn.multi_hash_table(50, 4, 2, seed=0), 8),
    "weighted hash": lambda: nn.WeightedHashRouter(16, TABLE, 8, route_scale=1.5),
    "switch": lambda: nn.TopKRouter(16, 8, capacity_factor=1.25, balance_weight=0.01),
    "gshard": lambda: nn.TopKRouter(
        16, 8, 2, normalize=True, capacity_factor=1.0, first_choices_first=True, balance_weight=0.01
    ),
    "gshard, random second": lambda: nn.TopKRouter(
        16, 8, 2, normalize=True, capacity_factor=1.0, first_choices_first=True, random_second=0.5
    ),
    "sigmoid": lambda: nn.TopKRouter(16, 8, 2, score="sigmoid", normalize=True, num_groups=4, top_groups=2),
    "sqrt_softplus": lambda: nn.TopKRouter(16, 8, 2, score="sqrt_softplus", z_weight=0.001),
    "noisy": lambda: nn.TopKRouter(16, 8, 2, noisy=True, balance_weight=0.1),
    "expert choice": lambda: nn.ExpertChoiceRouter(16, 8),
    "base": lambda: nn.BalancedAssignmentRouter(16, 8),
    "sinkhorn": lambda: nn.SinkhornRouter(16, 8),
    "sinkhorn, two": lambda: nn.SinkhornRouter(16, 8, 2),
    "random": lambda: nn.RandomRouter(8, seed=0),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_every_router_feeds_a_layer(name, training):
    layer = nn.MoE(16, 12, 8, ROUTERS[name](), num_shared_experts=1).train(training)
    x = torch.randn(2, 20, 16, requires_grad=True)
    y = layer(x, torch.randint(50, (2, 20)))
    routing = layer.routing
    assert y.shape == x.shape
    assert routing.gates.shape == routing.expert_ids.shape
    assert routing.gates.dtype == torch.float32
    torch.testing.assert_close(routing.stats["load"].sum(), torch.tensor(1.0))
    (y.square().sum() + routing.aux_loss).backward()
    assert x.grad.isfinite().all()
    for parameter_name, parameter in layer.named_parameters():
        if "noise" not in parameter_name or training:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name


def test_layer_matches_a_loop_over_tokens():
    layer = nn.MoE(16, 12, 8, nn.TopKRouter(16, 8, 2, normalize=True))
    x = torch.randn(10, 16)
    y, routing = layer(x), layer.routing
    for t in range(10):
        wanted = torch.zeros(16)
        for e, gate in zip(routing.expert_ids[t], routing.gates[t]):
            h_gate, h_up = (layer.w_in[e] @ x[t]).chunk(2)
            wanted = wanted + gate * (layer.w_out[e] @ (functional.silu(h_gate) * h_up))
        torch.testing.assert_close(y[t], wanted, rtol=1e-4, atol=1e-5)


def test_multi_hash_with_one_hash_is_the_hash_layer():
    plain = nn.MoE(16, 12, 8, nn.HashRouter(nn.random_table(50, 8, seed=3), 8), activation="relu")
    multi = nn.MoE(16, 12, 8, nn.HashRouter(nn.multi_hash_table(50, 8, 1, seed=3), 8), activation="relu")
    multi.load_state_dict(plain.state_dict())
    x, ids = torch.randn(9, 16), torch.randint(50, (9,))
    assert torch.equal(plain(x, ids), multi(x, ids))


def test_a_plan_is_built_once_and_reused():
    layer = nn.MoE(16, 12, 8, ROUTERS["hash"]())
    x, ids = torch.randn(9, 16), torch.randint(50, (9,))
    plan = layer.router.hash_plan(ids)
    assert torch.equal(layer(x, ids, plan=plan), layer(x, ids))


def test_weighted_hash_gates_are_normalized_scores_of_the_tables_experts():
    router, x, ids = ROUTERS["weighted hash"](), torch.randn(9, 16), torch.randint(50, (9,))
    routing = router(x, ids)
    assert torch.equal(routing.expert_ids.int(), TABLE[ids])
    scores = functional.softplus((x @ router.weight.T).gather(1, TABLE[ids].long())).sqrt()
    torch.testing.assert_close(routing.gates, 1.5 * scores / scores.sum(1, keepdim=True))


def test_expert_choice_loads_are_equal():
    routing = nn.ExpertChoiceRouter(16, 8, capacity_factor=2.0)(torch.randn(40, 16))
    assert torch.equal((routing.expert_ids >= 0).sum(0), torch.full((8,), 10))


@pytest.mark.parametrize("num_tokens", [64, 61, 3, 0])
def test_balanced_assignment_is_near_the_optimum(num_tokens):
    scipy_optimize = pytest.importorskip("scipy.optimize")
    scores = torch.randn(num_tokens, 8)
    expert = balanced_assignment(scores)
    loads = expert.bincount(minlength=8)
    assert loads.max() - loads.min() <= 1
    slots = torch.arange(num_tokens) * 8 // max(num_tokens, 1) if num_tokens % 8 == 0 else None
    if slots is not None and num_tokens:
        rows, columns = scipy_optimize.linear_sum_assignment(scores[:, slots].numpy(), maximize=True)
        best = scores[:, slots].numpy()[rows, columns].sum()
        spread = (scores.max() - scores.min()).item()
        assert scores.gather(1, expert[:, None]).sum().item() >= best - num_tokens * spread / 1024 - 1e-4


def test_base_balances_in_training():
    routing = nn.BalancedAssignmentRouter(16, 8)(torch.randn(64, 16))
    assert torch.equal(routing.expert_ids.flatten().bincount(minlength=8), torch.full((8,), 8))


def test_sinkhorn_marginals():
    plan = sinkhorn(torch.randn(40, 8))
    torch.testing.assert_close(plan.sum(0), torch.full((8,), 1 / 8), rtol=1e-2, atol=0)
    torch.testing.assert_close(plan.sum(1), torch.full((40,), 1 / 40), rtol=1e-2, atol=0)


def test_group_limit():
    router = nn.TopKRouter(16, 8, 2, score="sigmoid", num_groups=4, top_groups=1)
    group = router(torch.randn(30, 16)).expert_ids // 2
    assert torch.equal(group[:, 0], group[:, 1])


def test_capacity_drops_late_tokens():
    router = nn.TopKRouter(16, 4, capacity_factor=1.0, min_capacity=1)
    plan = router.plan(router(torch.ones(40, 16)))  # all tokens alike: one expert
    assert plan.counts.max() == 10
    assert plan.order.max() == 9


def test_gshard_drops_second_choices_first():
    router = nn.TopKRouter(2, 2, 2, capacity_factor=0.5, min_capacity=1, first_choices_first=True)
    router.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    inverse = router.plan(router(x)).inverse.view(4, 2)
    assert (inverse[:, 0] >= 0).all()  # two first choices for each expert, which keeps two
    assert (inverse[:, 1] < 0).all()


def random_second(seed, **capacity):
    torch.manual_seed(1)
    router = nn.TopKRouter(16, 8, 2, normalize=True, random_second=0.5, seed=seed, **capacity)
    router.weight.data.normal_()
    return router


def test_a_second_choice_is_kept_with_the_probability_of_its_gate():
    """Of tokens with gates about g, a share of min(1, g / 0.5) keeps its second expert; first choices all stay."""
    x = torch.randn(20_000, 16)
    routing = random_second(0)(x)
    assert (routing.expert_ids[:, 0] >= 0).all()
    kept, gate = routing.expert_ids[:, 1] >= 0, routing.gates[:, 1]
    for low in (0.0, 0.1, 0.2, 0.3, 0.4):
        these = (gate >= low) & (gate < low + 0.1)
        expected, tolerance = gate[these].mean() / 0.5, 4 * (0.25 / these.sum()).sqrt()
        assert (kept[these].float().mean() - expected).abs() < tolerance, low
    assert torch.equal(routing.plan.counts.sum(), kept.sum() + len(x))


def test_the_draw_of_a_second_choice_follows_seed_and_token_alone():
    x = torch.randn(300, 16)
    one, same, other = (random_second(seed)(x).expert_ids for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(one[100:], random_second(0)(x[100:]).expert_ids)


def test_second_choices_that_were_drawn_away_take_no_place():
    """The capacity is filled by what the draw has left."""
    router = random_second(0, capacity_factor=1.0, min_capacity=1)
    x = torch.randn(40, 16)
    routing = router(x)
    plan = nn.RoutePlan.from_expert_ids(routing.expert_ids, 8, capacity=10)
    assert torch.equal(plan.inverse, routing.plan.inverse)
    assert (routing.expert_ids < 0).any()


def test_noisy_losses_are_those_of_the_gates():
    router = nn.TopKRouter(16, 8, 2, normalize=True, noisy=True, balance_weight=0.1, load_weight=0.0)
    routing = router(torch.randn(30, 16))
    dense = torch.zeros(30, 8).scatter(1, routing.expert_ids.long(), routing.gates)
    torch.testing.assert_close(routing.aux_loss, 0.1 * nn.importance_loss(dense))


def test_balance_loss_of_the_router_is_that_of_its_probabilities():
    router, x = nn.TopKRouter(16, 8, 2, score="sigmoid", balance_weight=0.5), torch.randn(30, 16)
    routing, scores = router(x), torch.sigmoid(x @ router.weight.T)
    wanted = 0.5 * nn.load_balance_loss(scores / scores.sum(1, keepdim=True), routing.expert_ids)
    torch.testing.assert_close(routing.aux_loss, wanted)
    grads = [torch.autograd.grad(loss, router.weight)[0] for loss in (routing.aux_loss, wanted)]
    torch.testing.assert_close(*grads)


def test_bias_balances_a_skewed_stream_without_gradients():
    router = nn.TopKRouter(16, 8, 2, score="sigmoid", normalize=True, bias_rate=0.01)
    router.weight.data.normal_(std=0.2)
    x = torch.randn(2000, 16) + 1
    violation = lambda: router(x).stats["load"].max() * 8 - 1  # noqa: E731
    before = violation()
    for _ in range(150):
        router(x)
        router.update_bias()
    assert before > 0.5
    assert violation() < 0.1


def test_random_router_follows_its_seed():
    draws = [nn.RandomRouter(8, seed=seed, per_batch=False)(torch.ones(30, 4)).expert_ids for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert len(nn.RandomRouter(8, seed=0)(torch.ones(30, 4)).expert_ids.unique()) == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_random_router_draws_the_same_when_recomputed(reentrant):
    """Four forwards, then one backward that runs them again: gradients are those without checkpointing."""

    def gradients(run):
        torch.manual_seed(0)
        layer = nn.MoE(8, 4, 16, nn.RandomRouter(16, seed=3))
        x = torch.randn(5, 8, requires_grad=True)
        sum(run(layer, x * i).square().sum() for i in range(1, 5)).backward()
        return [x.grad, *(p.grad for p in layer.parameters())]

    plain = gradients(lambda layer, x: layer(x))
    again = gradients(lambda layer, x: checkpoint(layer, x, use_reentrant=reentrant))
    assert plain[1].flatten(1).any(1).sum() > 1, "the forwards must have drawn different experts"
    for one, other in zip(plain, again):
        assert torch.equal(one, other)


def test_random_router_refuses_a_recomputation_it_cannot_know():
    layer = nn.MoE(8, 4, 16, nn.RandomRouter(16, seed=3))
    x = torch.randn(5, 8, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
    with pytest.raises(RuntimeError, match="RandomRouter: checkpointing must set back torch's generator"):
        y.sum().backward()


@pytest.mark.parametrize("mask", [None, [True, False, True]])
def test_consistency_loss_is_the_mean_of_both_divergences(mask):
    p, q = (torch.randn(3, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    kept = torch.ones(3, dtype=torch.bool) if mask is None else torch.tensor(mask)
    logs = [each.detach().softmax(-1)[kept].log() for each in (p, q)]
    both = [functional.kl_div(a, b, reduction="batchmean", log_target=True) for a, b in (logs, logs[::-1])]
    loss = nn.consistency_loss(p, q, None if mask is None else kept)
    torch.testing.assert_close(loss.detach(), sum(both) / 2)
    assert torch.autograd.gradcheck(lambda p, q: nn.consistency_loss(p, q, kept), (p, q))
    assert nn.consistency_loss(p, p) == 0
    assert nn.consistency_loss(p[:0], q[:0]) == 0


def test_consistency_loss_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"consistency_loss: other_logits must be \(3, 7\), got"):
        nn.consistency_loss(torch.randn(3, 7), torch.randn(3, 6))
    with pytest.raises(ValueError, match=r"consistency_loss: mask must be \(3,\), got"):
        nn.consistency_loss(torch.randn(3, 7), torch.randn(3, 7), torch.ones(3, 7, dtype=torch.bool))


def test_balance_loss_is_one_when_balanced():
    ids = torch.arange(64)[:, None] % 8
    torch.testing.assert_close(nn.load_balance_loss(torch.full((64, 8), 1 / 8), ids), torch.tensor(1.0))
    assert nn.load_balance_loss(functional.one_hot(torch.zeros(64, dtype=torch.int64), 8), ids * 0) == 8


def test_z_loss_of_constant_logits():
    wanted = torch.tensor((0.5 + math.log(8)) ** 2)
    torch.testing.assert_close(nn.router_z_loss(torch.full((10, 8), 0.5)), wanted)


def test_importance_and_load_vanish_when_experts_are_alike():
    assert nn.importance_loss(torch.full((10, 8), 0.1)) < 1e-9
    noisy = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert nn.load_loss(torch.zeros(2, 2), noisy, torch.ones(2, 2), 1) < 1e-9


def test_layer_compiles_checkpoints_and_follows_autocast():
    layer = nn.MoE(16, 12, 8, nn.TopKRouter(16, 8, 2))
    x = torch.randn(10, 16, requires_grad=True)
    y = layer(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    compiled = torch.compile(lambda x: layer(x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), y)
    again = checkpoint(layer, x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again.sum(), x)[0], grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert layer.routing.gates.dtype == torch.float32


def test_state_dict_round_trip():
    make = lambda: nn.MoE(16, 12, 8, ROUTERS["weighted hash"](), num_shared_experts=2)  # noqa: E731
    one, two, x, ids = make(), make(), torch.randn(9, 16), torch.randint(50, (9,))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(x, ids), two(x, ids))


ERRORS = [
    pytest.param(lambda: nn.TopKRouter(4, 2, 3), r"TopKRouter: top_k must be in \[1, 2\], got 3", id="top_k"),
    pytest.param(lambda: nn.TopKRouter(4, 2, score="tanh"), "score must be one of softmax", id="score"),
    pytest.param(lambda: nn.TopKRouter(4, 8, 3, random_second=0.2), "top_k must be 2 with a random", id="second"),
    pytest.param(lambda: nn.TopKRouter(4, 8, 2, random_second=0.0), "random_second must be above 0", id="threshold"),
    pytest.param(lambda: nn.TopKRouter(4, 8).update_bias(), "bias_rate must be given to balance", id="bias"),
    pytest.param(lambda: nn.HashRouter(TABLE, 8)(torch.rand(3, 4)), "token_ids must be given, got None", id="no ids"),
    pytest.param(lambda: nn.HashRouter(TABLE, 8)(torch.rand(3, 4), torch.zeros(2).int()), "one per row", id="length"),
    pytest.param(lambda: nn.MoE(4, 4, 5, nn.TopKRouter(4, 8)), "MoE: num_experts must be 8", id="experts"),
    pytest.param(lambda: nn.MoE(4, 4, 8, nn.TopKRouter(4, 8), activation="tanh"), "activation must be", id="act"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
