"""Sparse experts inside DeepSpeed: our layer under ``deepspeed.initialize``, and our routers in DeepSpeed's own layer.

This module imports deepspeed; nothing else in the library does so for experts.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import deepspeed.moe.layer
import torch
import torch.distributed as dist
from deepspeed.utils import groups
from torch import Tensor, nn

from gossamer.distributed.expert_parallel import ExpertParallelMoE
from gossamer.sparse_nn import RoutePlan, Router

__all__ = ["DeepSpeedMoE", "RouterGate", "checkpoint_contexts", "replace_gate", "token_ids"]

_EXPERT = "deepspeed_moe.experts.deepspeed_experts."
_CURRENT: list[Tensor] = []  # not per thread: on CUDA the backward pass recomputes in threads of its own


@contextlib.contextmanager
def token_ids(ids: Tensor) -> Iterator[None]:
    """Token ids of the batch for every ``RouterGate`` that runs inside, also when a backward pass inside recomputes.

    Args:
        ids: any shape with one id per token, int32 or int64.
    """
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"token_ids: ids must be a tensor of int32 or int64, got {getattr(ids, 'dtype', type(ids))}")
    _CURRENT.append(ids.flatten())
    try:
        yield
    finally:
        _CURRENT.pop()


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """``context_fn`` of torch's checkpoint: recomputation finds the ids of its own forward, whenever it comes.

    Use it where the backward pass runs outside ``token_ids`` or after the forward of another batch::

        checkpoint(layer, x, use_reentrant=False, context_fn=checkpoint_contexts)
    """
    return contextlib.nullcontext(), token_ids(_current_ids()) if _CURRENT else contextlib.nullcontext()


def _current_ids() -> Tensor:
    if not _CURRENT:
        raise ValueError("RouterGate: token ids must be given by `with token_ids(ids)`, got none")
    return _CURRENT[-1]


class RouterGate(nn.Module):
    """Any of our routers in the place of DeepSpeed's ``TopKGate``.

    Args:
        router: decides which expert sees which token; those that hash read the ids of ``token_ids``.
        capacity_factor: an expert keeps ceil(factor * T k / E) routes, at least min_capacity, as in DeepSpeed; None
            keeps all, padded to the fullest expert of all ranks.
        min_capacity: least number of routes an expert keeps.
    """

    def __init__(self, router: Router, *, capacity_factor: float | None = None, min_capacity: int = 4) -> None:
        super().__init__()
        self.router, self.capacity_factor, self.min_capacity = router, capacity_factor, min_capacity
        self.ep_group: Any = None

    def _set_ep_group(self, ep_group: Any) -> None:
        self.ep_group = ep_group

    def forward(
        self, x: Tensor, used_token: Tensor | None = None, sparse_routes: bool = True, use_tutel: bool = False
    ) -> tuple[Tensor, int, int, Tensor, Tensor, Tensor, Tensor]:
        """(aux loss, capacity, E, expert ids [k, T] with -1 where dropped, slots [k, T], gates [k, T], counts [E])."""
        if not sparse_routes:
            raise ValueError("RouterGate: sparse_routes must be True (DeepSpeed 0.19.8 and later), got False")
        ids = self._checked_ids(len(x)) if hasattr(self.router, "table") else None
        routing = self.router(x, ids)
        expert_ids = routing.expert_ids.int()
        if used_token is not None:
            expert_ids = torch.where(used_token.view(-1, 1) > 0, expert_ids, -1)
        num_experts = self.router.num_experts
        flat = expert_ids.flatten().long()
        counts = torch.zeros(num_experts, dtype=torch.int64, device=x.device)
        counts = counts.scatter_add(0, flat.clamp(min=0), (flat >= 0).long())
        capacity = self._capacity(counts, expert_ids.numel())
        plan = RoutePlan.from_expert_ids(expert_ids, num_experts, capacity=capacity)
        inverse = plan.inverse.view_as(expert_ids)
        kept = inverse >= 0
        slots = torch.where(kept, inverse - plan.offsets[expert_ids.clamp(min=0).long()], 0)
        gates = routing.gates * kept
        indices = torch.where(kept, expert_ids, -1)
        return routing.aux_loss, capacity, num_experts, indices.T.int(), slots.T.int(), gates.T, counts

    def _checked_ids(self, num_tokens: int) -> Tensor:
        ids = _current_ids()
        if ids.numel() != num_tokens:
            raise ValueError(f"RouterGate: token_ids must hold one id per token ({num_tokens}), got {ids.numel()}")
        return ids

    def _capacity(self, counts: Tensor, num_routes: int) -> int:
        if self.capacity_factor is not None:
            return max(self.min_capacity, math.ceil(self.capacity_factor * num_routes / len(counts)))
        most = counts.max()
        if self.ep_group is not None and dist.get_world_size(self.ep_group) > 1:
            dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self.ep_group)
        return max(1, int(most))


def replace_gate(layer: nn.Module, router: Router, *, capacity_factor: float | None = None) -> RouterGate:
    """Put one of our routers into a ``deepspeed.moe.layer.MoE``, before or after ``deepspeed.initialize``.

    Returns:
        The new gate.

    Raises:
        TypeError: if the layer is not DeepSpeed's.
        ValueError: if it has another number of experts than the router.
    """
    if not isinstance(layer, deepspeed.moe.layer.MoE) or isinstance(layer, DeepSpeedMoE):
        raise TypeError(f"replace_gate: layer must be a deepspeed.moe.layer.MoE, got {type(layer).__name__}")
    if layer.num_experts != router.num_experts:
        raise ValueError(
            f"replace_gate: router must have {layer.num_experts} experts as the layer, got {router.num_experts}"
        )
    gate = RouterGate(router, capacity_factor=capacity_factor)
    gate._set_ep_group(layer.deepspeed_moe.ep_group)
    layer.deepspeed_moe.gate = gate
    return gate


class _Placed(ExpertParallelMoE):
    """Placed by its rank alone: DeepSpeed makes the groups later, in ``initialize``."""

    def __init__(self, rank: int, num_ranks: int, *arguments: Any, **named: Any) -> None:
        self._where = rank, num_ranks
        super().__init__(*arguments, **named)

    def _place(self, rank: int, num_ranks: int) -> None:
        super()._place(*self._where)


class DeepSpeedMoE(deepspeed.moe.layer.MoE):
    """``ExpertParallelMoE`` that ``deepspeed.initialize`` takes for a layer of its own: groups, gradients, checkpoints.

    Expert-parallel groups are made by DeepSpeed (consecutive ranks); expert gradients are reduced over the replicas of
    an expert only; checkpoints hold one file per expert, as DeepSpeed's do. With ZeRO 1 and 2 pass the optimizer's
    parameter groups through ``deepspeed.moe.utils.split_params_into_different_moe_groups_for_optimizer``.
    Call ``deepspeed.init_distributed`` before.

    Args:
        d_model, d_ff, num_experts, router, activation, num_shared_experts: as in ``MoE``.
        ep_size: ranks that share the experts among them; a divisor of the number of ranks.

    Attributes:
        layer: the ``ExpertParallelMoE``; ``layer.routing`` holds what the router said.
    """

    def __init__(
        self, d_model: int, d_ff: int, num_experts: int, router: Router, *, ep_size: int = 1, **named: Any
    ) -> None:
        nn.Module.__init__(self)
        if dist.get_world_size() % ep_size != 0:
            raise ValueError(
                f"DeepSpeedMoE: ep_size must be a divisor of the {dist.get_world_size()} ranks, got {ep_size}"
            )
        self.num_experts, self.ep_size, self.num_local_experts = num_experts, ep_size, num_experts // ep_size
        self.expert_group_name = f"ep_size_{ep_size}"
        self.enable_expert_tensor_parallelism = False
        rank = dist.get_rank() % ep_size
        self.layer = _Placed(rank, ep_size, d_model, d_ff, num_experts, router, **named)
        for weight in (self.layer.w_in, self.layer.w_out):
            weight.allreduce, weight.group_name = False, self.expert_group_name  # type: ignore[attr-defined]
        self.register_state_dict_post_hook(_split_experts)
        self.register_load_state_dict_pre_hook(_join_experts)

    def _create_process_groups(self, use_data_before_expert_parallel_: bool = False) -> None:
        if self.expert_group_name not in groups._get_expert_parallel_group_dict():
            groups._create_expert_and_data_parallel(
                self.ep_size, use_data_before_expert_parallel_=use_data_before_expert_parallel_
            )
        self.layer.group = groups._get_expert_parallel_group(self.expert_group_name)

    def forward(self, x: Tensor, token_ids: Tensor | None = None, *, plan: Any = None) -> Tensor:
        """As ``ExpertParallelMoE``: the output alone; the router's loss is ``layer.routing.aux_loss``."""
        return self.layer(x, token_ids, plan=plan)


def _split_experts(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """One entry per expert, under the names that DeepSpeed files experts by."""
    for name in ("w_in", "w_out"):
        for i, weight in enumerate(state.pop(f"{prefix}layer.{name}")):
            state[f"{prefix}{_EXPERT}{i}.{name}"] = weight


def _join_experts(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in ("w_in", "w_out"):
        keys = [f"{prefix}{_EXPERT}{i}.{name}" for i in range(module.num_local_experts)]  # type: ignore[arg-type]
        if all(key in state for key in keys):
            state[f"{prefix}layer.{name}"] = torch.stack([state.pop(key) for key in keys])
