"""Rows of 8 or 4 bits with unbiased rounding: what crosses between workers in compressed form."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer._arguments import typed

__all__ = ["dequantize_rows", "quantize_rows"]


@typed
def quantize_rows(x: Tensor, bits: int, *, seed: int, step: int = 0) -> tuple[Tensor, Tensor]:
    """Round every row to 2^bits - 1 levels between -max |x| and max |x|, up or down at random, so that the mean is x.

    The element is rounded up with a probability equal to what is lost by rounding down, to within 2^-17: the mean over
    seeds of ``dequantize_rows`` is x, and its error is below one level, max |x| / 127 for 8 bits and max |x| / 7 for 4.
    Rounding depends on (seed, step, row, feature) alone. A row with a NaN or a magnitude of 3e38 and more comes back as
    NaN, a row whose magnitudes are all below 1e-30 as zeros.

    Args:
        x: [num_rows, num_features], floating point.
        bits: 8 or 4.
        seed: random seed.
        step: another step gives other random numbers.

    Returns:
        codes [num_rows, ceil(num_features * bits / 8)], uint8, and scale [num_rows], float32.

    Raises:
        TypeError: if x is not floating point.
        ValueError: if x has not 2 dimensions or bits is another number.

    Source: Alistarh et al. 2017, QSGD, section 3.1, with the maximum instead of the 2-norm.
    """
    if not x.is_floating_point():
        raise TypeError(f"quantize_rows: x must be floating point, got {x.dtype}")
    if x.dim() != 2:
        raise ValueError(f"quantize_rows: x must have 2 dimensions, got {x.dim()}")
    _check_bits("quantize_rows", bits)
    return torch.ops.gossamer.quantize_rows(x.detach().contiguous(), bits, seed, step)


@typed
def dequantize_rows(
    codes: Tensor, scale: Tensor, num_features: int, bits: int, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """What ``quantize_rows`` rounded: scale times codes, [num_rows, num_features] of the given dtype.

    Raises:
        TypeError: if codes are not uint8, scale is not float32 or dtype is not floating point.
        ValueError: if the shapes are not those of num_features and bits.
    """
    if codes.dtype != torch.uint8 or scale.dtype != torch.float32 or not dtype.is_floating_point:
        raise TypeError(
            "dequantize_rows: codes, scale and dtype must be uint8, float32 and floating point, "
            f"got {codes.dtype}, {scale.dtype} and {dtype}"
        )
    _check_bits("dequantize_rows", bits)
    if num_features < 0:
        raise ValueError(f"dequantize_rows: num_features must be at least 0, got {num_features}")
    expected = (len(scale) if scale.dim() == 1 else -1, (num_features * bits + 7) // 8)
    if codes.shape != expected:
        raise ValueError(f"dequantize_rows: codes must be {list(expected)} as scale says, got {list(codes.shape)}")
    return torch.ops.gossamer.dequantize_rows(codes.contiguous(), scale.contiguous(), num_features, bits, dtype)


def _check_bits(function: str, bits: int) -> None:
    if bits not in (8, 4):
        raise ValueError(f"{function}: bits must be 8 or 4, got {bits}")


@torch.library.register_fake("gossamer::quantize_rows")
def _(x: Tensor, bits: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    codes = x.new_empty(x.shape[0], (x.shape[1] * bits + 7) // 8, dtype=torch.uint8)
    return codes, x.new_empty(x.shape[0], dtype=torch.float32)


@torch.library.register_fake("gossamer::dequantize_rows")
def _(codes: Tensor, scale: Tensor, num_features: int, bits: int, dtype: torch.dtype) -> Tensor:
    return scale.new_empty(scale.shape[0], num_features, dtype=dtype)
