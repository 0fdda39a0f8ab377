"""What the graphs of a set own, behind each other: nodes, edges, pairs of nodes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["members", "pointers"]


def pointers(sizes: list[int]) -> Tensor:
    """[num_graphs + 1]: graph g owns [ptr[g], ptr[g + 1])."""
    return torch.tensor([0, *sizes]).cumsum(0)


def members(ptr: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What these graphs own, one after the other, and how much each of them does."""
    sizes = ptr[ids + 1] - ptr[ids]
    begin = sizes.cumsum(0) - sizes
    return torch.arange(int(sizes.sum())) + (ptr[ids] - begin).repeat_interleave(sizes), sizes
