"""Gates of hash-selected experts against the dense router in float64."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.library import opcheck

from gossamer.sparse_nn import hash_gate, random_table

import reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-5}  # of a gate; inputs are exact
GRADIENT_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of the largest entry
ISAS = ["scalar", "avx2", "avx512", "avx512_bf16"]
VOCAB = 40

CASES = [
    pytest.param(9, 5, 2, 7, id="smaller than a vector"),
    pytest.param(21, 16, 6, 131, id="tails"),
    pytest.param(5, 16, 11, 64, id="more choices than a block"),
    pytest.param(1, 4, 1, 33, id="one token, one choice: every gate is the scale"),
    pytest.param(0, 4, 2, 8, id="no tokens"),
    pytest.param(30, 1, 1, 16, id="all tokens to one expert"),
]


def problem(num_tokens, num_experts, k, dim, dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(num_tokens, dim, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(num_experts, dim, generator=generator).to(dtype).requires_grad_()
    ids = torch.randint(VOCAB, (num_tokens,), generator=generator)
    return x, weight, random_table(VOCAB, num_experts, k, seed=1), ids


def gradients(gates, leaves):
    weight = torch.linspace(-1, 2, gates.numel(), dtype=torch.float64).view_as(gates)
    return torch.autograd.grad((gates * weight).sum(), leaves)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("num_tokens", "num_experts", "k", "dim"), CASES)
def test_hash_gate_matches_reference(num_tokens, num_experts, k, dim, isa, dtype, monkeypatch):
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    x, weight, table, ids = problem(num_tokens, num_experts, k, dim, dtype)
    expert_ids, gates = hash_gate(x, weight, table, ids, scale=1.5)
    wanted_ids, wanted = reference.hash_gate(x, weight, table, ids, 1.5)
    assert torch.equal(expert_ids, wanted_ids)
    torch.testing.assert_close(gates.double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for got, expected in zip(gradients(gates, (x, weight)), gradients(wanted, (x, weight))):
        error = (got.double() - expected.double()).abs()
        assert error.numel() == 0 or error.max() <= GRADIENT_TOLERANCE[dtype] * expected.abs().max() + 1e-6


def test_extreme_logits_stay_finite():
    """softplus of 2000 is 2000, of -2000 is 0: then the gates are 0 and so is their gradient."""
    weight = torch.tensor([[2000.0], [-2000.0], [-1999.0]], requires_grad=True)
    x = torch.ones(2, 1, requires_grad=True)
    _, gates = hash_gate(x, weight, torch.tensor([[0, 1], [1, 2]]), torch.tensor([0, 1]))
    assert torch.equal(gates, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert all(grad.isfinite().all() for grad in gradients(gates, (x, weight)))


def test_mixed_types_are_taken_in_float32():
    x, weight, table, ids = problem(9, 5, 2, 7)
    x = x.detach().bfloat16()
    assert torch.equal(hash_gate(x, weight, table, ids)[1], hash_gate(x.float(), weight, table, ids)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_and_other_tokens_change_no_bit(dtype):
    x, weight, table, ids = problem(60, 8, 6, 700, dtype)
    results = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        gates = hash_gate(x, weight, table, ids)[1]
        results.append((gates, *gradients(gates, (x, weight))))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results))
    assert torch.equal(hash_gate(x[:3], weight, table, ids[:3])[1], results[0][0][:3])


@pytest.mark.parametrize("table_type", [torch.int16, torch.int32, torch.int64], ids=str)
def test_operators_pass_opcheck_and_gradcheck(table_type):
    x, weight, table, ids = problem(5, 4, 3, 6, torch.float64)
    table = table.to(table_type)
    opcheck(torch.ops.gossamer.hash_gate, (x, weight, table, ids, 1.5))
    gates, logits, expert_ids = torch.ops.gossamer.hash_gate(x.detach(), weight.detach(), table, ids, 1.5)
    saved = (gates, x.detach(), weight.detach(), expert_ids, logits, 1.5)
    opcheck(torch.ops.gossamer.hash_gate_backward, saved)
    assert gradcheck(lambda x, weight: hash_gate(x, weight, table, ids, scale=1.5)[1], (x, weight))


def test_gates_without_gradients_are_those_with_them():
    weight = WEIGHT.clone().requires_grad_()
    ids, gates = hash_gate(X, weight, TABLE, IDS)
    assert gates.requires_grad
    with torch.no_grad():
        same_ids, same_gates = hash_gate(X, weight, TABLE, IDS)
    assert torch.equal(ids, same_ids)
    assert torch.equal(gates, same_gates)


def test_compiles():
    x, weight, table, ids = problem(9, 5, 2, 7)
    call = lambda x: hash_gate(x, weight, table, ids)[1]  # noqa: E731
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(x), call(x))


X, WEIGHT, TABLE, IDS = problem(4, 5, 2, 8)
WRONG = [
    pytest.param((X[0], WEIGHT, TABLE, IDS), ValueError, r"x must be \[num_tokens, d\]", id="x"),
    pytest.param((X, WEIGHT[:, :3], TABLE, IDS), ValueError, r"weight must be \[E, 8\], got \(5, 3\)", id="weight"),
    pytest.param((X, WEIGHT, TABLE[0], IDS), ValueError, r"table must be \[vocab_size, k\]", id="table"),
    pytest.param((X, WEIGHT, TABLE.float(), IDS), TypeError, "table must be int32 or int64", id="table type"),
    pytest.param((X, WEIGHT, TABLE, IDS[:3]), ValueError, r"token_ids must be \[4\], got \(3,\)", id="length"),
    pytest.param((X, WEIGHT, TABLE, IDS.float()), TypeError, "token_ids must be int32 or int64", id="ids type"),
    pytest.param((X, WEIGHT, TABLE, IDS + VOCAB), ValueError, r"token_ids must be in \[0, vocab_size\)", id="range"),
    pytest.param((X, WEIGHT, TABLE + 5, IDS), ValueError, r"table entries in \[0, num_experts\)", id="entries"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), WRONG)
def test_wrong_arguments_are_refused(arguments, kind, message):
    with pytest.raises(kind, match=message):
        hash_gate(*arguments)
