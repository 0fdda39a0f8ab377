"""node_dropout and relu_dropout: the mask against its definition, and against itself however the rows are cut."""

import os

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from gossamer.graph import CSR, NodeDropout, ReLUDropout, node_dropout, relu_dropout

import reference

OPERATORS = [node_dropout, relu_dropout]
ISAS = ["scalar", "avx2", "avx512"]
SHAPES = [
    pytest.param((5, 64), id="whole vectors"),
    pytest.param((7, 37), id="tail within a block"),
    pytest.param((3, 33), id="tail of one element"),
    pytest.param((4, 1), id="one feature"),
    pytest.param((0, 8), id="no row"),
    pytest.param((4, 0), id="no feature"),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def random(shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(operator, dtype, shape):
    x = random(shape, dtype)
    node_ids = torch.arange(shape[0]) * 1_000_003 - 2
    out = operator(x, 0.3, seed=2**62 + 5, step=7, node_ids=node_ids)
    expected = reference.node_dropout(x.relu() if operator is relu_dropout else x, 0.3, 2**62 + 5, 7, node_ids)
    torch.testing.assert_close(out, expected.to(dtype))
    assert torch.equal(out == 0, expected == 0)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_bits_for_every_instruction_set(operator, dtype, monkeypatch):
    results = []
    for isa in ISAS:
        monkeypatch.setenv("GOSSAMER_ISA", isa)
        x = random((19, 75), dtype).requires_grad_()
        out = operator(x, 0.4, seed=1)
        results.append(torch.stack([out.detach(), *torch.autograd.grad(out, x, random((19, 75), dtype).flip(0))]))
    assert os.environ["GOSSAMER_ISA"] == ISAS[-1]
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("operator", OPERATORS)
def test_equal_bits_for_any_chunks_and_threads(operator):
    x = random((3000, 24))
    threads = torch.get_num_threads()
    results = []
    for num_threads in (1, 4):
        torch.set_num_threads(num_threads)
        results.append(operator(x, 0.5, seed=4))
    torch.set_num_threads(threads)
    whole = results[0]
    assert torch.equal(whole, results[1])
    chunks = [operator(part, 0.5, seed=4, first_row=first) for part, first in ((x[:1000], 0), (x[1000:], 1000))]
    assert torch.equal(whole, torch.cat(chunks))
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(2))
    assert torch.equal(whole[order], operator(x[order], 0.5, seed=4, node_ids=order))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_independence_of_the_mask(p):
    """With 2^19 draws each bound is more than 5 standard deviations of a fair generator; the seed is fixed."""
    shape = (1 << 13, 64)
    kept = node_dropout(torch.ones(shape), p, seed=11) > 0
    deviation = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - p)) < 5 * deviation
    columns = kept.double().mean(0) - (1 - p)  # one per feature, 8 times fewer draws than 2^16
    assert columns.abs().max() < 5 * (p * (1 - p) / shape[0]) ** 0.5
    for other in (
        kept.roll(1, 0),  # the node before
        kept.roll(1, 1),  # the feature before: another 16 bits of the same number
        kept.roll(4, 1),  # the number before
        node_dropout(torch.ones(shape), p, seed=12) > 0,
        node_dropout(torch.ones(shape), p, seed=11, step=1) > 0,
    ):
        covariance = (kept & other).double().mean() - (1 - p) ** 2
        assert abs(covariance) < 5 * 3 * deviation


def test_scale_is_exact_for_the_rounded_probability():
    out = node_dropout(torch.ones(4, 64, dtype=torch.float64), 1 / 3, seed=0)
    assert set(out.unique().tolist()) == {0.0, 65536 / (65536 - 21845)}


@pytest.mark.parametrize("operator", OPERATORS)
def test_gradients(operator):
    x = random((6, 9), torch.float64).requires_grad_()
    assert gradcheck(lambda x: operator(x, 0.4, seed=3), (x,))
    assert gradgradcheck(lambda x: operator(x, 0.4, seed=3), (x,))
    node_ids = torch.arange(6).flip(0)
    assert gradcheck(lambda x: operator(x, 0.4, seed=3, node_ids=node_ids), (x,))


@pytest.mark.parametrize("name", ["node_dropout", "relu_dropout"])
def test_opcheck(name):
    x = random((6, 9)).requires_grad_()
    torch.library.opcheck(getattr(torch.ops.gossamer, name), (x, 0.4, 3, 1, torch.arange(6), 0))
    torch.library.opcheck(torch.ops.gossamer.relu_dropout_backward, (x, x.detach().relu(), 0.4))


def test_extremes():
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), -0.0]]).repeat(64, 1)
    torch.testing.assert_close(relu_dropout(x, 0.0, seed=0), x.relu(), equal_nan=True)
    out = relu_dropout(x, 0.5, seed=0)
    kept = node_dropout(torch.ones_like(x), 0.5, seed=0) > 0
    torch.testing.assert_close(out, torch.where(kept, x.relu(), 0.0), equal_nan=True)
    assert torch.equal(node_dropout(x, 1.0, seed=0), torch.zeros_like(x))
    assert node_dropout(x, 0.5, seed=0, training=False) is x
    strided = random((8, 6)).T
    assert torch.equal(node_dropout(strided, 0.5, seed=0), node_dropout(strided.contiguous(), 0.5, seed=0))


@pytest.mark.parametrize("operator", OPERATORS)
def test_wrong_arguments(operator):
    x, name = random((4, 3)), operator.__name__
    with pytest.raises(TypeError, match=f"{name}: x must be floating point, got torch.int64"):
        operator(x.long(), 0.5, seed=0)
    with pytest.raises(ValueError, match=f"{name}: x must have 2 dimensions, got 1"):
        operator(x[0], 0.5, seed=0)
    with pytest.raises(ValueError, match=rf"{name}: p must be in \[0, 1\], got -0.1"):
        operator(x, -0.1, seed=0)
    with pytest.raises(TypeError, match=f"{name}: node_ids must be int64, got torch.int32"):
        operator(x, 0.5, seed=0, node_ids=torch.arange(4, dtype=torch.int32))
    with pytest.raises(ValueError, match=rf"{name}: node_ids must be of shape \(4,\), got \(3,\)"):
        operator(x, 0.5, seed=0, node_ids=torch.arange(3))


class Chunk:
    """What the pipelined engine gives a layer in place of the graph."""

    def __init__(self, node_ids, step):
        self.node_ids, self.step = node_ids, step


@pytest.mark.parametrize("module_class", [NodeDropout, ReLUDropout])
def test_module_takes_nodes_and_step_from_a_chunk(module_class):
    x = random((10, 8))
    graph = CSR.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 10)
    module = module_class(0.5, seed=6)
    steps = [module(graph, x) for _ in range(3)]
    assert module.step == 3
    assert not torch.equal(steps[0], steps[1])
    order = torch.tensor([3, 1, 9])
    assert torch.equal(module(Chunk(order, step=1), x[order]), steps[1][order])
    assert module.step == 3
    expected = x.relu() if module_class is ReLUDropout else x
    assert torch.equal(module.eval()(graph, x), expected)
    assert module.step == 3
