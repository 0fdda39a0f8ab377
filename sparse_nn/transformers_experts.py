"""``experts_implementation="gossamer"`` for the mixture-of-experts models of transformers.

    from gossamer.sparse_nn import transformers_experts
    transformers_experts.register()
    model = AutoModelForCausalLM.from_pretrained(name, experts_implementation="gossamer")

Router, shared experts, checkpoints and everything else stay as they are in transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gossamer.sparse_nn.dispatch import combine, dispatch
from gossamer.sparse_nn.expert_mlp import expert_mlp
from gossamer.sparse_nn.route_plan import RoutePlan

__all__ = ["experts_forward", "register"]


def register() -> None:
    """Make ``experts_implementation="gossamer"`` known to transformers.

    Raises:
        ImportError: without transformers, or with one that knows no experts implementations (before version 5).
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register("gossamer", experts_forward)


def experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """out[t] = sum over j of top_k_weights[t, j] * expert top_k_index[t, j] of hidden_states[t].

    Gated silu experts, as Mixtral, Qwen3-MoE, DeepSeek and most others have them, are one call of ``expert_mlp``. All
    others (biases, transposed or interleaved weights, other gates) go through the module's own functions, one expert
    after the other, between ``dispatch`` and ``combine``.

    Args:
        self: an experts module of transformers: ``gate_up_proj`` [E, 2 f, d], ``down_proj`` [E, d, f].
        hidden_states: [num_tokens, d].
        top_k_index: [num_tokens, k]; num_experts marks routes of other ranks, which are left out.
        top_k_weights: [num_tokens, k].

    Returns:
        [num_tokens, d], in the type of hidden_states.
    """
    x = hidden_states.to(self.down_proj.dtype)  # under autocast a norm leaves float32 behind
    plan = _plan(self, top_k_index)
    if _is_swiglu(self):
        limit = getattr(self, "limit", None)
        out = expert_mlp(x, plan, self.gate_up_proj, self.down_proj, gates=top_k_weights, swiglu_limit=limit)
    else:
        out = combine(_one_by_one(self, dispatch(x, plan), plan), plan, top_k_weights)
    return out.to(hidden_states.dtype)


def _plan(self: Any, top_k_index: Tensor) -> RoutePlan:
    if not self._is_expert_parallel:
        return RoutePlan.from_expert_ids(top_k_index, self.num_experts)
    ids = torch.where(top_k_index < self.num_experts, top_k_index, -1)
    return RoutePlan.from_expert_ids(ids, self.num_experts, capacity=len(ids) * ids.shape[1])


def _is_swiglu(self: Any) -> bool:
    plain = self.has_gate and not (self.has_bias or self.is_transposed or self.has_post_expert_norm)
    return plain and self.is_concatenated and _applies_silu(self) and _gates_as_expected(self)


def _applies_silu(self: Any) -> bool:
    act = getattr(self, "act_fn", None)
    return act is functional.silu or type(act).__name__ in ("SiLU", "SiLUActivation")


def _gates_as_expected(self: Any) -> bool:
    """Whether the module's gate is silu(gate) * up, clamped where it has a limit: tried on a few numbers."""
    known = _SWIGLU_GATES.get(type(self))
    if known is None:
        limit = getattr(self, "limit", None)
        probe = torch.linspace(-3, 3, 14, dtype=torch.float64, device=self.down_proj.device)
        probe = probe if limit is None else probe * limit
        gate, up = probe.roll(3).chunk(2)
        wanted = functional.silu(gate) * up
        if limit is not None:
            wanted = functional.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)
        known = torch.allclose(self._apply_gate(probe.roll(3)), wanted)
        _SWIGLU_GATES[type(self)] = known
    return known


_SWIGLU_GATES: dict[type, bool] = {}


def _one_by_one(self: Any, rows: Tensor, plan: RoutePlan) -> Tensor:
    """Rows [num_routes, d] through the module's experts."""
    parts = rows.split(plan.counts.tolist())
    return torch.cat([_expert(self, e, part) for e, part in enumerate(parts) if len(part)] or [rows])


def _expert(self: Any, e: int, rows: Tensor) -> Tensor:
    project = (lambda x, w: x @ w) if self.is_transposed else functional.linear
    name = "gate_up_proj" if self.has_gate else "up_proj"
    hidden = project(rows, getattr(self, name)[e])
    if self.has_bias:
        hidden = hidden + getattr(self, name + "_bias")[e]
    y = project(self._apply_gate(hidden) if self.has_gate else self.act_fn(hidden), self.down_proj[e])
    if self.has_bias:
        y = y + self.down_proj_bias[e]
    return self.post_expert_norm(y) if self.has_post_expert_norm else y
