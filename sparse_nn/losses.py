"""Losses that keep routers balanced and their logits small, all in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer._arguments import typed

__all__ = ["balance_loss", "importance_loss", "load_balance_loss", "load_loss", "router_z_loss", "squared_cv"]


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
