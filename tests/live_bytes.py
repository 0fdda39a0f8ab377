"""Counts the bytes of tensors that are alive, by watching every operator: the truth that counted bytes are held to."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside the block ``now`` is the number of bytes of storages that were made in it and are still alive."""

    def __init__(self):
        super().__init__()
        self.now, self._known = 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs)):  # what was there before is not counted
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage(), 0)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage(), tensor.untyped_storage().nbytes())
        return out

    def _watch(self, storage, num_bytes):
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += num_bytes
            weakref.finalize(storage, self._forget, key, num_bytes)

    def _forget(self, key, num_bytes):
        self._known.discard(key)
        self.now -= num_bytes
