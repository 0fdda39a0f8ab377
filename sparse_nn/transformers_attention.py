"""``attn_implementation="gossamer"`` for decoding with the models of transformers.

    from gossamer.sparse_nn import transformers_attention
    transformers_attention.register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="gossamer")

Steps of a few tokens over a cache run through ``decode_attention``, which reads keys and values where the cache of
transformers holds them: any cache class, padded batches, sliding windows, soft caps and sinks. Prompts and training run
through the model's own eager attention.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor

from gossamer.sparse_nn.decode_attention import decode_attention

__all__ = ["attention_forward", "register"]

MAX_QUERIES = 16  # longer steps are prompts


def register() -> None:
    """Make ``attn_implementation="gossamer"`` known to transformers.

    Falcon asks for a layer and not for a function, so it gets a layer.

    Raises:
        ImportError: without transformers, or with one before version 5.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask
    from transformers.models.falcon import modeling_falcon

    AttentionInterface.register("gossamer", attention_forward)
    AttentionMaskInterface.register("gossamer", eager_mask)
    modeling_falcon.FALCON_ATTENTION_CLASSES["gossamer"] = _falcon_layer()


def attention_forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention of one layer: ``decode_attention`` where it can be, otherwise the model's own eager function.

    Args:
        module: an attention layer of transformers.
        query: [B, Hq, Q, Dk].
        key: [B, Hkv, S, Dk], from the cache.
        value: [B, Hkv, S, Dv].
        attention_mask: [B or 1, 1, Q, S], bool, or float that is 0 where a query sees and the smallest number or -inf
            where not.
        options: ``scaling``, ``softcap`` and ``s_aux`` (sinks) are followed; windows are part of the mask.

    Returns:
        [B, Q, Hq, Dv], and the weights where the eager function has computed them.
    """
    trains = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    if query.shape[2] <= MAX_QUERIES and not trains and not options.get("output_attentions"):
        visible = _visible(attention_mask, query, key)
        if visible is not None:
            chosen = {"scale": options.get("scaling"), "softcap": options.get("softcap"), "sinks": options.get("s_aux")}
            return _decode(query, key, value, visible, chosen), None
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return eager(module, query, key, value, attention_mask, **options)


def _visible(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """[B or 1, Q, S], bool: the positions that every query sees; None where the mask is more than that."""
    if mask is None:
        one_query = query.shape[2] == 1
        return torch.ones(1, 1, key.shape[2], dtype=torch.bool, device=key.device) if one_query else None
    if mask.shape[1] != 1:
        return None
    if mask.dtype == torch.bool:
        return mask[:, 0]
    visible = mask[:, 0] == 0
    plain = (visible | (mask[:, 0] <= torch.finfo(mask.dtype).min)).all()
    return visible if plain else None


def _decode(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, options: dict[str, Any]) -> Tensor:
    if query.shape[2] == 1 and visible.all():
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return decode_attention(q, k, v, **options)
    return _decode_visible(query, key, value, visible, options)


def _decode_visible(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, options: dict[str, Any]) -> Tensor:
    """Each (sequence, query, key/value head) as a sequence of its own, of the positions that the query sees.

    A position of a head is a block of one row, so nothing is copied; queries that begin with the same positions share
    them, and they are read once.
    """
    batch, num_heads, num_queries, _ = query.shape
    num_kv_heads, length = key.shape[1:3]
    shared, key = key is value, key.contiguous()
    value = key if shared else value.contiguous()
    table, counts = _table(visible.expand(batch, num_queries, length))  # [B, Q, longest], [B, Q]
    heads = torch.arange(batch * num_kv_heads, device=key.device).view(batch, 1, num_kv_heads, 1) * length
    sinks = options["sinks"]
    outs = []
    for group in range(num_kv_heads) if sinks is not None else [slice(None)]:  # sinks differ from head to head
        chosen = slice(group, group + 1) if isinstance(group, int) else group
        q = query.unflatten(1, (num_kv_heads, -1))[:, chosen].permute(0, 3, 1, 2, 4)  # [B, Q, heads, G, Dk]
        rows = (heads[:, :, chosen] + table[:, :, None]).flatten(0, 2)
        lens = counts[:, :, None].expand(q.shape[:3]).flatten()
        own = sinks if sinks is None else sinks.view(num_kv_heads, -1)[group]
        pages = [x.reshape(-1, 1, 1, x.shape[3]) for x in ((key,) if shared else (key, value))]
        out = decode_attention(
            q.flatten(0, 2)[:, None], pages[0], pages[-1], seq_lens=lens, block_table=rows, **options | {"sinks": own}
        )
        outs.append(out.view(*q.shape[:4], -1))
    return torch.cat(outs, 2).view(batch, num_queries, num_heads, -1)


def _table(visible: Tensor) -> tuple[Tensor, Tensor]:
    """The positions that each query sees in order, [B, Q, longest], and how many they are, [B, Q]."""
    counts = visible.sum(-1)
    order = visible.long().argsort(dim=-1, descending=True, stable=True)
    return order[..., : int(counts.max())], counts


@functools.cache
def _falcon_layer() -> Any:
    """Falcon's attention layer, which decodes by ``decode_attention``."""
    from transformers.models.falcon.modeling_falcon import FalconAttention, apply_rotary_pos_emb

    class GossamerFalconAttention(FalconAttention):
        def forward(self, hidden_states: Any, alibi: Any, attention_mask: Any, **options: Any) -> Any:  # type: ignore[override]
            cache: Any = options.get("layer_past")
            weight = self.query_key_value.weight
            trains = torch.is_grad_enabled() and weight.requires_grad
            short = cache is not None and hidden_states.shape[1] <= MAX_QUERIES
            if trains or not short or alibi is not None or options.get("output_attentions"):
                return super().forward(hidden_states, alibi, attention_mask, **options)
            q, k, v = (x.transpose(1, 2) for x in self._split_heads(self.query_key_value(hidden_states)))
            q, k = apply_rotary_pos_emb(q, k, *options["position_embeddings"])
            k, v = cache.update(k, v, self.layer_idx)
            visible = _visible(attention_mask, q, k)
            if visible is None:
                raise ValueError("register: attention_mask must hide positions or show them, got weights between")
            out = _decode(q, k, v, visible, {"scale": self.inv_norm_factor, "softcap": None, "sinks": None})
            return self.dense(out.flatten(2)), None

    return GossamerFalconAttention
