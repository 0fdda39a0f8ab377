"""Damaged arguments of every public function: the process lives, the arguments stay as they were.

Each case takes a valid call (samples.py) and damages up to three of its arguments. The call then gives a result, the
same one twice, or a ValueError or TypeError; a valid call never raises. GOSSAMER_FUZZ_CASES sets the number of cases
per function (25; ``make fuzz`` runs 10 000 under sanitizers).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from samples import SAMPLES

CASES = int(os.environ.get("GOSSAMER_FUZZ_CASES", "25"))
HUGE = 1 << 60  # more than any memory: nothing between, so that no case fills the machine
NUMBERS = (0, 1, -1, 2, 3, 7, 255, HUGE, -HUGE, (1 << 63) - 1, 0.0, -1.0, 0.5, 1e-300, 1e300, math.nan, math.inf)
DTYPES = (torch.int8, torch.int32, torch.int64, torch.float16, torch.float64, torch.bool, torch.complex64)


def with_one_element(tensor: Tensor, number: float) -> Tensor:
    """A copy with the middle element replaced, where the type can hold the number."""
    copy = tensor.contiguous().clone()
    if copy.numel():
        try:
            copy.view(-1)[copy.numel() // 2] = number
        except (RuntimeError, OverflowError):
            return tensor
    return copy


def of_another_type(tensor: Tensor, number: float) -> Tensor:
    return tensor.to(DTYPES[NUMBERS.index(number) % len(DTYPES)] if number in NUMBERS else torch.float16)


TENSOR_DAMAGE: dict[str, Callable[[Tensor, float], Any]] = {
    "one element": with_one_element,
    "another type": of_another_type,
    "empty": lambda t, _: t[:0],
    "shorter": lambda t, _: t[:-1],
    "longer": lambda t, _: torch.cat([t, t[:1]]),
    "transposed": lambda t, _: t.transpose(0, -1),
    "one dimension more": lambda t, _: t[None],
    "one dimension less": lambda t, _: t.flatten(),
    "strided": lambda t, _: torch.stack([t, t], -1)[..., 0],
    "a list": lambda t, _: t.tolist(),
    "None": lambda t, _: None,
}
WOUNDS = st.lists(
    st.tuples(st.integers(0, 99), st.sampled_from(sorted(TENSOR_DAMAGE)), st.sampled_from(NUMBERS)), max_size=3
)


def damage(value: Any, kind: str, number: float) -> Any:
    """The value with one thing wrong (or, by luck, not wrong)."""
    if isinstance(value, Tensor):
        on_host = value.device.type != "meta" and value.dim() > 0
        return TENSOR_DAMAGE[kind](value, number) if on_host else None
    if isinstance(value, list):
        return [*value, number]
    return {"a list": [value], "None": None, "empty": "nonsense"}.get(kind, number)


def content(value: Any) -> Any:
    """Tensors as type, shape and bytes, which can be compared, NaN included."""
    if isinstance(value, Tensor):
        if value.device.type == "meta" or not value.numel():
            return value.dtype, tuple(value.shape)
        raw = value.detach().clone(memory_format=torch.contiguous_format).flatten()
        return value.dtype, tuple(value.shape), raw.view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {name: content(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [content(part) for part in value]
    return content(vars(value)) if hasattr(value, "__dict__") else repr(value)


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(seed=st.integers(0, 1 << 30), wounds=WOUNDS)
def test_damaged_calls_are_answered_or_refused(name: str, seed: int, wounds: list[tuple[int, str, float]]) -> None:
    make, call = SAMPLES[name]
    arguments = make(torch.Generator().manual_seed(seed))
    for place, kind, number in wounds:
        victim = sorted(arguments)[place % len(arguments)]
        arguments[victim] = damage(arguments[victim], kind, number)
    before = content(arguments)
    try:
        torch.manual_seed(0)
        result = content(call(**arguments))
        torch.manual_seed(0)
        assert content(call(**arguments)) == result
    except (ValueError, TypeError):
        assert wounds, f"{name} refused a valid call"
    assert content(arguments) == before, f"{name} changed its arguments"
