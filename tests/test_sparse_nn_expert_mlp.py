"""The experts: values and gradients against a loop in float64, and what must not change a single bit."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.library import opcheck
from torch.nn import functional

from gossamer.sparse_nn import RoutePlan, expert_mlp

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}  # relative to the largest entry
ISAS = ["scalar", "avx2", "avx512", "avx512_bf16"]
ACTIVATIONS = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "swiglu": lambda h: functional.silu(h.chunk(2, -1)[0]) * h.chunk(2, -1)[1],
}


def reference(x, plan, w_in, w_out, gates, activation):
    x, w_in, w_out = x.double(), w_in.double(), w_out.double()
    routes = [[] for _ in range(plan.num_tokens)]
    for p, route in enumerate(plan.order.tolist()):
        e = int((plan.offsets <= p).sum()) - 1
        y = w_out[e] @ ACTIVATIONS[activation](w_in[e] @ x[route // plan.top_k])
        routes[route // plan.top_k].append(y if gates is None else gates.double().flatten()[route] * y)
    zero = 0 * (x.sum() + w_in.sum() + w_out.sum() + (0 if gates is None else gates.sum()))
    return torch.stack([sum(ys, zero + torch.zeros_like(x[0])) for ys in routes])


def problem(num_tokens, k, num_experts, d, f, *, dtype=torch.float32, activation="swiglu", ids=None, capacity=None):
    generator = torch.Generator().manual_seed(7)
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    ids = torch.randint(num_experts, (num_tokens, k), generator=generator) if ids is None else ids
    hidden = 2 * f if activation == "swiglu" else f
    x, w_in, w_out = randn(num_tokens, d), randn(num_experts, hidden, d) / d**0.5, randn(num_experts, d, f) / f**0.5
    gates = torch.rand(num_tokens, k, generator=generator).to(
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    leaves = [t.to(dtype).requires_grad_() for t in (x, w_in, w_out)] + [gates.requires_grad_()]
    return leaves, RoutePlan.from_expert_ids(ids, num_experts, capacity=capacity)


def outputs(leaves, plan, activation, function=expert_mlp):
    x, w_in, w_out, gates = leaves
    if function is reference:
        out = reference(x, plan, w_in, w_out, gates, activation)
    else:
        out = expert_mlp(x, plan, w_in, w_out, gates=gates, activation=activation)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


def assert_near(got, wanted, dtype):
    for name, a, b in zip(("out", "x", "w_in", "w_out", "gates"), got, wanted):
        scale = b.double().abs().max().clamp(min=1e-30)
        error = ((a.double() - b.double()).abs().max() / scale).item()
        assert error <= TOLERANCE[dtype], (name, error)


CASES = [
    pytest.param({"num_tokens": 9, "k": 2, "num_experts": 3, "d": 7, "f": 5}, id="smaller than a vector"),
    pytest.param({"num_tokens": 23, "k": 2, "num_experts": 5, "d": 67, "f": 75}, id="tails everywhere"),
    pytest.param({"num_tokens": 8, "k": 3, "num_experts": 16, "d": 64, "f": 64}, id="empty experts"),
    pytest.param(
        {"num_tokens": 40, "k": 2, "num_experts": 3, "d": 32, "f": 130, "ids": torch.ones(40, 2, dtype=torch.int64)},
        id="all tokens to one expert, duplicate routes",
    ),
    pytest.param({"num_tokens": 30, "k": 2, "num_experts": 3, "d": 32, "f": 16, "capacity": 4}, id="dropped routes"),
    pytest.param({"num_tokens": 1, "k": 1, "num_experts": 1, "d": 1, "f": 1}, id="one of everything"),
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_match_reference(case, activation, dtype):
    leaves, plan = problem(**case, activation=activation, dtype=dtype)
    assert_near(outputs(leaves, plan, activation), outputs(leaves, plan, activation, reference), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_instruction_sets_match_reference(isa, dtype, monkeypatch):
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    leaves, plan = problem(21, 2, 3, 67, 75, dtype=dtype)
    assert_near(outputs(leaves, plan, "swiglu"), outputs(leaves, plan, "swiglu", reference), dtype)


def test_weight_gradients_of_many_rows_are_summed_in_parts():
    leaves, plan = problem(1100, 1, 2, 6, 5, ids=torch.zeros(1100, 1, dtype=torch.int64))
    x, w_in, w_out, gates = (t.detach().double().requires_grad_() for t in leaves)
    hidden = functional.linear(x, w_in[0])
    wanted = gates * functional.linear(ACTIVATIONS["swiglu"](hidden), w_out[0])
    weight = torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64).view_as(wanted)
    grads = torch.autograd.grad((wanted * weight).sum(), (x, w_in, w_out, gates))
    assert_near(outputs(leaves, plan, "swiglu"), [wanted, *grads], torch.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation):
    leaves, plan = problem(5, 2, 3, 4, 3, dtype=torch.float64, activation=activation)
    call = lambda x, w_in, w_out, g: expert_mlp(x, plan, w_in, w_out, gates=g, activation=activation)  # noqa: E731
    assert gradcheck(call, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_number_of_threads_changes_no_bit(dtype):
    leaves, plan = problem(60, 2, 5, 150, 140, dtype=dtype)
    results = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        results.append(outputs(leaves, plan, "swiglu"))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_tokens_in_the_batch_change_no_bit(dtype):
    (x, w_in, w_out, gates), plan = problem(150, 2, 3, 100, 70, dtype=dtype)  # experts of few and of many rows

    def first_rows(n):
        part = RoutePlan.from_expert_ids(plan.expert_ids[:n], 3)
        x_n, gates_n = x[:n].detach().requires_grad_(), gates[:n].detach().requires_grad_()
        out = expert_mlp(x_n, part, w_in, w_out, gates=gates_n)
        return [t[:3] for t in (out, *torch.autograd.grad(out.float().sin().sum(), (x_n, gates_n)))]

    for n in (3, 7, 40):
        assert all(torch.equal(a, b) for a, b in zip(first_rows(n), first_rows(150)))


def test_one_expert_is_a_dense_network():
    (x, w_in, w_out, _), plan = problem(12, 1, 1, 40, 30)
    dense = functional.linear(ACTIVATIONS["swiglu"](functional.linear(x, w_in[0])), w_out[0])
    torch.testing.assert_close(expert_mlp(x, plan, w_in, w_out), dense, rtol=1e-5, atol=1e-5)


def test_capacity_that_drops_nothing_is_dropless():
    (x, w_in, w_out, gates), plan = problem(30, 2, 4, 24, 20)
    roomy = RoutePlan.from_expert_ids(plan.expert_ids, 4, capacity=60)
    a, b = (expert_mlp(x, p, w_in, w_out, gates=gates) for p in (plan, roomy))
    assert torch.equal(a, b)


def test_experts_without_tokens_get_zero_gradients():
    leaves, plan = problem(6, 1, 4, 8, 8, ids=torch.full((6, 1), 2))
    for grad in outputs(leaves, plan, "swiglu")[2:4]:
        assert grad[2].abs().sum() > 0
        assert grad[[0, 1, 3]].abs().sum() == 0


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_limit_of_swiglu(isa, dtype, monkeypatch):
    """Gate rows bounded from above, the others from both sides; no gradient beyond."""
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    leaves, plan = problem(21, 2, 3, 67, 75, dtype=dtype)

    def clamped(h):
        gate, up = h.chunk(2, -1)
        return functional.silu(gate.clamp(max=0.5)) * up.clamp(-0.5, 0.5)

    x, w_in, w_out, gates = leaves
    out = expert_mlp(x, plan, w_in, w_out, gates=gates, swiglu_limit=0.5)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype)
    found = [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]
    monkeypatch.setitem(ACTIVATIONS, "swiglu", clamped)
    if dtype == torch.bfloat16:  # which side of the limit a rounded pre-activation is on decides its gradient
        assert_near(found[:1], outputs(leaves, plan, "swiglu", reference)[:1], dtype)
    else:
        assert_near(found, outputs(leaves, plan, "swiglu", reference), dtype)


def test_no_tokens():
    leaves, plan = problem(0, 2, 3, 8, 8)
    out = expert_mlp(*leaves[:1], plan, *leaves[1:3], gates=leaves[3])
    assert out.shape == (0, 8)
    assert all(g.abs().sum() == 0 for g in torch.autograd.grad(out.sum(), leaves))


def test_weights_are_not_modified_and_changes_in_place_are_honoured():
    (x, w_in, w_out, gates), plan = problem(10, 2, 3, 32, 32)
    before = [t.detach().clone() for t in (x, w_in, w_out)]
    with torch.no_grad():
        out = expert_mlp(x, plan, w_in, w_out, gates=gates)
        assert all(torch.equal(a, b) for a, b in zip(before, (x, w_in, w_out)))
        w_out.mul_(2)
        torch.testing.assert_close(expert_mlp(x, plan, w_in, w_out, gates=gates), 2 * out)


def test_backward_keeps_the_rows_and_the_pre_activations_only():
    (x, w_in, w_out, gates), plan = problem(64, 2, 4, 128, 64)
    params = {t.data_ptr() for t in (w_in, w_out, gates, plan.order, plan.offsets)}
    sizes = {}

    def pack(t):
        if t.data_ptr() not in params:
            sizes[t.data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        expert_mlp(x, plan, w_in, w_out, gates=gates)
    assert sum(sizes.values()) <= 1.05 * (64 * 128 + 64 * 2 * 2 * 64)


def test_compile_and_autocast():
    (x, w_in, w_out, gates), plan = problem(10, 2, 3, 32, 32)
    call = lambda x: expert_mlp(x, plan, w_in, w_out, gates=gates)  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), call(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert call(x).dtype == torch.bfloat16


def test_operators_pass_opcheck():
    (x, w_in, w_out, gates), plan = problem(5, 2, 3, 8, 6)
    opcheck(torch.ops.gossamer.expert_mlp, (x, plan.order, plan.offsets, gates, w_in, w_out, 2, "swiglu", 1.0, True))
    detached = [t.detach() for t in (x, gates, w_in, w_out)]
    x, gates, w_in, w_out = detached
    hidden = torch.randn(10, 12)
    opcheck(
        torch.ops.gossamer.expert_mlp_backward,
        (x, x, plan.order, plan.offsets, gates, w_in, w_out, hidden, 2, "swiglu", 1.0, True),
    )


def error_cases():
    (x, w_in, w_out, gates), plan = problem(6, 2, 3, 8, 4)
    return [
        pytest.param((x[:5], plan, w_in, w_out), {}, ValueError, r"x must be \[6, d\], got \(5, 8\)", id="x"),
        pytest.param((x, plan, w_in[:, :4], w_out), {}, ValueError, r"w_in must be \[3, 8, 8\] for swiglu", id="w_in"),
        pytest.param((x, plan, w_in, w_out[:2]), {}, ValueError, r"w_out must be \[3, 8, f\]", id="w_out"),
        pytest.param((x, plan, w_in.double(), w_out), {}, TypeError, "w_in must be torch.float32 like x", id="dtype"),
        pytest.param((x, plan, w_in, w_out), {"activation": "tanh"}, ValueError, "activation must be", id="activation"),
        pytest.param(
            (x, plan, w_in, w_out), {"swiglu_limit": 0.0}, ValueError, "swiglu_limit must be above 0", id="limit"
        ),
        pytest.param((x, plan, w_in, w_out), {"gates": gates[:, :1]}, ValueError, "gates must be", id="gates"),
    ]


@pytest.mark.parametrize(("args", "kwargs", "kind", "message"), error_cases())
def test_wrong_arguments_are_refused(args, kwargs, kind, message):
    with pytest.raises(kind, match=message):
        expert_mlp(*args, **kwargs)
