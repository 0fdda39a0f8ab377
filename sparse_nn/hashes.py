"""Contextual hashes: expert ids from the neighbourhood of a token instead of the token itself.

Each maps token ids [..., sequence] to expert ids [..., sequence, k]. They are the comparisons of the Hash Layers paper:
the further a hash looks away from the token, the worse it does; the oracle shows what knowing the future is worth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.sparse_nn._checks import require, require_ids

__all__ = ["bigram_hash", "oracle_future_hash", "position_hash", "previous_token_hash", "token_hash"]


def token_hash(table: Tensor, token_ids: Tensor) -> Tensor:
    """expert_ids[t] = table[x[t]]."""
    require_ids(token_ids, "token_hash", "token_ids")
    return table[token_ids]


def previous_token_hash(table: Tensor, token_ids: Tensor, *, bos_id: int) -> Tensor:
    """expert_ids[t] = table[x[t - 1]], with x[-1] = bos_id."""
    require_ids(token_ids, "previous_token_hash", "token_ids")
    return table[_shifted(token_ids, bos_id)]


def bigram_hash(token_ids: Tensor, num_experts: int, *, bos_id: int, prime: int = 1000003) -> Tensor:
    """expert_ids[t] = (x[t] + prime * x[t - 1]) mod num_experts, k = 1."""
    require_ids(token_ids, "bigram_hash", "token_ids")
    require(prime % num_experts != 0, "bigram_hash", "prime", "no multiple of num_experts", prime)
    pair = token_ids.long() + prime * _shifted(token_ids, bos_id).long()
    return (pair % num_experts).unsqueeze(-1).int()


def position_hash(token_ids: Tensor, num_experts: int) -> Tensor:
    """expert_ids[t] = t mod num_experts, k = 1: a sanity check that knows nothing of the token."""
    require_ids(token_ids, "position_hash", "token_ids")
    position = torch.arange(token_ids.shape[-1], device=token_ids.device, dtype=torch.int32)
    return (position % num_experts).expand(token_ids.shape).unsqueeze(-1)


def oracle_future_hash(table: Tensor, token_ids: Tensor, *, eos_id: int) -> Tensor:
    """expert_ids[t] = table[x[t + 1]], with x[end] = eos_id.

    This leaks the label of a language model: an upper bound on what routing can bring, never a model.
    """
    require_ids(token_ids, "oracle_future_hash", "token_ids")
    end = torch.full_like(token_ids[..., :1], eos_id)
    return table[torch.cat([token_ids[..., 1:], end], dim=-1)]


def _shifted(token_ids: Tensor, bos_id: int) -> Tensor:
    start = torch.full_like(token_ids[..., :1], bos_id)
    return torch.cat([start, token_ids[..., :-1]], dim=-1)
