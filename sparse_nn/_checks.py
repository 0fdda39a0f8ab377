"""Checks at the Python border: ``<function>: <argument> must be <requirement>, got <value>``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["require", "require_device", "require_floating", "require_ids", "require_num_experts"]

MAX_EXPERTS = (1 << 31) - 1  # an expert id is an int32


def require(condition: bool, function: str, argument: str, requirement: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"{function}: {argument} must be {requirement}, got {got}")


def require_ids(ids: Any, function: str, argument: str) -> None:
    """``ids`` is a tensor of int32 or int64."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"{function}: {argument} must be a tensor, got {type(ids).__name__}")
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{function}: {argument} must be int32 or int64, got {ids.dtype}")


def require_device(x: Tensor, function: str, argument: str, device: torch.device) -> None:
    require(x.device == device, function, argument, f"on {device} like the others", x.device)


def require_floating(tensor: Tensor, function: str, argument: str) -> None:
    """A type that the kernels add up in: float32, float64 or bfloat16, and float16 on other devices than the CPU."""
    if tensor.dtype in (torch.float32, torch.float64, torch.bfloat16):
        return
    if tensor.dtype is not torch.float16 or tensor.device.type == "cpu":
        raise TypeError(f"{function}: {argument} must be float32, float64 or bfloat16, got {tensor.dtype}")


def require_num_experts(function: str, num_experts: int) -> None:
    require(1 <= num_experts <= MAX_EXPERTS, function, "num_experts", f"in [1, {MAX_EXPERTS}]", num_experts)
