"""Losses that keep routers balanced and their logits small, all in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.sparse_nn._checks import require

__all__ = [
    "balance_loss", "consistency_loss", "importance_loss", "load_balance_loss", "load_loss", "router_z_loss",
    "squared_cv",
]  # fmt: skip


@typed
def load_balance_loss(probabilities: Tensor, expert_ids: Tensor) -> Tensor:
    """E * sum_e f_e P_e: f_e the share of routes that go to expert e, P_e its mean probability; 1 when balanced.

    Args:
        probabilities: [num_tokens, E], the router's softmax.
        expert_ids: [num_tokens, k], the chosen experts, before any is dropped.

    Source: Fedus et al. 2021, Switch Transformers, eq. 4; divided by k as in Megatron and MegaBlocks.
    """
    num_tokens, num_experts = probabilities.shape
    counts = torch.zeros(num_experts, device=probabilities.device)
    ids = expert_ids.flatten().long()
    share = counts.scatter_add(0, ids, torch.ones_like(ids, dtype=torch.float32)) / max(ids.numel(), 1)
    return balance_loss(share, probabilities.float().sum(0) / max(num_tokens, 1))


def balance_loss(load: Tensor, probability: Tensor) -> Tensor:
    """E * <load, probability>, both [E] and adding up to 1: ``load_balance_loss`` of sums that are there already."""
    return len(load) * (load * probability).sum()


@typed
def router_z_loss(logits: Tensor) -> Tensor:
    """mean over tokens of logsumexp(logits)^2.

    Source: Zoph et al. 2022, ST-MoE, eq. 5.
    """
    return torch.logsumexp(logits.float(), dim=-1).square().sum() / max(logits.shape[0], 1)


@typed
def consistency_loss(logits: Tensor, other_logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """mean over tokens of (KL(p || q) + KL(q || p)) / 2 = sum_v (p_v - q_v) (log p_v - log q_v) / 2, in float32.

    p and q are the softmax of a model's output in two forwards, with experts drawn independently: THOR trains on
    cross_entropy_1 + cross_entropy_2 + alpha * consistency_loss, alpha 5. Gradients go to both.

    Args:
        logits, other_logits: [..., num_classes], any floating type; float64 stays float64.
        mask: [...], bool, tokens that count (no padding); None counts all.

    Raises:
        ValueError: if the shapes differ, or mask is not bool.

    Source: Zuo et al. 2022, Taming Sparsely Activated Transformer with Stochastic Experts (THOR), section 3.
    """
    shape = tuple(logits.shape)
    require(
        other_logits.shape == logits.shape, "consistency_loss", "other_logits", f"{shape}", tuple(other_logits.shape)
    )
    if mask is not None:
        require(mask.shape == shape[:-1], "consistency_loss", "mask", f"{shape[:-1]}", tuple(mask.shape))
        require(mask.dtype == torch.bool, "consistency_loss", "mask", "bool", mask.dtype)
    kind = torch.promote_types(logits.dtype, torch.float32)
    log_p, log_q = (each.log_softmax(-1, dtype=kind) for each in (logits, other_logits))
    apart = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1) / 2
    if mask is None:
        return apart.sum() / max(apart.numel(), 1)
    return torch.where(mask, apart, 0).sum() / mask.sum().clamp(min=1)


@typed
def importance_loss(gates: Tensor) -> Tensor:
    """CV^2 over experts of the summed gates [num_tokens, E] (zero where an expert was not chosen).

    Source: Shazeer et al. 2017, eq. 6 and 7.
    """
    return squared_cv(gates.float().sum(0))


@typed
def load_loss(clean: Tensor, noisy: Tensor, noise_std: Tensor, k: int) -> Tensor:
    """CV^2 over experts of the expected load: the probability of each expert to be chosen if its noise were redrawn.

    Args:
        clean, noisy: [num_tokens, E], logits without and with noise.
        noise_std: [num_tokens, E].
        k: experts per token, below E.

    Source: Shazeer et al. 2017, appendix A, eq. 8 to 11.
    """
    top = noisy.topk(k + 1, dim=-1).values
    threshold_in, threshold_out = top[:, k : k + 1], top[:, k - 1 : k]
    threshold = torch.where(noisy > threshold_in, threshold_in, threshold_out)
    probability = torch.special.ndtr((clean - threshold) / noise_std)
    return squared_cv(probability.sum(0))


def squared_cv(values: Tensor) -> Tensor:
    """Population variance over squared mean."""
    return values.float().var(correction=0) / (values.float().mean().square() + 1e-10)
