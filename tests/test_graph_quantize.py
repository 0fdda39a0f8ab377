"""quantize_rows: every code against its definition, the mean against x, and rows that are not numbers."""

import pytest
import torch

from gossamer.graph import dequantize_rows, quantize_rows

import reference

ISAS = ["scalar", "avx2", "avx512"]
SHAPES = [
    pytest.param((5, 64), id="whole vectors"),
    pytest.param((7, 37), id="odd tail"),
    pytest.param((4, 1), id="one feature"),
    pytest.param((0, 8), id="no row"),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
both = pytest.mark.parametrize("bits", [8, 4])


def random(shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def round_trip(x, bits, seed=0, step=0):
    codes, scale = quantize_rows(x, bits, seed=seed, step=step)
    assert codes.shape == (len(x), -(-x.shape[1] * bits // 8))
    return dequantize_rows(codes, scale, x.shape[1], bits, dtype=x.dtype)


@both
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, bits):
    x = random(shape, torch.float64)
    expected = reference.quantize_rows(x, bits, 2**62 + 5, 7)
    torch.testing.assert_close(round_trip(x, bits, 2**62 + 5, 7), expected, rtol=1e-6, atol=1e-7)


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_below_one_level(dtype, bits):
    x = random((200, 33), dtype)
    level = x.double().abs().amax(1, keepdim=True) / (127 if bits == 8 else 7)
    error = (round_trip(x, bits).double() - x.double()).abs()
    assert bool((error <= level * 1.01 + x.double().abs() * 2 * torch.finfo(dtype).eps).all())


@both
def test_rounding_is_unbiased(bits):
    """The mean over seeds is x within 5 standard errors of a rounding, whose deviation is at most half a level."""
    x, num_seeds = random((6, 21)), 4000
    mean = torch.stack([round_trip(x, bits, seed) for seed in range(num_seeds)]).double().mean(0)
    level = x.abs().amax(1, keepdim=True) / (127 if bits == 8 else 7)
    assert bool(((mean - x).abs() <= 5 * level / 2 / num_seeds**0.5).all())


@both
def test_equal_bits_for_threads_and_steps_apart(bits):
    x, threads, results = random((3000, 24)), torch.get_num_threads(), []
    for num_threads in (1, 4):
        torch.set_num_threads(num_threads)
        results.append(quantize_rows(x, bits, seed=3)[0])
    torch.set_num_threads(threads)
    assert torch.equal(*results)
    assert not torch.equal(results[0], quantize_rows(x, bits, seed=3, step=1)[0])
    assert not torch.equal(results[0], quantize_rows(x, bits, seed=4)[0])


@both
def test_instruction_sets_agree(bits, monkeypatch):
    """Where rounding differs at all (a product fused with a sum), a code differs by one."""
    results, x = [], random((50, 75))
    for isa in ISAS:
        monkeypatch.setenv("GOSSAMER_ISA", isa)
        results.append(round_trip(x, bits))
    level = x.abs().amax(1, keepdim=True) / (127 if bits == 8 else 7)
    for other in results[1:]:
        assert bool(((other - results[0]).abs() <= 1.01 * level).all())
        assert int((other != results[0]).sum()) <= 5


@both
def test_rows_out_of_range(bits):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[1.0, inf], [nan, 2.0], [0.0, 0.0], [1e-38, 1e-31], [-inf, 0.0], [3.0, -3.0]])
    out = round_trip(x, bits)
    assert torch.equal(out.isnan().all(1), torch.tensor([True, True, False, False, True, False]))
    assert torch.equal(out[2:4], torch.zeros(2, 2))
    assert torch.equal(out[5], x[5])


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype, bits):
    """No gradient: rounding is constant almost everywhere."""
    x = random((5, 9), dtype)
    torch.library.opcheck(torch.ops.gossamer.quantize_rows, (x, bits, 1, 2))
    codes, scale = quantize_rows(x, bits, seed=1)
    torch.library.opcheck(torch.ops.gossamer.dequantize_rows, (codes, scale, 9, bits, dtype))


def test_bad_input():
    x = torch.ones(2, 3)
    with pytest.raises(TypeError, match=r"quantize_rows: x must be floating point, got torch\.int64"):
        quantize_rows(x.long(), 8, seed=0)
    with pytest.raises(ValueError, match="quantize_rows: x must have 2 dimensions, got 1"):
        quantize_rows(x[0], 8, seed=0)
    with pytest.raises(ValueError, match="quantize_rows: bits must be 8 or 4, got 2"):
        quantize_rows(x, 2, seed=0)
    codes, scale = quantize_rows(x, 4, seed=0)
    with pytest.raises(ValueError, match=r"dequantize_rows: codes must be \[2, 3\] as scale says, got \[2, 2\]"):
        dequantize_rows(codes, scale, 5, 4)
    with pytest.raises(TypeError, match="dequantize_rows: codes, scale and dtype must be uint8"):
        dequantize_rows(codes.int(), scale, 3, 4)
    with pytest.raises(ValueError, match="dequantize_rows: bits must be 8 or 4, got 3"):
        dequantize_rows(codes, scale, 3, 3)
    with pytest.raises(ValueError, match="dequantize_rows: num_features must be at least 0, got -1"):
        dequantize_rows(codes, scale, -1, 4)
