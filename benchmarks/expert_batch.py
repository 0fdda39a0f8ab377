"""The experts, rows and routes on which benchmarks of sparse experts agree: E 64, k 8, d 1024, f 512, swiglu."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from gossamer.sparse_nn import RoutePlan, hash_plan, random_table

from tokens import VOCAB, zipf_tokens

__all__ = ["D_FF", "D_MODEL", "NUM_EXPERTS", "TOP_K", "batch", "table", "weights"]

NUM_EXPERTS, TOP_K, D_MODEL, D_FF = 64, 8, 1024, 512


@lru_cache
def table() -> Tensor:
    """[VOCAB, TOP_K], experts of every token id."""
    return random_table(VOCAB, NUM_EXPERTS, TOP_K, seed=0)


@lru_cache
def weights() -> tuple[Tensor, Tensor]:
    """w_in and w_out of all experts, swiglu, bfloat16."""
    w_in = torch.randn(NUM_EXPERTS, 2 * D_FF, D_MODEL) / D_MODEL**0.5
    return w_in.bfloat16().requires_grad_(), (
        torch.randn(NUM_EXPERTS, D_MODEL, D_FF) / D_FF**0.5
    ).bfloat16().requires_grad_()


def batch(num_tokens: int, seed: int = 0) -> tuple[Tensor, RoutePlan, Tensor]:
    """Rows, their routes by hash on a Zipf stream, and gates."""
    x = torch.randn(num_tokens, D_MODEL).bfloat16()
    return x, hash_plan(table(), zipf_tokens(num_tokens, seed), NUM_EXPERTS), torch.rand(num_tokens, TOP_K)
