"""Contextual hashes: expert ids from the neighbourhood of a token instead of the token itself.

Each maps token ids [..., sequence] to expert ids [..., sequence, k]. They are the comparisons of the Hash Layers paper:
the further a hash looks away from the token, the worse it does; the oracle shows what knowing the future is worth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.sparse_nn._checks import require, require_ids, require_num_experts
from gossamer.sparse_nn.route_plan import RoutePlan
from gossamer.sparse_nn.routing import HashRouter, Routing, checked_token_ids

__all__ = [
    "ContextualHashRouter", "bigram_hash", "oracle_future_hash", "position_hash", "previous_token_hash", "token_hash",
]  # fmt: skip

CONTEXTS = ("previous_token", "bigram", "position", "oracle_future")


class ContextualHashRouter(HashRouter):
    """Like HashRouter, by the token before, by the bigram, by the position, or by the token to come.

    Args:
        context: previous_token, bigram, position or oracle_future (which leaks the label: never a model).
        table: [vocab_size, k], in [0, num_experts); bigram and position use its size alone, and have k = 1.
        num_experts: number of experts.
        bos_id: token that stands before the first, and behind the last for the oracle.
    """

    @typed
    def __init__(self, context: str, table: Tensor, num_experts: int, *, bos_id: int = 0) -> None:
        require(context in CONTEXTS, "ContextualHashRouter", "context", f"one of {', '.join(CONTEXTS)}", repr(context))
        super().__init__(table, num_experts)
        vocab_size = table.shape[0]
        require(0 <= bos_id < vocab_size, "ContextualHashRouter", "bos_id", f"in [0, {vocab_size})", bos_id)
        self.context, self.bos_id = context, bos_id

    def forward(self, x: Tensor, token_ids: Tensor | None = None) -> Routing:
        """token_ids [..., sequence] keep their shape here: the context runs along the last dimension."""
        checked_token_ids("ContextualHashRouter", token_ids, x)
        assert token_ids is not None
        return self.routing_of(self.expert_ids(token_ids).flatten(0, -2))

    def hash_plan(self, token_ids: Tensor) -> RoutePlan:
        return RoutePlan.from_expert_ids(self.expert_ids(token_ids).flatten(0, -2).contiguous(), self.num_experts)

    def expert_ids(self, token_ids: Tensor) -> Tensor:
        """[..., sequence] -> [..., sequence, k]."""
        if self.context == "previous_token":
            return previous_token_hash(self.table, token_ids, bos_id=self.bos_id)
        if self.context == "bigram":
            return bigram_hash(token_ids, self.num_experts, bos_id=self.bos_id)
        if self.context == "position":
            return position_hash(token_ids, self.num_experts)
        return oracle_future_hash(self.table, token_ids, eos_id=self.bos_id)


@typed
def token_hash(table: Tensor, token_ids: Tensor) -> Tensor:
    """expert_ids[t] = table[x[t]]."""
    require_ids(token_ids, "token_hash", "token_ids")
    return table[token_ids]


@typed
def previous_token_hash(table: Tensor, token_ids: Tensor, *, bos_id: int) -> Tensor:
    """expert_ids[t] = table[x[t - 1]], with x[-1] = bos_id."""
    require_ids(token_ids, "previous_token_hash", "token_ids")
    return table[_shifted(token_ids, bos_id)]


@typed
def bigram_hash(token_ids: Tensor, num_experts: int, *, bos_id: int, prime: int = 1000003) -> Tensor:
    """expert_ids[t] = (x[t] + prime * x[t - 1]) mod num_experts, k = 1."""
    require_ids(token_ids, "bigram_hash", "token_ids")
    require_num_experts("bigram_hash", num_experts)
    require(prime % num_experts != 0, "bigram_hash", "prime", "no multiple of num_experts", prime)
    pair = token_ids.long() + prime * _shifted(token_ids, bos_id).long()
    return (pair % num_experts).unsqueeze(-1).int()


@typed
def position_hash(token_ids: Tensor, num_experts: int) -> Tensor:
    """expert_ids[t] = t mod num_experts, k = 1: a sanity check that knows nothing of the token."""
    require_ids(token_ids, "position_hash", "token_ids")
    require_num_experts("position_hash", num_experts)
    position = torch.arange(token_ids.shape[-1], device=token_ids.device, dtype=torch.int32)
    return (position % num_experts).expand(token_ids.shape).unsqueeze(-1)


@typed
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
