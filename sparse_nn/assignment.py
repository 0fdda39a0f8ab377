"""Assignments of tokens to experts with equal loads: an auction, and entropic optimal transport."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["balanced_assignment", "sinkhorn"]


def balanced_assignment(scores: Tensor) -> Tensor:
    """Expert of each token so that every expert gets floor or ceil of T / E, of (nearly) highest total score.

    An auction: each token without a place bids for its best expert what it would lose with the second best, plus a
    little; an expert keeps its highest bids, and its price is the lowest it keeps once it is full. The total score is
    within a thousandth of the range of the scores, per token, of the optimum.

    Args:
        scores: [num_tokens, num_experts], finite.

    Returns:
        [num_tokens], int64.

    Source: Bertsekas and Castanon 1989, The Auction Algorithm for the Transportation Problem, section 4.
    """
    num_tokens, num_experts = scores.shape
    if num_experts == 1 or num_tokens == 0:
        return torch.zeros(num_tokens, dtype=torch.int64, device=scores.device)
    scores = scores.detach().double()
    places = torch.full((num_experts,), num_tokens // num_experts, device=scores.device)
    places[: num_tokens % num_experts] += 1
    least_raise = (scores.max() - scores.min()).clamp(min=1e-9) / 1024
    price = torch.where(places > 0, 0.0, float("inf")).double()
    expert = torch.full((num_tokens,), -1, device=scores.device)
    bid = torch.zeros(num_tokens, dtype=scores.dtype, device=scores.device)
    while (free := (expert < 0).nonzero().flatten()).numel():
        best = (scores[free] - price).topk(2, dim=1)
        expert[free] = best.indices[:, 0]
        margin = best.values[:, 0] - best.values[:, 1]
        bid[free] = price[expert[free]] + margin.nan_to_num(posinf=0.0) + least_raise
        _keep_highest(expert, bid, price, places)
    return expert


def _keep_highest(expert: Tensor, bid: Tensor, price: Tensor, places: Tensor) -> None:
    """Free the tokens whose bid does not make it into the places of their expert, and set the price of full experts."""
    order = bid.argsort(descending=True, stable=True)
    order = order[expert[order].argsort(stable=True)]  # by expert, highest bid first
    counts = expert.bincount(minlength=len(places))
    rank = torch.arange(len(expert), device=expert.device) - (counts.cumsum(0) - counts)[expert[order]]
    last = order[rank == places[expert[order]] - 1]
    price[expert[last]] = bid[last]
    expert[order[rank >= places[expert[order]]]] = -1


def sinkhorn(logits: Tensor, *, max_iterations: int = 100, tolerance: float = 1e-4) -> Tensor:
    """Transport plan diag(u) e^logits diag(v) with row sums 1 / T and column sums 1 / E.

    Args:
        logits: [T, E], floating point.
        max_iterations: at most this many rounds; fewer once v changes by less than ``tolerance`` on average.

    Returns:
        [T, E], float32.

    Source: Cuturi 2013, Sinkhorn Distances, algorithm 1.
    """
    num_tokens, num_experts = logits.shape
    kernel = (logits.float() - logits.float().amax(dim=-1, keepdim=True)).exp()
    v = torch.ones(num_experts, device=logits.device)
    for _ in range(max_iterations):
        u = 1 / (num_tokens * (kernel @ v) + 1e-8)
        previous, v = v, 1 / (num_experts * (kernel.T @ u) + 1e-8)
        if (v - previous).abs().mean() < tolerance * previous.abs().mean():
            break
    return u[:, None] * kernel * v if num_tokens else kernel
