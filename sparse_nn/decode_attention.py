"""Attention of one or a few query positions over a cache: the operator of decoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.sparse_nn._checks import require, require_device

__all__ = ["decode_attention", "merge_attention"]

NAME = "decode_attention"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BYTES = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)  # caches of these have a scale per position and head


@typed
def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    seq_lens: Tensor | None = None,
    block_table: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    tree_mask: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """out[b, i, h] = sum_j softmax_j(scale <q[b, i, h], k[b, j, h // G]>) v[b, j, h // G], over the j that i sees.

    The Q queries of a sequence stand at its last Q cache positions, and see all positions up to their own. G =
    Hq / Hkv query heads share a key/value head, whose rows are read once for all of them and for all queries.
    Whole runs of 256 positions that several sequences begin with and have in the same memory (equal leading entries of
    the block table, as ``PagedKVCache.fork`` leaves them, or a cache expanded over the batch) are read once.
    The bits of a result depend on its own sequence alone: not on the batch, the threads or the layout in blocks.
    With int8 caches, bfloat16 queries and dimensions that are multiples of 64, queries and probabilities are rounded to
    integers of 2^-16 of their row's largest (on processors with AVX-512 VNNI); the caches themselves are read exactly.
    There is no gradient; train with ``scaled_dot_product_attention``.

    Args:
        q: [B, Q, Hq, Dk], float32, bfloat16 or float16.
        k: [B, S, Hkv, Dk], dtype of q, or int8, float8_e4m3fn or float8_e5m2 with scales; any strides with dense
            last dimension; Hkv divides Hq. With a block table [num_blocks, block_size, Hkv, Dk].
        v: [B, S, Hkv, Dv] or in blocks, dtype of k; may be k itself, which is then read once.
        seq_lens: [B], integer, valid cache positions per sequence, in [0, S]; all S by default.
        block_table: [B, max_blocks], integer; entry i is the block of positions [i block_size, (i + 1) block_size).
        scale: of the scores; Dk ** -0.5 by default.
        window: positive; a query sees only the last ``window`` positions, its own included.
        sinks: [Hq], floating point, a score per head that takes part in the softmax and has no value.
        softcap: positive; scores become softcap * tanh(score / softcap).
        alibi_slopes: [Hq], floating point; scores fall by slope * distance.
        tree_mask: [B or 1, Q, Q], bool; query i sees the last Q positions j where tree_mask[b, i, j], and all
            before. In place of the causal order, for drafts that form a tree.
        k_scale: [B, S, Hkv] or [num_blocks, block_size, Hkv], float32; required for caches of bytes: k is k * k_scale.
        v_scale: like k_scale, for v.
        return_lse: also return the logarithm of the softmax denominators.

    Returns:
        [B, Q, Hq, Dv], dtype of q; zero where a query sees nothing. With ``return_lse`` also [B, Q, Hq], float32.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for shapes that do not fit, for tensors on different devices, and on the CPU for lengths and block
            ids out of range. On CUDA, which is not waited for, such a sequence gives NaN.

    Source: Shazeer 2019, Fast Transformer Decoding, section 3; Dao et al. 2023, Flash-Decoding, for the split.
    """
    _check_devices(q, k=k, v=v, seq_lens=seq_lens, block_table=block_table, sinks=sinks, alibi_slopes=alibi_slopes,
                   tree_mask=tree_mask, k_scale=k_scale, v_scale=v_scale)  # fmt: skip
    _check_tensors(q, k, v, block_table)
    _check_options(q, k, seq_lens, block_table, window, softcap, tree_mask, k_scale, v_scale)
    if seq_lens is None and q.is_cuda:
        seq_lens = torch.full((q.shape[0],), _capacity(k, block_table), device=q.device)
    arguments = (
        q.detach().contiguous(), _dense(k.detach()), _dense(v.detach()), _integers(seq_lens), _integers(block_table),
        q.shape[3] ** -0.5 if scale is None else float(scale), window or 0, _per_head("sinks", sinks, q),
        softcap or 0.0, _per_head("alibi_slopes", alibi_slopes, q),
        None if tree_mask is None else tree_mask.contiguous(), k_scale, v_scale,
    )  # fmt: skip
    out, lse = _call(*arguments)
    return (out, lse) if return_lse else out


@typed
def merge_attention(outs: list[Tensor] | tuple[Tensor, ...], lses: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """out = sum_i exp(lse_i - logsumexp(lses)) out_i: attention over the union of disjoint parts of a cache.

    Args:
        outs: one or more [..., D], results of ``decode_attention`` on each part.
        lses: as many [...], float32, their ``lse``; sinks may take part in one of them only.

    Returns:
        [..., D], dtype of ``outs``; zero where every part is empty.

    Raises:
        TypeError: if one of them is not a tensor.
        ValueError: if there is nothing to merge, lengths, shapes or devices differ, or a type is not floating.

    Source: Dao et al. 2023, Flash-Decoding.
    """
    require(
        len(outs) > 0 and len(outs) == len(lses), "merge_attention", "lses", f"{max(len(outs), 1)} tensors", len(lses)
    )
    for name, parts, shape in (("outs", outs, outs[0].shape), ("lses", lses, outs[0].shape[:-1])):
        for part in parts:
            require_device(part, "merge_attention", name, outs[0].device)
            require(part.shape == shape, "merge_attention", name, f"of shape {tuple(shape)}", tuple(part.shape))
            require(part.is_floating_point(), "merge_attention", name, "of a floating type", part.dtype)
    lse = torch.stack(list(lses))  # [parts, ...]
    weights = (lse - lse.logsumexp(0)).exp().nan_to_num(0.0)  # all parts empty: -inf minus -inf
    merged = sum(w.unsqueeze(-1) * out.float() for w, out in zip(weights, outs))
    return merged.to(outs[0].dtype)


def _call(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The operator; its complaints about lengths and block ids, which it alone reads, become ValueError."""
    if torch.compiler.is_compiling():
        return torch.ops.gossamer.decode_attention(*arguments)
    try:
        return torch.ops.gossamer.decode_attention(*arguments)
    except RuntimeError as error:
        start = str(error).find(f"{NAME}: ")
        if start < 0:
            raise
        raise ValueError(str(error)[start:].splitlines()[0]) from None


def _check_devices(q: Tensor, **others: Tensor | None) -> None:
    for name, tensor in others.items():
        if tensor is not None:
            require_device(tensor, NAME, name, q.device)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, block_table: Tensor | None) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        require(tensor.dim() == 4, NAME, name, "of 4 dimensions", tuple(tensor.shape))
    if q.dtype not in DTYPES:
        raise TypeError(f"{NAME}: q must be float32, bfloat16 or float16, got {q.dtype}")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != k.dtype or tensor.dtype not in (q.dtype, *BYTES):
            raise TypeError(f"{NAME}: {name} must be {q.dtype}, int8 or float8, and k and v alike, got {tensor.dtype}")
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise ValueError(f"{NAME}: q, k and v must be without gradient, got requires_grad=True; use torch.no_grad()")
    batch, _, num_heads, key_dim = q.shape
    num_kv_heads = k.shape[2]
    require(k.shape[:3] == v.shape[:3], NAME, "v", f"[{', '.join(map(str, k.shape[:3]))}, Dv]", tuple(v.shape))
    require(k.shape[3] == key_dim, NAME, "k", f"[..., {key_dim}] like q", tuple(k.shape))
    require(key_dim > 0 and v.shape[3] > 0, NAME, "q", "of positive head dimension", tuple(q.shape))
    require(num_kv_heads > 0 and num_heads % num_kv_heads == 0, NAME, "k",
            f"of a number of heads that divides {num_heads}", num_kv_heads)  # fmt: skip
    require(block_table is not None or k.shape[0] == batch, NAME, "k", f"of batch size {batch}", k.shape[0])


def _check_options(
    q: Tensor, k: Tensor, seq_lens: Tensor | None, block_table: Tensor | None, window: int | None,
    softcap: float | None, tree_mask: Tensor | None, k_scale: Tensor | None, v_scale: Tensor | None,
) -> None:  # fmt: skip
    batch, num_queries = q.shape[:2]
    if seq_lens is not None:
        require(tuple(seq_lens.shape) == (batch,), NAME, "seq_lens", f"of shape ({batch},)", tuple(seq_lens.shape))
    if block_table is not None:
        require(block_table.dim() == 2 and block_table.shape[0] == batch, NAME, "block_table",
                f"of shape ({batch}, max_blocks)", tuple(block_table.shape))  # fmt: skip
        require(k.shape[1] > 0, NAME, "k", "of positive block size", tuple(k.shape))
    require(window is None or window > 0, NAME, "window", "positive", window)
    require(softcap is None or softcap > 0, NAME, "softcap", "positive", softcap)
    if tree_mask is not None:
        shapes = [(n, num_queries, num_queries) for n in (batch, 1)]
        require(tuple(tree_mask.shape) in shapes and tree_mask.dtype == torch.bool, NAME, "tree_mask",
                f"bool of shape {shapes[0]} or {shapes[1]}", f"{tree_mask.dtype} {tuple(tree_mask.shape)}")  # fmt: skip
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        require((scale is not None) == (k.dtype in BYTES), NAME, name,
                "given for int8 and float8 caches and for no others", k.dtype)  # fmt: skip
        if scale is not None:
            require(scale.shape == k.shape[:3] and scale.dtype == torch.float32, NAME, name,
                    f"float32 of shape {tuple(k.shape[:3])}", f"{scale.dtype} {tuple(scale.shape)}")  # fmt: skip


def _capacity(k: Tensor, block_table: Tensor | None) -> int:
    """Positions that a sequence has room for."""
    return k.shape[1] if block_table is None else block_table.shape[1] * k.shape[1]


def _dense(x: Tensor) -> Tensor:
    """A cache of any strides whose last dimension can be read as a row; only in its absence is it copied."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _integers(x: Tensor | None) -> Tensor | None:
    if x is None:
        return None
    if x.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{NAME}: seq_lens and block_table must be int32 or int64, got {x.dtype}")
    return x.to(torch.int64).contiguous()


def _per_head(name: str, x: Tensor | None, q: Tensor) -> Tensor | None:
    if x is None:
        return None
    require(tuple(x.shape) == (q.shape[2],), NAME, name, f"of shape ({q.shape[2]},)", tuple(x.shape))
    return x.detach().float().contiguous()


@torch.library.register_fake("gossamer::decode_attention")
def _(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=torch.float32)
