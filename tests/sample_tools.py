"""What samples.py is made of: the register of valid calls, and small random tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

Arguments = dict[str, Any]
SAMPLES: dict[str, tuple[Callable[[Generator], Arguments], Callable[..., Any]]] = {}


def sample(name: str, make: Callable[[Generator], Arguments]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the call of a function under its name."""

    def register(call: Callable[..., Any]) -> Callable[..., Any]:
        SAMPLES[name] = (make, call)
        return call

    return register


def integer(generator: Generator, low: int, high: int) -> int:
    """One of low .. high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def pick(generator: Generator, *values: Any) -> Any:
    return values[integer(generator, 0, len(values) - 1)]


def floats(generator: Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def ids(generator: Generator, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(max(high, 1), shape, generator=generator, dtype=dtype)


FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INDICES = (torch.int32, torch.int64)
