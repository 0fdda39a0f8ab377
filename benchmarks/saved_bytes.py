"""What autograd keeps for a backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["SavedBytes"]


class SavedBytes:
    """Counts what autograd keeps for the backward pass inside the block: each storage once, parameters not."""

    def __init__(self, parameters: Any) -> None:
        self._parameters = {p.untyped_storage().data_ptr() for p in parameters}
        self._seen: dict[int, int] = {}

    def __enter__(self) -> SavedBytes:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters and tensor.is_floating_point():
            self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        self.num_bytes = sum(self._seen.values())
