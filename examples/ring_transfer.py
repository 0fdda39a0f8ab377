"""RingTransfer: carry a class half way around a ring.

Node n/2 holds one of 5 classes as a one-hot vector, node 0 zeros, all others ones; the class is read at node 0. There
are no more than 5 different rings of a size: what a data set of 2000 adds is only how often each of them comes.

Source: Gutteridge et al. 2023, DRew: Dynamically Rewired Message Passing with Delay, section 5.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.graph import CSR, SPN, DRew, k_hop, merge_shells

__all__ = ["NUM_CLASSES", "RingTransfer", "build_model", "ring_edges", "ring_features", "ring_width", "rings"]

NUM_CLASSES, GCN_WIDTH = 5, 256


def ring_features(size: int, labels: Tensor) -> Tensor:
    """[len(labels) * size, NUM_CLASSES]: the rings of a batch behind each other."""
    x = torch.ones(len(labels), size, NUM_CLASSES)
    x[:, 0] = 0
    x[:, size // 2] = F.one_hot(labels, NUM_CLASSES).float()
    return x.flatten(0, 1)


def ring_edges(size: int, num_rings: int) -> Tensor:
    """[2, 2 * num_rings * size]: source and target of disjoint rings, both ways, ring after ring."""
    node = torch.arange(num_rings * size)
    after = node - node % size + (node + 1) % size
    return torch.stack([node, after, after, node], 1).view(-1, 2).T.contiguous()


def rings(size: int, num_rings: int) -> CSR:
    """num_rings disjoint rings, both ways."""
    return CSR.from_edge_index(ring_edges(size, num_rings), num_rings * size)


class RingTransfer:
    """Rings of one size, with the shells of a batch computed once per number of rings."""

    def __init__(self, size: int, model: nn.Module) -> None:
        self.size, self.num_hops, self.merged = size, model.num_hops, isinstance(model, SPN)
        self._shells: dict[int, object] = {}

    def logits(self, model: nn.Module, labels: Tensor) -> Tensor:
        """[len(labels), NUM_CLASSES]: what the model says at node 0 of every ring."""
        if len(labels) not in self._shells:
            shells = k_hop(rings(self.size, len(labels)), self.num_hops)
            self._shells[len(labels)] = merge_shells(shells) if self.merged else shells
        return model(ring_features(self.size, labels), self._shells[len(labels)])[:: self.size]


def ring_width(num_layers: int, *, per_hop: bool) -> int:
    """The width with the parameters of a GCN of width 256 and as many layers.

    DRew (``per_hop``) has (L + 1) / 2 times the matrices of a GCN, and a width smaller by the root of that.
    """
    return round(math.sqrt(2 * GCN_WIDTH**2 / (num_layers + 1))) if per_hop else GCN_WIDTH


def build_model(name: str, size: int) -> nn.Module:
    """gcn, spn, drew-NU or drew-inf with size / 2 layers and the parameters of a GCN of width 256."""
    num_layers = size // 2
    width = ring_width(num_layers, per_hop=name.startswith("drew"))
    if name == "gcn":
        return DRew(NUM_CLASSES, width, NUM_CLASSES, num_layers, max_hops=1)
    if name == "spn":
        return SPN(NUM_CLASSES, width, NUM_CLASSES, num_layers, max_hops=min(10, num_layers))
    return DRew(NUM_CLASSES, width, NUM_CLASSES, num_layers, delay=float(name.removeprefix("drew-")))
