"""Node dropout against torch's dropout, whose mask follows the order of calls, not the nodes; one thread.

torch draws 32 random bits for an element and keeps the mask for the backward pass; ours draws 16, and draws them
again. Outputs are allocated by both in every call, as a model does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.graph import dequantize_rows, node_dropout, quantize_rows, relu_dropout

import harness

NUM_NODES, WIDTH, P = 65_536, 64, 0.5


@lru_cache
def leaf() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(NUM_NODES, WIDTH).requires_grad_()


def step(forward: Callable[[Tensor], Tensor]) -> Callable[[], object]:
    """Forward and backward, as one call."""
    gradient = torch.ones(NUM_NODES, WIDTH)
    return lambda: torch.autograd.grad(forward(leaf()), leaf(), gradient)


def against_torch(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor]) -> harness.Figure:
    """Ratio of the times of forward and backward, and the share of the byte floor that ours reaches."""
    times = harness.compare({"ours": step(ours), "torch": step(theirs)})
    floor = 4 * leaf().numel() * leaf().element_size() / harness.bandwidth()
    return times.figure("torch", "ours", f"{100 * floor / times['ours'].median:.0f} % of the byte floor")


@harness.goal("Dropout", "node_dropout, forward and backward, [65536, 64] fp32, against torch", at_least=1.0)
def node_dropout_step() -> harness.Figure:
    return against_torch(lambda x: node_dropout(x, P, seed=1), lambda x: F.dropout(x, P))


@harness.goal("Dropout", "relu_dropout, forward and backward, [65536, 64] fp32, against torch", at_least=1.0)
def relu_dropout_step() -> harness.Figure:
    return against_torch(lambda x: relu_dropout(x, P, seed=1), lambda x: F.dropout(F.relu(x), P))


def torch_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(1, keepdim=True) / 127
    return torch.floor(x / scale + torch.rand_like(x)).clamp(-127, 127).to(torch.int8), scale


@harness.goal("Dropout", "quantize_rows to 8 bits and back, [65536, 64] fp32, against torch", at_least=1.0)
def quantize_rows_step() -> harness.Figure:
    x = leaf().detach()

    def ours() -> Tensor:
        return dequantize_rows(*quantize_rows(x, 8, seed=1), WIDTH, 8)

    def theirs() -> Tensor:
        codes, scale = torch_quantize(x)
        return codes * scale

    times = harness.compare({"ours": ours, "torch": theirs})
    floor = (2 * x.numel() * 4 + 2 * x.numel()) / harness.bandwidth()
    return times.figure("torch", "ours", f"{100 * floor / times['ours'].median:.0f} % of the byte floor")


if __name__ == "__main__":
    harness.main()
