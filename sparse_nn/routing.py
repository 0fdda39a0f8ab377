"""What a router gives, and the routers that need no learning."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gossamer._arguments import typed
from gossamer.sparse_nn._checks import require, require_ids
from gossamer.sparse_nn._random import random_uniform
from gossamer.sparse_nn.route_plan import RoutePlan, hash_plan

__all__ = ["HashRouter", "RandomRouter", "Router", "Routing"]


_MAX_FORWARDS = 1 << 12  # that may wait for their backward pass


@dataclass(frozen=True, eq=False)
class Routing:
    """Where tokens go.

    Attributes:
        expert_ids: [num_tokens, k], int32 or int64; -1 where a token makes no use of a choice.
        gates: [num_tokens, k], float32; carries the gradient to the router.
        aux_loss: scalar to add to the training loss, weighted already.
        stats: numbers to watch, as tensors: ``load`` [E] is the share of routes per expert.
        plan: the route plan, where the router made it on the way.
    """

    expert_ids: Tensor
    gates: Tensor
    aux_loss: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)
    plan: RoutePlan | None = None


class Router(nn.Module):
    """router(x [num_tokens, d], token_ids=None) -> Routing, in float32 whatever the type of x.

    Args:
        num_experts: number of experts.
        top_k: experts per token.
        capacity_factor: an expert keeps at most this times the mean load, rounded, and never fewer than
            ``min_capacity``; later tokens are dropped. None drops none.
        min_capacity: least number of routes an expert keeps.
    """

    @typed
    def __init__(
        self, num_experts: int, top_k: int, *, capacity_factor: float | None = None, min_capacity: int = 4
    ) -> None:
        super().__init__()
        name = type(self).__name__
        require(num_experts >= 1, name, "num_experts", "at least 1", num_experts)
        require(1 <= top_k <= num_experts, name, "top_k", f"in [1, {num_experts}]", top_k)
        require(capacity_factor is None or capacity_factor > 0, name, "capacity_factor", "above 0", capacity_factor)
        self.num_experts, self.top_k = num_experts, top_k
        self.capacity_factor, self.min_capacity = capacity_factor, min_capacity

    def plan(self, routing: Routing) -> RoutePlan:
        """The route plan of a routing, with the capacity of this router."""
        if routing.plan is not None:
            return routing.plan
        return RoutePlan.from_expert_ids(
            routing.expert_ids, self.num_experts, capacity=self.capacity(routing.expert_ids.numel())
        )

    def capacity(self, num_routes: int) -> int | None:
        """Routes an expert keeps of a batch with so many; None keeps all."""
        if self.capacity_factor is None:
            return None
        return max(self.min_capacity, round(self.capacity_factor * num_routes / self.num_experts))

    def _load(self, expert_ids: Tensor) -> Tensor:
        ids = expert_ids.detach().flatten().long()
        kept = (ids >= 0).float()
        counts = torch.zeros(self.num_experts, device=ids.device).scatter_add(0, ids.clamp(min=0), kept)
        return counts / kept.sum().clamp(min=1)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}, capacity_factor={self.capacity_factor}"


class HashRouter(Router):
    """expert_ids[t] = table[token_ids[t]], every gate 1: no weights, no loss, no dropped token.

    With ``multi_hash_table`` it routes a MultiHash layer.

    Args:
        table: [vocab_size, k], int16, int32 or int64, in [0, num_experts).
        num_experts: number of experts.

    Source: Roller et al. 2021, Hash Layers, section 3.
    """

    table: Tensor

    @typed
    def __init__(self, table: Tensor, num_experts: int) -> None:
        require(table.dim() == 2, "HashRouter", "table", "[vocab_size, k]", tuple(table.shape))
        super().__init__(num_experts, table.shape[1])
        self.register_buffer("table", table)

    def forward(self, x: Tensor, token_ids: Tensor | None = None) -> Routing:
        ids = checked_token_ids(type(self).__name__, token_ids, x)
        return self.routing_of(self.table[ids])

    def hash_plan(self, token_ids: Tensor) -> RoutePlan:
        """The plan of a batch, to hand to every layer that hashes with this table."""
        return hash_plan(self.table, token_ids, self.num_experts)

    def routing_of(self, expert_ids: Tensor) -> Routing:
        """What this router says of tokens that go to expert_ids [num_tokens, k]."""
        gates = torch.ones(expert_ids.shape, device=expert_ids.device)
        return Routing(expert_ids.int(), gates, gates.new_zeros(()), {"load": self._load(expert_ids)})


class RandomRouter(Router):
    """Each token to one expert drawn anew at every forward: a function of (seed, step, token position).

    In training, ``per_batch`` draws one expert for the whole batch, as THOR does; ``consistency_loss`` compares two
    such forwards. Where activation checkpointing runs a forward again, it draws what the forward drew: the router knows
    it by a number from torch's generator, which checkpointing sets back.

    Raises:
        RuntimeError: in a forward that is run again without setting back the generator (preserve_rng_state=False).

    Source: Zuo et al. 2022, Taming Sparsely Activated Transformer with Stochastic Experts (THOR), section 3.
    """

    step: Tensor

    @typed
    def __init__(self, num_experts: int, *, seed: int, per_batch: bool = True) -> None:
        super().__init__(num_experts, 1)
        self.seed, self.per_batch = seed, per_batch
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._step_of: dict[int, int] = {}  # by the number that was drawn in that forward

    def forward(self, x: Tensor, token_ids: Tensor | None = None) -> Routing:
        one = self.training and self.per_batch
        draws = random_uniform(1 if one else len(x), seed=self.seed, stream=self._next_step(), device=x.device)
        ids = (draws * self.num_experts).int().expand(len(x))[:, None]
        gates = torch.ones(len(x), 1, device=x.device)
        return Routing(ids, gates, x.new_zeros((), dtype=torch.float32), {"load": self._load(ids)})

    def _next_step(self) -> int:
        """The step of this forward: a new one, or that of the forward which a backward pass runs again."""
        if not self.training:
            return self._advance()
        number = int(torch.randint(1 << 62, ()))
        if torch._C._current_graph_task_id() == -1:
            self._step_of[number] = self._advance()
            if len(self._step_of) > _MAX_FORWARDS:
                del self._step_of[next(iter(self._step_of))]
        elif number not in self._step_of:
            raise RuntimeError("RandomRouter: checkpointing must set back torch's generator (preserve_rng_state=True)")
        return self._step_of[number]

    def _advance(self) -> int:
        step = int(self.step)
        self.step += 1
        return step


def checked_token_ids(router: str, token_ids: Tensor | None, x: Tensor) -> Tensor:
    """Token ids [num_tokens], one per row of x."""
    if token_ids is None:
        raise ValueError(f"{router}: token_ids must be given, got None")
    require_ids(token_ids, router, "token_ids")
    require(token_ids.numel() == len(x), router, "token_ids", f"one per row of x ({len(x)})", token_ids.numel())
    return token_ids.flatten().long()
