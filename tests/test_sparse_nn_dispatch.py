"""Dispatch and combine: rows to the order of a plan and back."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.library import opcheck

from gossamer.sparse_nn import RoutePlan, combine, dispatch

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
ISAS = ["scalar", "avx2", "avx512", "avx512_bf16"]


def plan_of(num_tokens, k, num_experts, capacity=None):
    generator = torch.Generator().manual_seed(num_tokens)
    ids = torch.randint(num_experts, (num_tokens, k), generator=generator)
    return RoutePlan.from_expert_ids(ids, num_experts, capacity=capacity)


def dispatch_reference(x, plan):
    return torch.stack([x[r // plan.top_k] for r in plan.order.tolist()]) if plan.num_routes else x[:0]


def combine_reference(y, plan, gates):
    out = y.new_zeros(plan.num_tokens, y.shape[1], dtype=torch.float64)
    for position, route in enumerate(plan.order.tolist()):
        gate = 1.0 if gates is None else gates.double().flatten()[route]
        out[route // plan.top_k] += gate * y[position].double()
    return out


SHAPES = [
    pytest.param(5, 2, 3, 7, None, id="small odd"),
    pytest.param(40, 3, 8, 300, None, id="several vector blocks and a tail"),
    pytest.param(40, 3, 4, 64, 5, id="dropped routes"),
    pytest.param(3, 1, 1, 16, 0, id="all routes dropped"),
    pytest.param(0, 2, 4, 16, None, id="no tokens"),
    pytest.param(6, 2, 4, 0, None, id="no columns"),
    pytest.param(6, 4, 2, 33, None, id="duplicate routes"),
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("num_tokens", "k", "num_experts", "dim", "capacity"), SHAPES)
def test_dispatch_and_combine_match_reference(num_tokens, k, num_experts, dim, capacity, dtype):
    plan = plan_of(num_tokens, k, num_experts, capacity)
    x = torch.randn(num_tokens, dim).to(dtype)
    y = dispatch(x, plan)
    assert torch.equal(y, dispatch_reference(x, plan))
    for gates in (None, torch.rand(num_tokens, k)):
        out = combine(y, plan, gates)
        assert out.dtype == dtype
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(out.double(), combine_reference(y, plan, gates), rtol=tolerance, atol=tolerance)


def test_large_results_take_the_streaming_path():
    plan = plan_of(700, 8, 4)
    x = torch.randn(700, 512)  # 11 MB of rows
    assert torch.equal(dispatch(x, plan), x[plan.token_ids.long()])


@pytest.mark.parametrize("capacity", [None, 2])
def test_gradients(capacity):
    plan = plan_of(6, 2, 3, capacity)
    x = torch.randn(6, 19, dtype=torch.float64, requires_grad=True)
    y = torch.randn(plan.num_routes, 19, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: dispatch(x, plan), (x,))
    assert gradcheck(lambda y, g: combine(y, plan, g), (y, gates))
    assert gradcheck(lambda y: combine(y, plan), (y,))


@pytest.mark.parametrize("isa", ISAS)
def test_instruction_sets_agree(isa, monkeypatch):
    plan, x, gates = plan_of(9, 2, 3), torch.randn(9, 131, requires_grad=True), torch.rand(9, 2, requires_grad=True)

    def results():
        out = combine(dispatch(x, plan) * 2, plan, gates)
        return (out, *torch.autograd.grad(out.square().sum(), (x, gates)))

    wanted = results()
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    torch.testing.assert_close(results(), wanted, rtol=1e-5, atol=1e-4)


def test_the_number_of_threads_changes_no_bit():
    plan, x, gates = (
        plan_of(300, 4, 8),
        torch.randn(300, 100, requires_grad=True),
        torch.rand(300, 4, requires_grad=True),
    )
    results = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        out = combine(dispatch(x, plan), plan, gates)
        results.append((out, *torch.autograd.grad(out.sin().sum(), (x, gates))))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_operators_pass_opcheck():
    plan = plan_of(4, 2, 3)
    x, y = torch.randn(4, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    gates = torch.rand(4, 2, requires_grad=True)
    opcheck(torch.ops.gossamer.dispatch, (x, plan.order, plan.inverse, 2))
    opcheck(torch.ops.gossamer.combine, (y, plan.inverse, gates, 2))
    opcheck(torch.ops.gossamer.combine, (y, plan.inverse, None, 2))
    opcheck(torch.ops.gossamer.combine_backward, (x.detach(), y.detach(), plan.inverse, gates.detach()))


PLAN = plan_of(4, 2, 3)
ERRORS = [
    pytest.param(lambda: dispatch(torch.rand(5, 8), PLAN), r"dispatch: x must be \[4, dim\], got \(5, 8\)", id="x"),
    pytest.param(lambda: combine(torch.rand(7, 8), PLAN), r"combine: y must be \[8, dim\]", id="y"),
    pytest.param(lambda: combine(torch.rand(8, 8), PLAN, torch.rand(4)), r"gates must be \[4, 2\]", id="gates"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_wrong_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_plan_with_wrong_indices_is_refused():
    plan = RoutePlan(PLAN.expert_ids, PLAN.order + 1000, PLAN.offsets, PLAN.inverse + 1000)
    with pytest.raises(RuntimeError, match="dispatch: plan must be of this x"):
        dispatch(torch.rand(4, 8), plan)
    with pytest.raises(RuntimeError, match="combine: plan must be of this y"):
        combine(torch.rand(8, 8), plan)
