"""Attention whose query heads share key/value heads: the layer, its conversion, and its parameter budget."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer._arguments import typed
from gossamer.sparse_nn._checks import require
from gossamer.sparse_nn.kv_cache import KVCache

__all__ = ["MultiQueryAttention", "matched_d_ff", "mean_pool_heads"]

NAME = "MultiQueryAttention"


class MultiQueryAttention(nn.Module):
    """y = concat_h softmax(q_h k_g(h)^T / sqrt(D) + causal mask) v_g(h) W_o, with g(h) = h num_kv_heads / num_heads.

    One key/value head is multi-query attention, as many as query heads multi-head, between them grouped-query. Without
    a cache the whole sequence runs through ``scaled_dot_product_attention`` (training); with one, ``decode_attention``
    reads the cache once for all query heads.

    Args:
        d_model: width of the input and output.
        num_heads: query heads.
        num_kv_heads: key/value heads; divides num_heads.
        head_dim: per head; d_model / num_heads by default.
        positions: "rotary" turns queries and keys by their position, "learned" adds a trained vector per position to
            the input, "none" leaves positions to the model.
        max_positions: size of the learned table.
        rope_base: base of the rotary wavelengths.
        window: positions that a query sees, its own included; all by default.

    Source: Shazeer 2019, Fast Transformer Decoding, section 3; Ainslie et al. 2023, GQA; Su et al. 2021, RoFormer.
    """

    @typed
    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int = 1,
        head_dim: int | None = None,
        *,
        positions: str = "rotary",
        max_positions: int = 2048,
        rope_base: float = 10000.0,
        window: int | None = None,
    ) -> None:
        super().__init__()
        require(num_kv_heads > 0 and num_heads % num_kv_heads == 0, NAME, "num_kv_heads",
                f"a divisor of {num_heads}", num_kv_heads)  # fmt: skip
        require(positions in ("rotary", "learned", "none"), NAME, "positions", "rotary, learned or none", positions)
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = head_dim or d_model // num_heads
        require(positions != "rotary" or self.head_dim % 2 == 0, NAME, "head_dim", "even", self.head_dim)
        self.positions, self.rope_base, self.window = positions, rope_base, window
        self.query = nn.Linear(d_model, num_heads * self.head_dim, bias=False)
        self.key = nn.Linear(d_model, num_kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(d_model, num_kv_heads * self.head_dim, bias=False)
        self.output = nn.Linear(num_heads * self.head_dim, d_model, bias=False)
        self.table = nn.Embedding(max_positions, d_model) if positions == "learned" else None

    def new_cache(self, batch_size: int, max_len: int) -> KVCache:
        """An empty cache of the layer's dtype and device."""
        weight = self.key.weight
        return KVCache(batch_size, max_len, self.num_kv_heads, self.head_dim, dtype=weight.dtype, device=weight.device)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """x [B, T, d_model] -> [B, T, d_model]. With a cache, x continues its sequences, and there is no gradient."""
        if cache is not None:
            with torch.no_grad():
                return self._decode(x, cache)
        q, k, v = self._project(x, torch.arange(x.shape[1], device=x.device)[None])
        group = self.num_heads // self.num_kv_heads
        k, v = (t.repeat_interleave(group, dim=2).transpose(1, 2) for t in (k, v))
        mask = None if self.window is None else self._window_mask(x, self.window)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask, is_causal=mask is None)
        return self.output(out.transpose(1, 2).flatten(2))

    def _decode(self, x: Tensor, cache: KVCache) -> Tensor:
        q, k, v = self._project(x, cache.seq_lens[:, None] + torch.arange(x.shape[1], device=x.device))
        cache.append(k, v)
        return self.output(cache.attend(q, window=self.window).flatten(2))

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, Hq, D], keys and values [B, T, Hkv, D] at positions [B or 1, T]."""
        if self.table is not None:
            x = x + self.table(positions)
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)) for projection in (self.query, self.key, self.value)
        )
        if self.positions == "rotary":
            q, k = (_rotate(t, positions, self.rope_base) for t in (q, k))
        return q, k, v

    def _window_mask(self, x: Tensor, window: int) -> Tensor:
        position = torch.arange(x.shape[1], device=x.device)
        distance = position[:, None] - position
        return (distance >= 0) & (distance < window)

    def pooled(self, num_kv_heads: int) -> MultiQueryAttention:
        """A layer with fewer key/value heads, each the mean of the heads that it replaces.

        Source: Ainslie et al. 2023, GQA, section 2.1.
        """
        layer = MultiQueryAttention(
            self.query.in_features, self.num_heads, num_kv_heads, self.head_dim, positions=self.positions,
            max_positions=self.table.num_embeddings if self.table is not None else 1, rope_base=self.rope_base,
            window=self.window,
        ).to(self.key.weight)  # fmt: skip
        state = self.state_dict()
        for name in ("key.weight", "value.weight"):
            state[name] = mean_pool_heads(state[name], self.num_kv_heads, num_kv_heads)
        layer.load_state_dict(state)
        return layer


@typed
def mean_pool_heads(weight: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    """[num_heads * D, ...] -> [num_kv_heads * D, ...]: each new head is the mean of num_heads / num_kv_heads old ones.

    For the key and value projections of any multi-head checkpoint.
    """
    require(num_kv_heads > 0 and num_heads % num_kv_heads == 0, "mean_pool_heads", "num_kv_heads",
            f"a divisor of {num_heads}", num_kv_heads)  # fmt: skip
    require(weight.shape[0] % num_heads == 0, "mean_pool_heads", "weight", f"of {num_heads} heads", tuple(weight.shape))
    heads = weight.reshape(num_kv_heads, num_heads // num_kv_heads, weight.shape[0] // num_heads, *weight.shape[1:])
    return heads.mean(1).flatten(0, 1)


@typed
def matched_d_ff(
    d_ff: int,
    old: tuple[int, int, int],
    new: tuple[int, int, int],
    *,
    num_attention: int,
    num_feed_forward: int,
) -> int:
    """d_ff + A ((h + g) 2 k - (h' + g') 2 k') / (2 F): the width that keeps the number of parameters.

    Args:
        d_ff: width of the two-matrix feed-forward layers beside the old attention.
        old: (query heads h, key/value heads g, head dimension k) of the old attention.
        new: the same of the new one.
        num_attention: A, attention layers (self and cross) that change.
        num_feed_forward: F, feed-forward layers.

    Returns:
        The new width, rounded to the nearest integer.

    Source: Shazeer 2019, section 4.1: 4096 becomes 5440 for (8, 8, 128) -> (8, 1, 128) with A = 18 and F = 12.
    """

    def size(heads: int, kv_heads: int, head_dim: int) -> int:
        return 2 * (heads + kv_heads) * head_dim

    return d_ff + round(num_attention * (size(*old) - size(*new)) / (2 * num_feed_forward))


def _rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Turn the pairs (d, d + D / 2) of x [B, T, H, D] by positions [B or 1, T] times their frequency."""
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = (positions[..., None].float() * frequency)[:, :, None]  # [B or 1, T, 1, D / 2]
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1).to(x.dtype)
