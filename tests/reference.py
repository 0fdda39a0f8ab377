"""What the operators compute, written as plainly as possible: float64, loops, no kernels."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN_RATIO = 0x9E3779B97F4A7C15


def mix_bits(x: int) -> int:
    """The mixing of SplitMix64 (csrc/common/random.h)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def random_draw(seed: int, stream: int, item: int, number: int) -> int:
    """Draw ``number`` of an item: 64 bits."""
    state = mix_bits((seed + _GOLDEN_RATIO * (stream + 1)) & _MASK)
    state = mix_bits((state + _GOLDEN_RATIO * (item + 1)) & _MASK)
    return mix_bits((state + _GOLDEN_RATIO * (number + 1)) & _MASK)


def node_dropout(x: Tensor, p: float, seed: int, step: int, node_ids: Tensor) -> Tensor:
    threshold = round(p * 65536)
    out = torch.zeros_like(x, dtype=torch.float64)
    for i, node in enumerate(node_ids.tolist()):
        for f in range(x.shape[1]):
            bits = random_draw(seed, step, node, f // 4) >> (16 * (f % 4)) & 0xFFFF
            if bits >= threshold:
                out[i, f] = x[i, f].double() * 65536 / (65536 - threshold)
    return out
