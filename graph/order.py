"""The stable order of edges by node: how rows are made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__: list[str] = []


def _stable_order(keys: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """(rowptr, order): positions of the keys sorted by key, equal keys in the order given, and where each key begins.

    Args:
        keys: [size], int32 or int64, in [0, num_keys).
        num_keys: number of different keys.

    Returns:
        rowptr [num_keys + 1] and order [size], int64: key k stands at order[rowptr[k]:rowptr[k + 1]].

    Raises:
        RuntimeError: if a key is out of range (on the CPU; elsewhere keys are trusted).
    """
    if keys.device.type == "cpu":
        return torch.ops.gossamer.stable_order(keys.contiguous(), num_keys)
    rowptr = torch.zeros(num_keys + 1, dtype=torch.int64, device=keys.device)
    torch.cumsum(keys.bincount(minlength=num_keys), 0, out=rowptr[1:])
    return rowptr, keys.sort(stable=True).indices


@torch.library.register_fake("gossamer::stable_order")
def _(keys: Tensor, num_keys: int) -> Any:
    return keys.new_empty(num_keys + 1, dtype=torch.int64), keys.new_empty(keys.shape[0], dtype=torch.int64)
