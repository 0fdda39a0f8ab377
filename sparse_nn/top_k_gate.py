"""Top-k gating in one operator: scores, choice, gates, the place of every route within its expert, the route plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.sparse_nn._checks import require
from gossamer.sparse_nn.route_plan import RoutePlan

__all__ = ["SCORES", "Gating", "top_k_gate"]

SCORES = ("softmax", "sigmoid", "sqrt_softplus")


@dataclass(frozen=True, eq=False)
class Gating:
    """What ``top_k_gate`` found.

    Attributes:
        plan: the route plan; ``plan.expert_ids`` [num_tokens, k] holds the choices in descending order, dropped or not.
        gates: [num_tokens, k], of the type of the logits; what a dropped route would have had where it was dropped.
        locations: [num_tokens, k], int32, place of each route within its expert, below the capacity; -1 where dropped.
        score_sums: [E], sum over tokens of s / sum(s), for the losses of balance; None where not asked for.
    """

    plan: RoutePlan
    gates: Tensor
    locations: Tensor
    score_sums: Tensor | None


@typed
def top_k_gate(
    logits: Tensor,
    k: int,
    *,
    score: str = "softmax",
    bias: Tensor | None = None,
    normalize: bool = False,
    scale: float = 1.0,
    num_groups: int = 1,
    top_groups: int = 1,
    capacity: int | None = None,
    first_choices_first: bool = False,
    score_sums: bool = False,
) -> Gating:
    """gates = scale * s[id], id = the k experts with the highest s + bias, s = score(logits).

    Differentiable in the logits, through the gates and the score sums. Equal bits for any number of threads; of equal
    scores the lower expert comes first, and NaN counts above all numbers, as in ``torch.topk``.

    Args:
        logits: [num_tokens, E], float32 or float64.
        k: experts per token.
        score: softmax, sigmoid or sqrt_softplus.
        bias: [E], added to the scores for the choice alone.
        normalize: divide the gates by their sum.
        scale: factor on the gates.
        num_groups, top_groups: choose only within the top groups of consecutive experts, by the sum of each group's two
            best s + bias.
        capacity: routes an expert keeps; the rest is dropped. None keeps all, and only then there is no wait for the
            device.
        first_choices_first: fill the experts with the first choices of all tokens, then with the second ones, and so
            on (GShard); else in token order (Switch).
        score_sums: compute them.

    Raises:
        ValueError: if a shape or a number does not fit.
        TypeError: if the logits are not float32 or float64.

    Source: Shazeer et al. 2017; capacity of Lepikhin et al. 2020, GShard, algorithm 1, and Fedus et al. 2021, Switch
    Transformers, section 2.2; bias and groups of DeepSeek-AI 2024, DeepSeek-V3, section 2.1.2.
    """
    _check(logits, k, score, bias, num_groups, top_groups, capacity)
    arguments = (k, score, normalize, float(scale), num_groups, top_groups, -1 if capacity is None else capacity)
    gates, expert_ids, locations, order, offsets, inverse, _, sums = torch.ops.gossamer.top_k_gate(
        logits.contiguous(), None if bias is None else bias.to(logits.dtype).contiguous(), *arguments, score_sums
    )
    if capacity is None:
        plan = RoutePlan(expert_ids, order, offsets, inverse)
    elif first_choices_first:
        plan = RoutePlan.from_expert_ids(expert_ids, logits.shape[1], capacity=capacity, first_choices_first=True)
        places = plan.inverse.view_as(expert_ids) - plan.offsets[expert_ids.long()]
        locations = torch.where(plan.inverse.view_as(expert_ids) >= 0, places, -1)
    else:
        plan = RoutePlan(expert_ids, order[: int(offsets[-1])], offsets, inverse)
    return Gating(plan, gates, locations, sums if score_sums else None)


def _check(
    logits: Tensor, k: int, score: str, bias: Tensor | None, num_groups: int, top_groups: int, capacity: int | None
) -> None:
    if logits.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"top_k_gate: logits must be float32 or float64, got {logits.dtype}")
    fits = logits.dim() == 2 and logits.shape[1] >= 1
    require(fits, "top_k_gate", "logits", "[num_tokens, E] with at least one expert", tuple(logits.shape))
    num_experts = logits.shape[1]
    require(score in SCORES, "top_k_gate", "score", f"one of {', '.join(SCORES)}", repr(score))
    fits = bias is None or tuple(bias.shape) == (num_experts,)
    require(fits, "top_k_gate", "bias", f"[{num_experts}]", bias is not None and tuple(bias.shape))
    fits = num_groups >= 1 and num_experts % num_groups == 0
    require(fits, "top_k_gate", "num_groups", f"a divisor of {num_experts}", num_groups)
    require(1 <= top_groups <= num_groups, "top_k_gate", "top_groups", f"in [1, {num_groups}]", top_groups)
    most = top_groups * (num_experts // num_groups)
    require(1 <= k <= most, "top_k_gate", "k", f"in [1, {most}]", k)
    require(capacity is None or capacity >= 0, "top_k_gate", "capacity", "at least 0", capacity)


@torch.library.register_fake("gossamer::top_k_gate")
def _(
    logits: Tensor, bias: Tensor | None, k: int, score: str, normalize: bool, scale: float, num_groups: int,
    top_groups: int, capacity: int, sums: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    num_tokens, num_experts = logits.shape
    ids = lambda *shape: logits.new_empty(shape, dtype=torch.int32)  # noqa: E731
    return (
        logits.new_empty(num_tokens, k), ids(num_tokens, k), ids(num_tokens, k),
        ids(num_tokens * k), ids(num_experts + 1), ids(num_tokens * k),
        logits.new_empty(num_tokens), logits.new_empty(num_experts if sums else 0),
    )  # fmt: skip


@torch.library.register_fake("gossamer::top_k_gate_backward")
def _(grad: Tensor, grad_sums: Tensor | None, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    logits, _, _, ctx.score, ctx.normalize, ctx.scale, _, _, _, ctx.sums = inputs
    _, expert_ids, locations, order, offsets, inverse, normalizers, _ = output
    ctx.mark_non_differentiable(expert_ids, locations, order, offsets, inverse, normalizers)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, expert_ids, normalizers)


def _backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_sums = others[-1] if ctx.sums else None
    if grad is None and grad_sums is None:
        return (None,) * 10
    logits, expert_ids, normalizers = ctx.saved_tensors
    grad = logits.new_zeros(expert_ids.shape) if grad is None else grad.contiguous()
    grad_sums = None if grad_sums is None else grad_sums.contiguous()
    grad_logits = torch.ops.gossamer.top_k_gate_backward(
        grad, grad_sums, logits, expert_ids, normalizers, ctx.score, ctx.normalize, ctx.scale
    )
    return grad_logits, *(None,) * 9


torch.library.register_autograd("gossamer::top_k_gate", _backward, setup_context=_setup_context)
