"""DRew: layer t looks min(t + 1, max_hops) hops far, and at hop k sees the state of max(k - delay, 0) layers ago."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.graph.aggregate import Propagation, aggregate, gcn_aggregate, propagate
from gossamer.graph.csr import CSR
from gossamer.graph.drew_gcn import drew_gcn, fusable

__all__ = ["DRew", "DRewGCNConv", "DRewGINConv", "DRewGatedGCNConv", "drew_width"]


class _DRewConv(nn.Module):
    """What the DRew layers share: which hops layer ``layer`` reads, from which states, with which weights.

    Args:
        channels: width of the states.
        layer: number of this layer in the stack, from 0; it reads hops 1..min(layer + 1, max_hops).
        max_hops: last hop that any layer reads; None for no limit.
        delay: nu; 1 reads hop k from k - 1 layers ago, math.inf everything from the current state.
        share_weights: one set of weights for all hops of the layer instead of one each.
        learn_hop_weights: weigh the hops by num_hops * softmax of learned coefficients instead of by 1.
    """

    def __init__(
        self,
        channels: int,
        layer: int,
        *,
        max_hops: int | None = None,
        delay: float = 1,
        share_weights: bool = False,
        learn_hop_weights: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if max_hops is not None and max_hops < 1:
            raise ValueError(f"{name}: max_hops must be at least 1 or None, got {max_hops}")
        if not delay >= 1:
            raise ValueError(f"{name}: delay must be at least 1, got {delay}")
        self.channels, self.delay = channels, delay
        self.num_hops = min(layer + 1, max_hops or layer + 1)
        self.num_weights = 1 if share_weights else self.num_hops
        self.hop_weights = nn.Parameter(torch.zeros(self.num_hops)) if learn_hop_weights else None

    def hops(self, shells: Sequence[CSR], states: Sequence[Tensor]) -> Iterator[tuple[int, CSR, Tensor, Tensor | int]]:
        """(number of its weights, shell, delayed state, hop weight) of every hop that has any edges."""
        self.check_shells(shells)
        weights = None if self.hop_weights is None else self.num_hops * self.hop_weights.softmax(0)
        for k in range(1, self.num_hops + 1):
            if shells[k - 1].num_edges:
                state = states[self.source(len(states) - 1, k)]
                yield (k - 1) % self.num_weights, shells[k - 1], state, 1 if weights is None else weights[k - 1]

    def source(self, current: int, k: int) -> int:
        """Number of the state that hop k reads, where ``current`` is that of the newest."""
        return current - int(max(k - self.delay, 0))

    def check_shells(self, shells: Sequence[CSR]) -> None:
        if len(shells) < self.num_hops:
            raise ValueError(
                f"{type(self).__name__}: shells must be at least {self.num_hops} graphs, got {len(shells)}"
            )

    def linears(self, *, bias: bool) -> nn.ModuleList:
        return nn.ModuleList(nn.Linear(self.channels, self.channels, bias=bias) for _ in range(self.num_weights))


class DRewGCNConv(_DRewConv):
    """x[t + 1] = normalize(x[t] + relu(sum_k a_k relu(norm_k(S_k x[t - max(k - delay, 0)] W_k^T)))).

    S_k is the GCN normalisation of shell k, norm_k a batch norm. As in the paper's code every hop is normed and cut by
    itself, and S_k has self loops, so that a node counts itself once per hop; ``reference_quirks=False`` follows the
    text: no self loops, and one norm over the sum.

    Args:
        reference_quirks: compute what the paper's code does, not what the paper says.
        l2_norm: give every row of the result length 1.
        channels, layer, max_hops, delay, share_weights, learn_hop_weights: as for every DRew layer.

    Source: Gutteridge et al. 2023, DRew: Dynamically Rewired Message Passing with Delay, section 4.
    """

    def __init__(
        self, channels: int, layer: int, *, reference_quirks: bool = True, l2_norm: bool = True, **hops: object
    ) -> None:
        super().__init__(channels, layer, **hops)  # type: ignore[arg-type]
        self.reference_quirks, self.l2_norm = reference_quirks, l2_norm
        self.lins = self.linears(bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(self.num_weights if reference_quirks else 1))

    def forward(self, shells: Sequence[CSR], states: Sequence[Tensor]) -> Tensor:
        total = torch.zeros_like(states[-1])
        for i, shell, x, weight in self.hops(shells, states):
            if self.reference_quirks:
                message = self.norms[i](gcn_aggregate(shell, self.lins[i](x))).relu()
            else:
                message = _normalized_sum(shell, self.lins[i](x))
            total = total + (message if isinstance(weight, int) else weight * message)
        if not self.reference_quirks:
            total = self.norms[0](total)
        out = states[-1] + total.relu()
        return F.normalize(out, dim=-1) if self.l2_norm else out


class DRewGINConv(_DRewConv):
    """x[t + 1] = x[t] + dropout(relu((1 + eps) MLP_0(x[t]) + sum_k a_k MLP_k(sum over N_k of x[t - delay_k]))).

    delay_k is max(k - delay, 0). Every MLP is Linear, BatchNorm, ReLU.

    Args:
        eps: weight of a node's own state, beyond 1.
        dropout: probability of a drop.
        channels, layer, max_hops, delay, share_weights, learn_hop_weights: as for every DRew layer.

    Source: Gutteridge et al. 2023, DRew: Dynamically Rewired Message Passing with Delay, section 4.
    """

    def __init__(self, channels: int, layer: int, *, eps: float = 0.0, dropout: float = 0.0, **hops: object) -> None:
        super().__init__(channels, layer, **hops)  # type: ignore[arg-type]
        self.eps, self.dropout = eps, dropout
        self.own = self._mlp()
        self.mlps = nn.ModuleList(self._mlp() for _ in range(self.num_weights))

    def _mlp(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(self.channels, self.channels), nn.BatchNorm1d(self.channels), nn.ReLU())

    def forward(self, shells: Sequence[CSR], states: Sequence[Tensor]) -> Tensor:
        total = (1 + self.eps) * self.own(states[-1])
        for i, shell, x, weight in self.hops(shells, states):
            total = total + weight * self.mlps[i](aggregate(shell, x))
        return states[-1] + F.dropout(total.relu(), self.dropout, self.training)


class DRewGatedGCNConv(_DRewConv):
    """x[t + 1] = x[t] + dropout(relu(norm(A x[t] + sum_k a_k sum over j in N_k(i) of eta_kij * B_k x_j))).

    The gates eta_kij = s_kij / (sum_j s_kij + 1e-6) with s_kij = sigmoid(D x_i[t] + E_k x_j) sum to 1 per receiver, hop
    and feature; x_j is the delayed state. A, B, D and E have biases.

    Args:
        dropout: probability of a drop.
        channels, layer, max_hops, delay, share_weights, learn_hop_weights: as for every DRew layer.

    Source: Gutteridge et al. 2023, DRew: Dynamically Rewired Message Passing with Delay, section 4.
    """

    def __init__(self, channels: int, layer: int, *, dropout: float = 0.0, **hops: object) -> None:
        super().__init__(channels, layer, **hops)  # type: ignore[arg-type]
        self.dropout = dropout
        self.own, self.gate = (nn.Linear(channels, channels) for _ in range(2))
        self.values, self.keys = self.linears(bias=True), self.linears(bias=True)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, shells: Sequence[CSR], states: Sequence[Tensor]) -> Tensor:
        total, query = self.own(states[-1]), self.gate(states[-1])
        for i, shell, x, weight in self.hops(shells, states):
            rows, cols = shell._rows, shell.col
            gates = (query.index_select(0, rows) + self.keys[i](x).index_select(0, cols)).sigmoid()
            values = gates * self.values[i](x).index_select(0, cols)
            numerator, denominator = (torch.zeros_like(query).index_add(0, rows, v) for v in (values, gates))
            total = total + weight * numerator / (denominator + 1e-6)
        return states[-1] + F.dropout(self.norm(total).relu(), self.dropout, self.training)


_CONVS: dict[str, type[nn.Module]] = {"gcn": DRewGCNConv, "gin": DRewGINConv, "gatedgcn": DRewGatedGCNConv}


class DRew(nn.Module):
    """features -> Linear -> num_layers DRew layers -> Linear: message passing that looks one hop further every layer.

    The states of all layers are kept while the stack runs: num_layers + 1 tensors [N, hidden_channels].

    Args:
        in_channels: width of the input features.
        hidden_channels: width of the states; see drew_width for a budget of parameters.
        out_channels: width of the result.
        num_layers: number of DRew layers, at least 1.
        conv: gcn, gin or gatedgcn.
        delay: nu; 1 reads hop k from k - 1 layers ago, math.inf everything from the current state.
        max_hops: last hop that any layer reads; None for num_layers.
        recompute: gcn on a CPU: compute the messages again in the backward pass instead of keeping them.
        options: what the layers of ``conv`` take besides.

    Source: Gutteridge et al. 2023, DRew: Dynamically Rewired Message Passing with Delay.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        *,
        conv: str = "gcn",
        delay: float = 1,
        max_hops: int | None = None,
        recompute: bool = False,
        **options: object,
    ) -> None:
        super().__init__()
        if conv not in _CONVS:
            raise ValueError(f"DRew: conv must be gcn, gin or gatedgcn, got {conv!r}")
        if num_layers < 1:
            raise ValueError(f"DRew: num_layers must be at least 1, got {num_layers}")
        self.encoder = nn.Linear(in_channels, hidden_channels)
        self.convs = nn.ModuleList(
            _CONVS[conv](hidden_channels, t, delay=delay, max_hops=max_hops, **options) for t in range(num_layers)
        )
        self.head = nn.Linear(hidden_channels, out_channels)
        self.recompute = recompute
        self.num_hops = min(num_layers, max_hops or num_layers)  # shells that forward needs

    def forward(self, x: Tensor, shells: Sequence[CSR]) -> Tensor:
        """Node features [N, in_channels] and the shells of ``k_hop(graph, model.num_hops)`` -> [N, out_channels]."""
        states = [self.encoder(x)]
        convs = list(self.convs)
        if isinstance(convs[0], DRewGCNConv) and fusable(convs, states[0]):
            return self.head(drew_gcn(convs, states[0], shells, recompute=self.recompute))
        for conv in self.convs:
            states.append(conv(shells, states))
        return self.head(states[-1])


def drew_width(
    num_layers: int, *, conv: str = "gcn", max_hops: int | None = None, vectors: int = 0, budget: int = 500_000
) -> int:
    """The width d that solves a d^2 + b d = 0.99 budget, with a the number of d x d matrices of the layers.

    Args:
        num_layers: number of DRew layers.
        conv: gcn, gin or gatedgcn.
        max_hops: last hop that any layer reads; None for num_layers.
        vectors: b, the number of vectors of d parameters: norms, rows of the encoder and of the head.
        budget: number of parameters.

    Source: the published configurations of Gutteridge et al. 2023.
    """
    if conv not in _CONVS:
        raise ValueError(f"drew_width: conv must be gcn, gin or gatedgcn, got {conv!r}")
    hops = sum(min(t + 1, max_hops or t + 1) for t in range(num_layers))
    matrices = {"gcn": hops, "gin": hops + num_layers, "gatedgcn": 2 * hops + 2 * num_layers}[conv]
    return round((math.sqrt(vectors**2 + 4 * matrices * 0.99 * budget) - vectors) / (2 * matrices))


def _normalized_sum(shell: CSR, x: Tensor) -> Tensor:
    """D^-1/2 A D^-1/2 x with D the in-degree; rows without edges stay 0."""
    scale = shell.in_degree().clamp(min=1).to(torch.float64 if x.dtype == torch.float64 else torch.float32).rsqrt()
    return propagate(shell, x, Propagation(row_scale=scale, col_scale=scale))
