"""Counter-based random numbers on tensors: the SplitMix64 mixing of csrc/common/random.h, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["random_below", "random_uniform", "uniform_of"]

_GOLDEN_RATIO = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def random_uniform(size: int, *, seed: int, stream: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """[size], float64 in (0, 1); entry i is a function of (seed, stream, i)."""
    return uniform_of(torch.arange(size, device=device), seed=seed, stream=stream)


def uniform_of(items: Tensor, *, seed: int, stream: int = 0) -> Tensor:
    """float64 in (0, 1), in the shape of items (int64); each entry is a function of (seed, stream, item)."""
    key = _mix_int(seed + _GOLDEN_RATIO * (stream + 1))
    bits = _mix(_mix(_signed(key) + _signed(_GOLDEN_RATIO) * (items + 1)) + _signed(_GOLDEN_RATIO))
    return (_shift_right(bits, 11).double() + 0.5) * 2.0**-53


def random_below(n: int, size: int, *, seed: int, stream: int = 0) -> Tensor:
    """[size], int64, uniform in [0, n) for n up to 2^31; entry i is a function of (seed, stream, i)."""
    return (random_uniform(size, seed=seed, stream=stream) * n).long()


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _mix_int(x: int) -> int:
    x &= _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of 64-bit words held as int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    x &= _MASK
    return x - (1 << 64) if x >> 63 else x
