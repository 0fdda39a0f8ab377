"""The layers of DRew: every hop of a layer reads the state of so many layers ago as its message has travelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer._arguments import typed
from gossamer.graph.aggregate import Propagation, aggregate, gcn_aggregate, propagate
from gossamer.graph.csr import CSR
from gossamer.graph.gated_sum import gated_sum

__all__ = ["DRewGCNConv", "DRewGINConv", "DRewGatedGCNConv"]


class _Hop(NamedTuple):
    """What a layer reads at hop k: the number of its weights, the shell, the delayed state, a_k (None for 1)."""

    k: int
    number: int
    shell: CSR
    state: Tensor
    weight: Tensor | None

    def weighed(self, message: Tensor) -> Tensor:
        return message if self.weight is None else self.weight * message


class NormedHop(NamedTuple):
    """A hop as drew_gcn takes it: its shell (-1: the node itself), its state, what its message is multiplied and normed
    by, its share of the sum (None for 1)."""

    shell: int
    state: int
    linear: nn.Linear
    norm: nn.BatchNorm1d
    weight: Tensor | float | None


Stage = tuple[nn.Linear, nn.BatchNorm1d]  # what a message is multiplied and normed by


def _linear_and_norm(modules: Any) -> Stage:
    """The first two of some modules."""
    linear, norm, *_ = modules
    return cast(nn.Linear, linear), cast(nn.BatchNorm1d, norm)


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
        for argument, value, least in (("channels", channels, 1), ("layer", layer, 0)):
            if value < least:
                raise ValueError(f"{name}: {argument} must be at least {least}, got {value}")
        if max_hops is not None and max_hops < 1:
            raise ValueError(f"{name}: max_hops must be at least 1 or None, got {max_hops}")
        if not delay >= 1:
            raise ValueError(f"{name}: delay must be at least 1, got {delay}")
        self.channels, self.delay = channels, delay
        self.num_hops = min(layer + 1, max_hops or layer + 1)
        self.num_weights = 1 if share_weights else self.num_hops
        self.hop_weights = nn.Parameter(torch.zeros(self.num_hops)) if learn_hop_weights else None

    def _normed_hops(self, stages: Sequence[Stage], current: int, shells: Sequence[CSR], x: Tensor) -> list[NormedHop]:
        """Hops with edges of the layer whose newest state is number ``current``; stages: (linear, norm) by weights."""
        self.check_shells(shells, x)
        weights = None if self.hop_weights is None else self.num_hops * self.hop_weights.softmax(0)
        hops = []
        for k in range(1, self.num_hops + 1):
            if shells[k - 1].num_edges:
                linear, norm = stages[(k - 1) % self.num_weights]
                weight = None if weights is None else weights[k - 1]
                hops.append(NormedHop(k - 1, self.source(current, k), linear, norm, weight))
        return hops

    def hops(self, shells: Sequence[CSR], states: Sequence[Tensor]) -> list[_Hop]:
        """Every hop that has any edges, after all checks."""
        self.check_shells(shells, states[-1])
        self.check_states(states)
        weights = None if self.hop_weights is None else self.num_hops * self.hop_weights.softmax(0)
        found = []
        for k in range(1, self.num_hops + 1):
            if shells[k - 1].num_edges:
                state = states[self.source(len(states) - 1, k)]
                weight = None if weights is None else weights[k - 1]
                found.append(_Hop(k, (k - 1) % self.num_weights, shells[k - 1], state, weight))
        return found

    def source(self, current: int, k: int) -> int:
        """Number of the state that hop k reads, where ``current`` is that of the newest."""
        return current - int(max(k - self.delay, 0))

    def check_shells(self, shells: Sequence[CSR], newest: Tensor) -> None:
        name = type(self).__name__
        if isinstance(shells, CSR):
            raise TypeError(f"{name}: shells must be the list that k_hop gives, got a CSR")
        sizes = {shell.num_nodes for shell in shells[: self.num_hops]}
        if len(shells) < self.num_hops:
            raise ValueError(f"{name}: shells must be at least {self.num_hops} graphs, got {len(shells)}")
        if newest.dim() != 2 or newest.shape[1] != self.channels or sizes != {newest.shape[0]}:
            wanted = [max(sizes), self.channels]
            raise ValueError(f"{name}: states must be {wanted} (nodes of the shells), got {list(newest.shape)}")

    def check_states(self, states: Sequence[Tensor]) -> None:
        name, missing = type(self).__name__, -min(self.source(len(states) - 1, self.num_hops), 0)
        if missing:
            raise ValueError(f"{name}: states must be at least {len(states) + missing} tensors, got {len(states)}")
        if any(state.shape != states[-1].shape for state in states):
            raise ValueError(f"{name}: states must be of one shape, got {[list(state.shape) for state in states]}")

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

    @typed
    def __init__(
        self, channels: int, layer: int, *, reference_quirks: bool = True, l2_norm: bool = True, **hops: object
    ) -> None:
        super().__init__(channels, layer, **hops)  # type: ignore[arg-type]
        self.reference_quirks, self.l2_norm = reference_quirks, l2_norm
        self.lins = self.linears(bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(self.num_weights if reference_quirks else 1))

    self_loops = True

    @property
    def is_normed_sum(self) -> bool:
        """Whether drew_gcn computes this layer: a sum of hops that are normed and cut one by one."""
        return self.reference_quirks

    def normed_hops(self, current: int, shells: Sequence[CSR], x: Tensor) -> list[NormedHop]:
        """The hops with edges, as drew_gcn takes them; ``current`` is the number of the newest state."""
        stages = [_linear_and_norm(pair) for pair in zip(self.lins, self.norms)]
        return self._normed_hops(stages, current, shells, x)

    def forward(self, shells: Sequence[CSR], states: Sequence[Tensor]) -> Tensor:
        total = torch.zeros_like(states[-1])
        for hop in self.hops(shells, states):
            x = self.lins[hop.number](hop.state)
            if self.reference_quirks:
                message = self.norms[hop.number](gcn_aggregate(hop.shell, x)).relu()
            else:
                message = _normalized_sum(hop.shell, x)
            total = total + hop.weighed(message)
        if not self.reference_quirks:
            total = self.norms[0](total)
        out = states[-1] + total.relu()
        return F.normalize(out, dim=-1) if self.l2_norm else out


class DRewGINConv(_DRewConv):
    """x[t + 1] = x[t] + dropout(relu((1 + eps) MLP_0(x[t]) + sum_k a_k MLP_k(sum over N_k of x[t - delay_k]))).

    delay_k is max(k - delay, 0). Every MLP is Linear, BatchNorm, ReLU. Bonds are known at hop 1 alone, in one of two
    ways: ``edge_channels`` makes its sum one of relu(x_j + C e_ij); ``edge_types`` makes its message
    sum_r sum over neighbours by a bond of type r of MLP_1r(x_j), with an MLP per type.

    Args:
        eps: weight of a node's own state, beyond 1.
        dropout: probability of a drop.
        edge_channels: width of the bond features; None for none.
        edge_types: number of types of bonds; None for none.
        channels, layer, max_hops, delay, share_weights, learn_hop_weights: as for every DRew layer.

    Source: Gutteridge et al. 2023, DRew: Dynamically Rewired Message Passing with Delay, section 4; bonds as in its
    code for molecules and for QM9.
    """

    @typed
    def __init__(
        self,
        channels: int,
        layer: int,
        *,
        eps: float = 0.0,
        dropout: float = 0.0,
        edge_channels: int | None = None,
        edge_types: int | None = None,
        **hops: object,
    ) -> None:
        super().__init__(channels, layer, **hops)  # type: ignore[arg-type]
        if edge_channels is not None and edge_types is not None:
            raise ValueError(f"DRewGINConv: edge_types must be None beside edge_channels, got {edge_types}")
        _check_options("DRewGINConv", dropout, edge_channels=edge_channels, edge_types=edge_types)
        self.eps, self.dropout = eps, dropout
        self.edge_channels, self.edge_types = edge_channels, edge_types
        self.own = self._mlp()
        self.mlps = nn.ModuleList(self._mlp() for _ in range(self.num_weights))
        if edge_types and self.num_weights == self.num_hops:
            self.mlps[0] = nn.Identity()  # hop 1 has those of the types
        self.bond = nn.Linear(edge_channels, channels) if edge_channels else None
        self.relations = nn.ModuleList(self._mlp() for _ in range(edge_types or 0))

    def _mlp(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(self.channels, self.channels), nn.BatchNorm1d(self.channels), nn.ReLU())

    l2_norm, self_loops = False, False

    @property
    def is_normed_sum(self) -> bool:
        """Whether drew_gcn computes this layer: no bonds, no drops, and no term that the outer ReLU could cut."""
        knows_bonds = self.edge_channels is not None or self.edge_types is not None
        return not knows_bonds and self.eps >= -1 and not (self.dropout and self.training)

    def normed_hops(self, current: int, shells: Sequence[CSR], x: Tensor) -> list[NormedHop]:
        """The node itself and the hops with edges, as drew_gcn takes them; ``current`` is the newest state."""
        weight = 1 + self.eps if self.eps else None
        own = NormedHop(-1, current, *_linear_and_norm(self.own), weight)
        return [own, *self._normed_hops([_linear_and_norm(mlp) for mlp in self.mlps], current, shells, x)]

    def forward(self, shells: Sequence[CSR], states: Sequence[Tensor], edge_attr: Tensor | None = None) -> Tensor:
        """Shells of ``k_hop`` and states [N, channels], oldest first; edge_attr as ``hop_edge_attr`` gives it."""
        hops = self.hops(shells, states)
        check_edge_attr(self, shells, edge_attr)
        total = (1 + self.eps) * self.own(states[-1])
        for hop in hops:
            if hop.k == 1 and self.relations:
                assert edge_attr is not None  # checked above
                kinds = [torch.eq(edge_attr, r).to(hop.state.dtype) for r in range(len(self.relations))]
                sums = [aggregate(hop.shell, mlp(hop.state), weight=w) for mlp, w in zip(self.relations, kinds)]
                message = torch.stack(sums).sum(0)
            else:
                message = self.mlps[hop.number](self._sum(hop, edge_attr))
            total = total + hop.weighed(message)
        return states[-1] + F.dropout(total.relu(), self.dropout, self.training)

    def _sum(self, hop: _Hop, edge_attr: Tensor | None) -> Tensor:
        if hop.k > 1 or self.bond is None:
            return aggregate(hop.shell, hop.state)
        messages = (hop.state.index_select(0, hop.shell.col) + self.bond(edge_attr)).relu()  # [num_edges, channels]
        return torch.zeros_like(hop.state).index_add(0, hop.shell._rows, messages)


class DRewGatedGCNConv(_DRewConv):
    """x[t + 1] = x[t] + dropout(relu(norm(A x[t] + sum_k a_k sum over j in N_k(i) of eta_kij * B_k x_j))).

    The gates eta_kij = s_kij / (sum_j s_kij + 1e-6) with s_kij = sigmoid(D x_i[t] + E_k x_j) sum to 1 per receiver, hop
    and feature; x_j is the delayed state. A, B, D and E have biases. With ``edge_channels`` the gates of hop 1 know
    the bonds, as those of GatedGCN do: s_1ij = sigmoid(D x_i[t] + E_1 x_j + C e_ij).

    Args:
        dropout: probability of a drop.
        edge_channels: width of the bond features; None for none.
        channels, layer, max_hops, delay, share_weights, learn_hop_weights: as for every DRew layer.

    Source: Gutteridge et al. 2023, DRew: Dynamically Rewired Message Passing with Delay, section 4; C e_ij of Bresson
    and Laurent 2017, Residual Gated Graph ConvNets.
    """

    @typed
    def __init__(
        self, channels: int, layer: int, *, dropout: float = 0.0, edge_channels: int | None = None, **hops: object
    ) -> None:
        super().__init__(channels, layer, **hops)  # type: ignore[arg-type]
        _check_options("DRewGatedGCNConv", dropout, edge_channels=edge_channels)
        self.dropout, self.edge_channels = dropout, edge_channels
        self.own, self.gate = (nn.Linear(channels, channels) for _ in range(2))
        self.values, self.keys = self.linears(bias=True), self.linears(bias=True)
        self.bond = nn.Linear(edge_channels, channels) if edge_channels else None
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, shells: Sequence[CSR], states: Sequence[Tensor], edge_attr: Tensor | None = None) -> Tensor:
        """Shells of ``k_hop`` and states [N, channels], oldest first; edge_attr as ``hop_edge_attr`` gives it."""
        hops = self.hops(shells, states)
        check_edge_attr(self, shells, edge_attr)
        total, query = self.own(states[-1]), self.gate(states[-1])
        for hop in hops:
            key, value = self.keys[hop.number](hop.state), self.values[hop.number](hop.state)
            if hop.k == 1 and self.bond is not None:
                message = _gated_by_bonds(hop.shell, query, key, value, self.bond(edge_attr))
            else:
                message = gated_sum(hop.shell, query, key, value)
            total = total + hop.weighed(message)
        return states[-1] + F.dropout(self.norm(total).relu(), self.dropout, self.training)


def _check_options(layer: str, dropout: float, **counts: int | None) -> None:
    if not 0 <= dropout <= 1:
        raise ValueError(f"{layer}: dropout must be in [0, 1], got {dropout}")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{layer}: {name} must be at least 1 or None, got {count}")


def check_edge_attr(conv: Any, shells: Sequence[CSR], edge_attr: Tensor | None) -> None:
    """edge_attr is what the layer was made for: features, types or nothing."""
    name, width, types = type(conv).__name__, conv.edge_channels, getattr(conv, "edge_types", None)
    if width is None and types is None:
        if edge_attr is not None:
            raise ValueError(f"{name}: edge_attr must be None without edge_channels, got {list(edge_attr.shape)}")
        return
    shape = [shells[0].num_edges] if types else [shells[0].num_edges, width]
    if edge_attr is None or list(edge_attr.shape) != shape or edge_attr.is_floating_point() == bool(types):
        got = "None" if edge_attr is None else f"{edge_attr.dtype} of {list(edge_attr.shape)}"
        wanted = "integers" if types else "floating point"
        raise ValueError(f"{name}: edge_attr must be {wanted} of {shape} (edges of shell 1), got {got}")
    if types and edge_attr.numel() and not torch.compiler.is_compiling():
        low, high = edge_attr.aminmax()
        if low < 0 or high >= types:
            raise ValueError(f"{name}: edge_attr must be in [0, {types}), got {int(low)} to {int(high)}")


def _gated_by_bonds(shell: CSR, query: Tensor, key: Tensor, value: Tensor, bond: Tensor) -> Tensor:
    """gated_sum with bond [num_edges, channels] added to the logits: the bonds of shell 1 are few."""
    rows, cols = shell._rows, shell.col
    gates = (query.index_select(0, rows) + key.index_select(0, cols) + bond).sigmoid()
    weighed = gates * value.index_select(0, cols)
    numerator, denominator = (torch.zeros_like(query).index_add(0, rows, v) for v in (weighed, gates))
    return numerator / (denominator + 1e-6)


def _normalized_sum(shell: CSR, x: Tensor) -> Tensor:
    """D^-1/2 A D^-1/2 x with D the in-degree; rows without edges stay 0."""
    scale = shell.in_degree().clamp(min=1).to(torch.float64 if x.dtype == torch.float64 else torch.float32).rsqrt()
    return propagate(shell, x, Propagation(row_scale=scale, col_scale=scale))
