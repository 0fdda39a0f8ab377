"""Grouping and slicing of LiGNN: examples of one group share the queries for its neighbourhood."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer._arguments import typed

__all__ = ["group_and_slice"]


@typed
def group_and_slice(group_ids: Tensor, slice_size: int) -> tuple[Tensor, Tensor]:
    """Sort examples by group, stably, and cut every group into slices of at most slice_size examples.

    A group of n examples costs ceil(n / slice_size) neighbourhood queries for its own node instead of n.

    Args:
        group_ids: [num_examples], integers, for example the member of each (member, item, label).
        slice_size: at least 1.

    Returns:
        order: [num_examples], int64; slice s holds the examples order[offsets[s]:offsets[s + 1]], all of one group.
        offsets: [num_slices + 1], int64, ascending from 0 to num_examples.

    Raises:
        TypeError: if group_ids are not a vector of integers.
        ValueError: if slice_size is below 1.

    Source: LiGNN (Borisyuk et al. 2024), grouping and slicing.
    """
    if group_ids.dim() != 1 or group_ids.is_floating_point() or group_ids.is_complex():
        raise TypeError(
            "group_and_slice: group_ids must be a vector of integers, "
            f"got {group_ids.dim()} dimensions of {group_ids.dtype}"
        )
    if slice_size < 1:
        raise ValueError(f"group_and_slice: slice_size must be at least 1, got {slice_size}")
    ordered, order = group_ids.sort(stable=True)
    sizes = torch.unique_consecutive(ordered, return_counts=True)[1]
    place = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    begins = (place % slice_size == 0).nonzero().flatten()
    return order, torch.cat([begins, begins.new_tensor([len(order)])])
