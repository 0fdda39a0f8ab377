"""Token ids for benchmarks of hashing: never uniform."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["VOCAB", "zipf_tokens"]

VOCAB = 32000


def zipf_tokens(num_tokens: int, seed: int = 0) -> Tensor:
    """Token ids with the frequencies of words: the r-th most frequent has probability in proportion to 1 / r."""
    weights = 1 / torch.arange(1, VOCAB + 1, dtype=torch.float64)
    return torch.multinomial(weights, num_tokens, replacement=True, generator=torch.Generator().manual_seed(seed))
