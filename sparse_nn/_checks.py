"""Checks at the Python border: ``<function>: <argument> must be <requirement>, got <value>``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["require", "require_ids", "require_tensor"]


def require(condition: bool, function: str, argument: str, requirement: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"{function}: {argument} must be {requirement}, got {got}")


def require_ids(ids: Any, function: str, argument: str) -> None:
    """``ids`` is a tensor of int32 or int64."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"{function}: {argument} must be a tensor, got {type(ids).__name__}")
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{function}: {argument} must be int32 or int64, got {ids.dtype}")


def require_tensor(x: Any, function: str, argument: str, device: torch.device | None = None) -> None:
    """``x`` is a tensor, and on ``device`` if that is given."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{function}: {argument} must be a tensor, got {type(x).__name__}")
    require(device is None or x.device == device, function, argument, f"on {device} like the others", x.device)
