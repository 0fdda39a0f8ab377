"""Top-k gating against a stable sort in float64, and its places against a loop over routes."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.library import opcheck

from gossamer.sparse_nn import RoutePlan, combine, dispatch, top_k_gate

import reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}  # of a gate
ISAS = ["scalar", "avx2", "avx512"]
NAN, INF = math.nan, math.inf

CASES = [  # tokens, experts, k
    pytest.param(40, 256, 6, id="whole vectors"),
    pytest.param(300, 16, 4, id="more tokens than a block"),
    pytest.param(9, 5, 2, id="fewer experts than a vector"),
    pytest.param(21, 133, 12, id="tails"),
    pytest.param(5, 70, 67, id="more choices than are ranked at once"),
    pytest.param(7, 12, 12, id="every expert"),
    pytest.param(6, 1, 1, id="one expert"),
    pytest.param(1, 64, 1, id="one token, one choice"),
    pytest.param(0, 8, 2, id="no tokens"),
]
SETTINGS = {
    "softmax": {},
    "softmax, normalized": {"normalize": True, "scale": 2.5},
    "sigmoid": {"score": "sigmoid", "normalize": True},
    "sqrt_softplus": {"score": "sqrt_softplus", "scale": 0.5},
}


def logits_of(num_tokens, num_experts, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(num_tokens, num_experts, generator=generator)).to(dtype)


def differentiated(logits, k, **settings):
    """Gates, score sums, and the gradient of a weighted sum of both."""
    logits = logits.clone().requires_grad_()
    gating = top_k_gate(logits, k, score_sums=True, **settings)
    return gating, gradient(gating.gates, gating.score_sums, logits)


def gradient(gates, score_sums, logits):
    weight = torch.linspace(-1, 2, gates.numel(), dtype=torch.float64).view_as(gates)
    each = torch.linspace(1, -1, score_sums.numel(), dtype=torch.float64)
    return torch.autograd.grad((gates * weight).sum() + (score_sums * each).sum(), logits)[0]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("num_tokens", "num_experts", "k"), CASES)
def test_top_k_gate_matches_reference(num_tokens, num_experts, k, name, isa, dtype, monkeypatch):
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    logits = logits_of(num_tokens, num_experts, dtype)
    gating, grad = differentiated(logits, k, **SETTINGS[name])
    leaf = logits.double().requires_grad_()
    ids, gates, sums = reference.top_k_gate(leaf, k, **SETTINGS[name])
    tolerance = TOLERANCE[dtype]
    assert torch.equal(gating.plan.expert_ids, ids)
    torch.testing.assert_close(gating.gates.double(), gates, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gating.score_sums.double(), sums, rtol=tolerance, atol=num_tokens * tolerance)
    torch.testing.assert_close(grad.double(), gradient(gates, sums, leaf), rtol=10 * tolerance, atol=10 * tolerance)
    assert torch.equal(gating.locations, reference.locations(ids, num_tokens * k))


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("num_groups", "top_groups", "k"), [(1, 1, 3), (4, 2, 6), (8, 1, 2), (32, 5, 5)])
def test_bias_and_groups_choose_and_do_not_weigh(num_groups, top_groups, k, isa, score, monkeypatch):
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    logits = logits_of(50, 32, torch.float64)
    bias = torch.linspace(-0.3, 0.3, 32, dtype=torch.float64)
    settings = {"score": score, "bias": bias, "normalize": True, "num_groups": num_groups, "top_groups": top_groups}
    gating, grad = differentiated(logits, k, **settings)
    leaf = logits.clone().requires_grad_()
    ids, gates, sums = reference.top_k_gate(leaf, k, **settings)
    assert torch.equal(gating.plan.expert_ids, ids)
    torch.testing.assert_close(gating.gates, gates)
    torch.testing.assert_close(grad, gradient(gates, sums, leaf))


@pytest.mark.parametrize("first_choices_first", [False, True], ids=["token order", "first choices first"])
@pytest.mark.parametrize("capacity", [0, 1, 5, 1000])
def test_capacity_keeps_the_first_routes_of_every_expert(capacity, first_choices_first):
    logits = logits_of(60, 8)
    gating = top_k_gate(logits, 3, capacity=capacity, first_choices_first=first_choices_first)
    ids, plan = gating.plan.expert_ids, gating.plan
    assert torch.equal(gating.locations, reference.locations(ids, capacity, first_choices_first))
    assert torch.equal(plan.counts, ids.flatten().bincount(minlength=8).clamp(max=capacity).int())
    places = plan.offsets[ids.long()] + gating.locations
    assert torch.equal(plan.inverse.view_as(ids), torch.where(gating.locations >= 0, places, -1))
    assert torch.equal(plan.inverse[plan.order.long()], torch.arange(plan.num_routes).int())
    if not first_choices_first:
        wanted = RoutePlan.from_expert_ids(ids, 8, capacity=capacity)
        assert torch.equal(plan.order, wanted.order)


def test_capacity_that_drops_nothing_is_dropless():
    logits, x = logits_of(60, 8), logits_of(60, 16, seed=1)
    outputs = []
    for settings in ({}, {"capacity": 60}, {"capacity": 60, "first_choices_first": True}):
        gating = top_k_gate(logits, 3, **settings)
        outputs.append(combine(dispatch(x, gating.plan), gating.plan, gating.gates))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_all_tokens_to_one_expert():
    logits = torch.zeros(100, 8)
    logits[:, 3] = 50
    gating = top_k_gate(logits, 1, capacity=10)
    assert torch.equal(gating.plan.offsets, torch.tensor([0, 0, 0, 0, 10, 10, 10, 10, 10]).int())
    assert torch.equal(gating.locations[:, 0], torch.tensor([*range(10), *[-1] * 90]).int())


@pytest.mark.parametrize("isa", ISAS)
def test_of_equal_scores_the_lower_expert_comes_first(isa, monkeypatch):
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    ids = top_k_gate(torch.zeros(3, 200), 9).plan.expert_ids
    assert torch.equal(ids, torch.arange(9).int().expand(3, 9))
    signed = torch.tensor([[-0.0, 0.0, -0.0, 0.0]])
    assert torch.equal(top_k_gate(signed, 4).plan.expert_ids, torch.arange(4).int()[None])
    large = torch.tensor([[40.0, 90.0, 60.0]])  # sigmoid rounds all of them to 1, and the logits still order them
    assert torch.equal(top_k_gate(large, 3, score="sigmoid").plan.expert_ids, torch.tensor([[1, 2, 0]]).int())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus"])
def test_nan_and_infinity_are_as_in_torch(score, dtype, isa, monkeypatch):
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    rows = [[1, NAN, 2, NAN], [-INF, 3, -INF, -INF], [-INF] * 4, [INF, 1, 2, 3], [5e4, -5e4, 0, 1], [-NAN, 1, 2, 3]]
    logits = torch.tensor(rows, dtype=dtype)
    gating = top_k_gate(logits, 3, score=score)
    ids, gates, _ = reference.top_k_gate(logits, 3, score)
    assert torch.equal(gating.plan.expert_ids, ids)
    torch.testing.assert_close(gating.gates.double(), gates, rtol=1e-6, atol=1e-12, equal_nan=True)


def test_gradients_of_extreme_logits_are_finite():
    logits = torch.tensor([[-2000.0, 2000.0, 0.0, -INF]])
    for score in ("softmax", "sigmoid", "sqrt_softplus"):
        assert differentiated(logits, 3, score=score, normalize=True)[1].isfinite().all()


@pytest.mark.parametrize("seed", range(40))
def test_random_problems(seed):
    """Random sizes, coarse logits with many ties, a capacity."""
    draw = lambda low, high: int(torch.randint(low, high, (), generator=generator))  # noqa: E731
    generator = torch.Generator().manual_seed(seed)
    num_tokens, num_experts = draw(0, 300), draw(1, 150)
    k, capacity = draw(1, num_experts + 1), draw(0, 40)
    logits = torch.randint(-3, 4, (num_tokens, num_experts), generator=generator).double()
    gating = top_k_gate(logits, k, normalize=True, capacity=capacity)
    ids, gates, _ = reference.top_k_gate(logits, k, normalize=True)
    assert torch.equal(gating.plan.expert_ids, ids)
    torch.testing.assert_close(gating.gates, gates)
    assert torch.equal(gating.locations, reference.locations(ids, capacity))


@pytest.mark.parametrize("name", SETTINGS)
def test_threads_and_other_tokens_change_no_bit(name):
    logits = logits_of(2000, 64)
    results = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        gating, grad = differentiated(logits, 6, capacity=150, **SETTINGS[name])
        results.append((gating.gates, gating.locations, gating.plan.order, gating.score_sums, grad))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results))
    alone = top_k_gate(logits[7:8], 6, **SETTINGS[name])
    assert torch.equal(alone.gates, results[0][0][7:8])


@pytest.mark.parametrize("name", SETTINGS)
def test_gates_do_not_depend_on_score_sums(name):
    logits = logits_of(20, 33)
    assert torch.equal(
        top_k_gate(logits, 4, **SETTINGS[name]).gates, top_k_gate(logits, 4, score_sums=True, **SETTINGS[name]).gates
    )


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("sums", [False, True], ids=["gates", "gates and sums"])
def test_operators_pass_opcheck_and_gradcheck(name, sums):
    logits = logits_of(5, 7, torch.float64).requires_grad_()
    settings = {"score": "softmax", "normalize": False, "scale": 1.0} | SETTINGS[name]
    arguments = (logits, None, 3, settings["score"], settings["normalize"], settings["scale"], 1, 1, 2, sums)
    opcheck(torch.ops.gossamer.top_k_gate, arguments)
    gates, ids, *_, normalizers, score_sums = torch.ops.gossamer.top_k_gate(logits.detach(), *arguments[1:])
    saved = (gates, score_sums if sums else None, logits.detach(), ids, normalizers, *arguments[3:6])
    opcheck(torch.ops.gossamer.top_k_gate_backward, saved)

    def call(logits):
        gating = top_k_gate(logits, 3, score_sums=sums, **settings)
        return (gating.gates, gating.score_sums) if sums else gating.gates

    assert gradcheck(call, logits)


def test_unused_outputs_need_no_gradient():
    logits = logits_of(5, 7).requires_grad_()
    gating = top_k_gate(logits, 2, score_sums=True)
    (alone,) = torch.autograd.grad(gating.score_sums[1], logits)
    torch.testing.assert_close(alone, torch.autograd.grad(logits.softmax(1).sum(0)[1], logits)[0])


def test_compiles():
    logits = logits_of(9, 16).requires_grad_()
    call = lambda x: top_k_gate(x, 3, normalize=True).gates  # noqa: E731
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(logits), call(logits))


L = logits_of(4, 8)
WRONG = [
    pytest.param((L.half(), 2), {}, TypeError, "logits must be float32 or float64, got torch.float16", id="type"),
    pytest.param((L[0], 2), {}, ValueError, r"logits must be \[num_tokens, E\]", id="shape"),
    pytest.param((L[:, :0], 1), {}, ValueError, "at least one expert", id="no experts"),
    pytest.param((L, 0), {}, ValueError, r"k must be in \[1, 8\], got 0", id="k 0"),
    pytest.param((L, 9), {}, ValueError, r"k must be in \[1, 8\], got 9", id="k 9"),
    pytest.param((L, 2), {"score": "tanh"}, ValueError, "score must be one of softmax", id="score"),
    pytest.param((L, 2), {"bias": L[0, :3]}, ValueError, r"bias must be \[8\], got \(3,\)", id="bias"),
    pytest.param((L, 2), {"num_groups": 3}, ValueError, "num_groups must be a divisor of 8, got 3", id="groups"),
    pytest.param((L, 1), {"num_groups": 2, "top_groups": 3}, ValueError, r"top_groups must be in \[1, 2\]", id="top"),
    pytest.param((L, 5), {"num_groups": 2}, ValueError, r"k must be in \[1, 4\], got 5", id="k within groups"),
    pytest.param((L, 2), {"capacity": -1}, ValueError, "capacity must be at least 0, got -1", id="capacity"),
]


@pytest.mark.parametrize(("arguments", "settings", "kind", "message"), WRONG)
def test_wrong_arguments_are_refused(arguments, settings, kind, message):
    with pytest.raises(kind, match=message):
        top_k_gate(*arguments, **settings)
