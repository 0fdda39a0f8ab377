"""Caches of keys and values for decoding: one block of memory per batch, or pages shared by sequences."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.sparse_nn._checks import require, require_device
from gossamer.sparse_nn.decode_attention import decode_attention

__all__ = ["CacheFullError", "KVCache", "PagedKVCache"]


class CacheFullError(ValueError):
    """A cache has no room for the positions that were to be appended; it is left as it was."""


class KVCache:
    """Keys and values of a batch of sequences, each with its own length.

    Args:
        batch_size: number of sequences.
        max_len: positions per sequence.
        num_kv_heads: key/value heads.
        head_dim: dimension of keys, and of values unless ``value_dim`` is given.
        value_dim: dimension of values.
        dtype: float32, bfloat16 or float16.
        device: where the cache lives.
    """

    @typed
    def __init__(
        self,
        batch_size: int,
        max_len: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: Any = None,
    ) -> None:
        shape = (batch_size, max_len, num_kv_heads)
        self.k = torch.zeros(*shape, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros(*shape, value_dim or head_dim, dtype=dtype, device=device)
        self.lengths = [0] * batch_size

    @property
    def max_len(self) -> int:
        """Positions that the cache has room for."""
        return self.k.shape[1]

    @property
    def seq_lens(self) -> Tensor:
        """[batch_size], int64: positions in use."""
        return torch.tensor(self.lengths, dtype=torch.int64, device=self.k.device)

    @typed
    def append(self, k: Tensor, v: Tensor) -> None:
        """Write k [B, Q, Hkv, Dk] and v [B, Q, Hkv, Dv] behind the last position of every sequence.

        Raises:
            CacheFullError: if a sequence has no room for Q positions; nothing is written then.
            ValueError: for rows of another shape or device than the cache; TypeError if they are no tensors.
        """
        _check_rows("KVCache.append", self, len(self.lengths), k, v)
        if max(self.lengths, default=0) + k.shape[1] > self.max_len:
            raise CacheFullError(
                f"KVCache.append: k must be of at most {self.max_len - max(self.lengths)} more positions "
                f"(max_len is {self.max_len}), got {k.shape[1]}"
            )
        for b, length in enumerate(self.lengths):
            self.k[b, length : length + k.shape[1]] = k[b].detach()
            self.v[b, length : length + k.shape[1]] = v[b].detach()
        self.lengths = [length + k.shape[1] for length in self.lengths]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget all positions from ``lengths[b]`` on: rejected drafts, or whole sequences with 0."""
        for new, old in zip(lengths, self.lengths):
            require(0 <= new <= old, "KVCache.truncate", "lengths", f"in [0, {old}]", new)
        require(
            len(lengths) == len(self.lengths), "KVCache.truncate", "lengths", f"of {len(self.lengths)}", len(lengths)
        )
        self.lengths = list(lengths)

    def attend(self, q: Tensor, **options: Any) -> Any:
        """``decode_attention`` of q [B, Q, Hq, Dk] over the cache; the queries stand at its last Q positions."""
        used = max(self.lengths, default=0)
        return decode_attention(q, self.k[:, :used], self.v[:, :used], seq_lens=self.seq_lens, **options)


class PagedKVCache:
    """Keys and values in blocks that are handed out on demand and may be shared by sequences with a common prefix.

    Sequences are named by any hashable key. ``fork`` shares all blocks of a sequence; the first append to a shared
    block copies that block alone.

    Args:
        num_blocks: blocks in all.
        block_size: positions per block.
        num_kv_heads: key/value heads.
        head_dim: dimension of keys, and of values unless ``value_dim`` is given.
        value_dim: dimension of values.
        dtype: float32, bfloat16 or float16.
        device: where the cache lives.

    Source: Kwon et al. 2023, Efficient Memory Management for Large Language Model Serving with PagedAttention.
    """

    @typed
    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: Any = None,
    ) -> None:
        shape = (num_blocks, block_size, num_kv_heads)
        self.k = torch.zeros(*shape, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros(*shape, value_dim or head_dim, dtype=dtype, device=device)
        self._free = list(range(num_blocks - 1, -1, -1))
        self._users = [0] * num_blocks
        self._blocks: dict[Hashable, list[int]] = {}
        self._lengths: dict[Hashable, int] = {}

    @property
    def block_size(self) -> int:
        """Positions of a block."""
        return self.k.shape[1]

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free)

    def __contains__(self, sequence: Hashable) -> bool:
        return sequence in self._blocks

    def length(self, sequence: Hashable) -> int:
        """Positions of a sequence."""
        return self._lengths[self._known("length", sequence)]

    def add(self, sequence: Hashable) -> None:
        """Start an empty sequence."""
        require(sequence not in self._blocks, "PagedKVCache.add", "sequence", "new", repr(sequence))
        self._blocks[sequence], self._lengths[sequence] = [], 0

    def fork(self, parent: Hashable, child: Hashable) -> None:
        """Start ``child`` as a copy of ``parent`` that shares its blocks, which ``attend`` then reads once for both."""
        self._known("fork", parent)
        self.add(child)
        self._blocks[child] = list(self._blocks[parent])
        self._lengths[child] = self._lengths[parent]
        for block in self._blocks[child]:
            self._users[block] += 1

    def free(self, sequence: Hashable) -> None:
        """Forget a sequence; blocks that no other sequence shares become free."""
        for block in self._blocks.pop(self._known("free", sequence)):
            self._release(block)
        del self._lengths[sequence]

    @typed
    def append(self, sequences: Sequence[Hashable], k: Tensor, v: Tensor) -> None:
        """Write k [n, Q, Hkv, Dk] and v [n, Q, Hkv, Dv] behind the last position of n different sequences.

        Raises:
            CacheFullError: if there are too few free blocks; nothing is written then.
            ValueError: for rows of another shape or device than the cache; TypeError if they are no tensors.
        """
        for sequence in sequences:
            self._known("append", sequence)
        require(len(set(sequences)) == len(sequences), "PagedKVCache.append", "sequences", "different", list(sequences))
        _check_rows("PagedKVCache.append", self, len(sequences), k, v)
        needed = sum(self._blocks_needed(sequence, k.shape[1]) for sequence in sequences)
        if needed > len(self._free):
            raise CacheFullError(
                f"PagedKVCache.append: sequences must be few enough for {len(self._free)} free blocks (of "
                f"{len(self._users)}, held by {len(self._blocks)} sequences), got a need of {needed}; "
                f"free() a sequence and compute it again later, or make num_blocks larger"
            )
        for i, sequence in enumerate(sequences):
            self._write(sequence, k[i].detach(), v[i].detach())

    def block_table(self, sequences: Sequence[Hashable]) -> Tensor:
        """[n, max_blocks], int64: the blocks of each sequence, -1 behind its last."""
        tables = [self._blocks[self._known("block_table", sequence)] for sequence in sequences]
        width = max(map(len, tables), default=0)
        rows = [table + [-1] * (width - len(table)) for table in tables]
        return torch.tensor(rows, dtype=torch.int64, device=self.k.device).view(len(rows), width)

    def seq_lens(self, sequences: Sequence[Hashable]) -> Tensor:
        """[n], int64: positions of each sequence."""
        return torch.tensor([self._lengths[s] for s in sequences], dtype=torch.int64, device=self.k.device)

    def attend(self, sequences: Sequence[Hashable], q: Tensor, **options: Any) -> Any:
        """``decode_attention`` of q [n, Q, Hq, Dk] over n sequences, whose last Q positions the queries are."""
        table = self.block_table(sequences)
        return decode_attention(q, self.k, self.v, seq_lens=self.seq_lens(sequences), block_table=table, **options)

    def _known(self, method: str, sequence: Hashable) -> Hashable:
        require(sequence in self._blocks, f"PagedKVCache.{method}", "sequence", "in the cache", repr(sequence))
        return sequence

    def _blocks_needed(self, sequence: Hashable, count: int) -> int:
        length, blocks = self._lengths[sequence], self._blocks[sequence]
        new = -(-(length + count) // self.block_size) - len(blocks)
        return new + (count > 0 and self._writes_shared_block(sequence))

    def _writes_shared_block(self, sequence: Hashable) -> bool:
        """True where the next position lies in a block that another sequence holds too."""
        inside = self._lengths[sequence] % self.block_size != 0
        return inside and self._users[self._blocks[sequence][-1]] > 1

    def _write(self, sequence: Hashable, k: Tensor, v: Tensor) -> None:
        blocks, length = self._blocks[sequence], self._lengths[sequence]
        if len(k) and self._writes_shared_block(sequence):
            shared, blocks[-1] = blocks[-1], self._take()
            self.k[blocks[-1]], self.v[blocks[-1]] = self.k[shared], self.v[shared]
            self._release(shared)
        while len(blocks) * self.block_size < length + len(k):
            blocks.append(self._take())
        positions = torch.arange(length, length + len(k), device=self.k.device)
        where = torch.tensor(blocks, device=self.k.device)[positions // self.block_size], positions % self.block_size
        self.k[where], self.v[where] = k.to(self.k.dtype), v.to(self.v.dtype)
        self._lengths[sequence] = length + len(k)

    def _take(self) -> int:
        block = self._free.pop()
        self._users[block] = 1
        return block

    def _release(self, block: int) -> None:
        self._users[block] -= 1
        if self._users[block] == 0:
            self._free.append(block)


def _check_rows(method: str, cache: KVCache | PagedKVCache, sequences: int, k: Tensor, v: Tensor) -> None:
    """k and v are as many rows for every sequence, in the shapes and on the device of the cache."""
    for name, rows in (("k", k), ("v", v)):
        require_device(rows, method, name, cache.k.device)
        require(rows.dim() == 4, method, name, "of 4 dimensions", tuple(rows.shape))
    for name, rows, own in (("k", k, cache.k), ("v", v, cache.v)):
        shape = (sequences, k.shape[1], *own.shape[2:])
        require(tuple(rows.shape) == shape, method, name, f"of shape {shape}", tuple(rows.shape))
