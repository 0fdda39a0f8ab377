"""DRew-GCN written the way the paper's code does it: the peer of bench_drew.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch_geometric.nn import GCNConv

__all__ = ["PaperDRewGCN"]


class PaperDRewGCN(nn.Module):
    """x[t + 1] = x[t] + relu(sum over k <= t + 1 of relu(norm(GCNConv(x[t - max(k - delay, 0)], edges of hop k)))).

    Every convolution masks the edges of all hops anew and normalises them anew, as the original does.
    """

    def __init__(self, dim: int, num_layers: int, delay: float) -> None:
        super().__init__()
        self.num_layers, self.delay = num_layers, delay
        pairs = [(k, t) for t in range(num_layers) for k in range(1, t + 2)]
        self.convs = nn.ModuleDict({f"{k},{t}": GCNConv(dim, dim, bias=False) for k, t in pairs})
        self.norms = nn.ModuleDict({f"{k},{t}": nn.BatchNorm1d(dim) for k, t in pairs})

    def forward(self, x: Tensor, edges: Tensor, hops: Tensor) -> Tensor:
        states = []
        for t in range(self.num_layers):
            states.append(x)
            total = torch.zeros_like(x)
            for k in range(1, t + 2):
                if edges[:, hops == k].shape[1] > 0:
                    source = states[t - int(max(k - self.delay, 0))]
                    message = self.convs[f"{k},{t}"](source, edges[:, hops == k])
                    total = total + self.norms[f"{k},{t}"](message).relu()
            x = normalize(states[t] + total.relu(), p=2, dim=-1)
        return x
