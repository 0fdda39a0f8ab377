"""Routers with learned scores: top-k in its variants, expert choice, balanced assignment, Sinkhorn, weighted hash."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gossamer._arguments import typed
from gossamer.sparse_nn._checks import require
from gossamer.sparse_nn._random import uniform_of
from gossamer.sparse_nn.assignment import balanced_assignment, sinkhorn
from gossamer.sparse_nn.hash_gate import hash_gate
from gossamer.sparse_nn.losses import balance_loss, load_loss, router_z_loss, squared_cv
from gossamer.sparse_nn.route_plan import RoutePlan
from gossamer.sparse_nn.routing import Router, Routing, checked_token_ids
from gossamer.sparse_nn.top_k_gate import SCORES, Gating, top_k_gate

__all__ = [
    "BalancedAssignmentRouter", "ExpertChoiceRouter", "SinkhornRouter", "TopKRouter", "WeightedHashRouter",
]  # fmt: skip


class LearnedRouter(Router):
    """A router with one score vector per expert: logits = x weight^T in float32, also under autocast."""

    def __init__(self, d_model: int, num_experts: int, top_k: int = 1, **capacity: Any) -> None:
        super().__init__(num_experts, top_k, **capacity)
        self.weight = nn.Parameter(torch.empty(num_experts, d_model))
        nn.init.normal_(self.weight, std=0.02)

    def logits(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return x.float() @ self.weight.float().T  # [num_tokens, num_experts]


class TopKRouter(LearnedRouter):
    """Each token to the k experts with the highest scores.

    Args:
        d_model: width of a token.
        num_experts: number of experts.
        top_k: experts per token.
        score: softmax, sigmoid or sqrt_softplus of the logits.
        normalize: divide the k gates by their sum.
        route_scale: factor on the gates.
        noisy: add learned Gaussian noise to the logits in training; then the losses of Shazeer et al. apply.
        num_groups, top_groups: choose only within the top groups of consecutive experts, by the sum of each group's two
            best scores.
        bias_rate: balance without a loss: a bias, used for choosing alone, moves by this towards less loaded experts
            whenever ``update_bias`` is called. None leaves it out.
        balance_weight: of the load balance loss; where noisy, of the importance loss.
        load_weight: where noisy, of the load loss; None takes balance_weight.
        z_weight: of the z loss.
        first_choices_first: with a capacity, drop second choices before first ones (see ``top_k_gate``).
        random_second: where top_k is 2, a second choice is kept with probability min(1, gate / random_second), drawn
            before the capacity is filled: 0.5 in GShard, 0.2 in Mesh TensorFlow. None keeps all.
        seed: of these draws, each a function of (seed, the token's two choices and their logits): a token is decided on
            alike in any batch, and when a forward is recomputed.
        capacity_factor, min_capacity: see ``Router``. Switch is top_k 1 with a capacity; GShard top_k 2, normalized,
            first choices first, with a random second choice.

    Source: Shazeer et al. 2017 (noise), Fedus et al. 2021 (Switch), Lepikhin et al. 2020 (GShard), Zoph et al. 2022
    (z loss), DeepSeek-AI 2024 (sigmoid, groups), Wang et al. 2024 (balance without a loss).
    """

    bias: Tensor | None
    counts: Tensor

    @typed
    def __init__(
        self,
        d_model: int,
        num_experts: int,
        top_k: int = 1,
        *,
        score: str = "softmax",
        normalize: bool = False,
        route_scale: float = 1.0,
        noisy: bool = False,
        num_groups: int = 1,
        top_groups: int = 1,
        bias_rate: float | None = None,
        balance_weight: float = 0.0,
        load_weight: float | None = None,
        z_weight: float = 0.0,
        first_choices_first: bool = False,
        random_second: float | None = None,
        seed: int = 0,
        **capacity: Any,
    ) -> None:
        super().__init__(d_model, num_experts, top_k, **capacity)
        require(random_second is None or top_k == 2, "TopKRouter", "top_k", "2 with a random second choice", top_k)
        require(random_second is None or random_second > 0, "TopKRouter", "random_second", "above 0", random_second)
        require(score in SCORES, "TopKRouter", "score", f"one of {', '.join(SCORES)}", repr(score))
        require(num_experts % num_groups == 0, "TopKRouter", "num_groups", f"a divisor of {num_experts}", num_groups)
        require(
            top_k <= top_groups * (num_experts // num_groups), "TopKRouter", "top_k", "within the top groups", top_k
        )
        require(not noisy or top_k < num_experts, "TopKRouter", "top_k", "below num_experts where noisy", top_k)
        self.score, self.normalize, self.route_scale = score, normalize, route_scale
        self.num_groups, self.top_groups, self.first_choices_first = num_groups, top_groups, first_choices_first
        self.random_second, self.seed = random_second, seed
        self.bias_rate, self.balance_weight, self.z_weight = bias_rate, balance_weight, z_weight
        self.load_weight = balance_weight if load_weight is None else load_weight
        self.noise_weight = nn.Parameter(torch.zeros(num_experts, d_model)) if noisy else None
        self.register_buffer("bias", None if bias_rate is None else torch.zeros(num_experts))
        self.register_buffer("counts", torch.zeros(num_experts), persistent=False)

    def forward(self, x: Tensor, token_ids: Tensor | None = None) -> Routing:
        clean = self.logits(x)
        noisy, std = self._add_noise(clean, x)
        capacity = self.capacity(len(x) * self.top_k)
        gating = top_k_gate(
            noisy,
            self.top_k,
            score=self.score,
            bias=self.bias,
            normalize=self.normalize,
            scale=self.route_scale,
            num_groups=self.num_groups,
            top_groups=self.top_groups,
            capacity=capacity if self.random_second is None else None,
            first_choices_first=self.first_choices_first,
            score_sums=std is None and self.balance_weight > 0,
        )
        load = self._load(gating.plan.expert_ids)
        if self.training and self.bias is not None:
            self.counts += load
        loss = self._loss(clean, noisy, std, gating, load)
        plan = gating.plan if self.random_second is None else self._random_second(noisy, gating, capacity)
        return Routing(plan.expert_ids, gating.gates, loss, {"load": load}, plan)

    def update_bias(self) -> None:
        """Move the bias towards balance after a step: b += rate * sign(mean load - load). Call it once per step."""
        if self.bias is None or self.bias_rate is None:
            raise ValueError("TopKRouter: bias_rate must be given to balance by a bias, got None")
        self.bias += self.bias_rate * torch.sign(self.counts.mean() - self.counts)
        self.counts.zero_()

    def _random_second(self, logits: Tensor, gating: Gating, capacity: int | None) -> RoutePlan:
        """The plan without the second choices that were drawn away."""
        assert self.random_second is not None
        ids = gating.plan.expert_ids
        bits = logits.detach().gather(1, ids.long()).view(torch.int32).long()
        choice = ids[:, 0].long() * self.num_experts + ids[:, 1]
        draws = uniform_of((bits[:, 0] << 32) ^ (bits[:, 1] & 0xFFFFFFFF), seed=self.seed)
        draws = (draws + uniform_of(choice, seed=self.seed, stream=1)) % 1
        kept = draws < gating.gates.detach()[:, 1] / self.random_second
        ids = torch.stack([ids[:, 0], torch.where(kept, ids[:, 1], -1)], dim=1)
        limit = ids.numel() if capacity is None else capacity
        return RoutePlan.from_expert_ids(
            ids, self.num_experts, capacity=limit, first_choices_first=self.first_choices_first
        )

    def _add_noise(self, clean: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.noise_weight is None or not self.training:
            return clean, None
        std = functional.softplus(x.float() @ self.noise_weight.float().T) + 1e-2
        return clean + torch.randn_like(clean) * std, std

    def _loss(self, clean: Tensor, noisy: Tensor, std: Tensor | None, gating: Gating, load: Tensor) -> Tensor:
        loss = clean.new_zeros(())
        if gating.score_sums is not None:
            loss = loss + self.balance_weight * balance_loss(load, gating.score_sums / max(len(clean), 1))
        if std is not None and self.balance_weight > 0:
            ids = gating.plan.expert_ids.flatten().long()
            importance = torch.zeros_like(load).scatter_add(0, ids, gating.gates.flatten())
            loss = loss + self.balance_weight * squared_cv(importance)
        if std is not None and self.load_weight > 0:
            loss = loss + self.load_weight * load_loss(clean, noisy, std, self.top_k)
        if self.z_weight > 0:
            loss = loss + self.z_weight * router_z_loss(clean)
        return loss


class WeightedHashRouter(LearnedRouter):
    """The table chooses the experts, learned scores weigh them: ``hash_gate``.

    Args:
        d_model: width of a token.
        table: [vocab_size, k], in [0, num_experts).
        num_experts: number of experts.
        route_scale: factor on the gates, which sum to 1 before.

    Source: DeepSeek-AI 2026, DeepSeek-V4 technical report (sqrt-softplus scores); table after Roller et al. 2021.
    """

    table: Tensor

    @typed
    def __init__(self, d_model: int, table: Tensor, num_experts: int, *, route_scale: float = 1.0) -> None:
        require(table.dim() == 2, "WeightedHashRouter", "table", "[vocab_size, k]", tuple(table.shape))
        super().__init__(d_model, num_experts, table.shape[1])
        self.route_scale = route_scale
        self.register_buffer("table", table)

    def forward(self, x: Tensor, token_ids: Tensor | None = None) -> Routing:
        token_ids = checked_token_ids("WeightedHashRouter", token_ids, x)
        ids, gates = hash_gate(x, self.weight, self.table, token_ids, scale=self.route_scale)
        return Routing(ids, gates.float(), gates.new_zeros((), dtype=torch.float32), {"load": self._load(ids)})


class ExpertChoiceRouter(LearnedRouter):
    """Each expert takes the capacity_factor * T / E tokens with the highest probability.

    A token may get 0 to E experts. The choice looks at the whole batch, later tokens included: it is not for causal
    language models.

    Source: Zhou et al. 2022, Mixture-of-Experts with Expert Choice Routing, section 3.
    """

    @typed
    def __init__(self, d_model: int, num_experts: int, *, capacity_factor: float = 2.0) -> None:
        super().__init__(d_model, num_experts, num_experts, capacity_factor=capacity_factor, min_capacity=1)

    def forward(self, x: Tensor, token_ids: Tensor | None = None) -> Routing:
        probabilities = self.logits(x).softmax(-1)
        size = min(len(x), max(1, round(self.capacity_factor * len(x) / self.num_experts)))  # type: ignore[operator]
        taken = torch.zeros_like(probabilities, dtype=torch.bool)
        taken = taken.scatter(0, probabilities.topk(size, dim=0).indices, True)
        ids = torch.where(taken, torch.arange(self.num_experts, device=x.device), -1)
        return Routing(ids, probabilities * taken, probabilities.new_zeros(()), {"load": self._load(ids)})

    def capacity(self, num_routes: int) -> int:
        return num_routes // self.num_experts  # all tokens: the choice has kept to it


class BalancedAssignmentRouter(LearnedRouter):
    """In training the assignment of highest total score with T / E tokens per expert, else the best expert per token.

    The gate is sigmoid(score), and the expert's output is meant to be mixed in as x + gate * (f(x) - x).

    Source: Lewis et al. 2021, BASE Layers, section 3, and its public auction.
    """

    @typed
    def __init__(self, d_model: int, num_experts: int) -> None:
        super().__init__(d_model, num_experts, 1)
        nn.init.orthogonal_(self.weight, gain=0.1)

    def forward(self, x: Tensor, token_ids: Tensor | None = None) -> Routing:
        logits = self.logits(x)
        ids = balanced_assignment(logits.detach()) if self.training else logits.argmax(-1)
        ids = ids[:, None]
        gates = logits.gather(1, ids).sigmoid()
        return Routing(ids, gates, logits.new_zeros(()), {"load": self._load(ids)})


class SinkhornRouter(LearnedRouter):
    """In training tokens go by an entropic transport plan with equal column sums, else by the raw logits.

    Gates come from the raw logits: sigmoid for k = 1, softmax over the chosen otherwise.

    Source: Clark et al. 2022, Unified Scaling Laws for Routed Language Models, appendix B (S-BASE).
    """

    def forward(self, x: Tensor, token_ids: Tensor | None = None) -> Routing:
        logits = self.logits(x)
        choice = sinkhorn(logits.detach()) if self.training else logits
        ids = choice.topk(self.top_k, dim=-1).indices
        chosen = logits.gather(1, ids)
        gates = chosen.sigmoid() if self.top_k == 1 else chosen.softmax(-1)
        return Routing(ids, gates, logits.new_zeros(()), {"load": self._load(ids)})
