"""How DRew layers run as a stack: fused where they can be, computed again in segments where memory counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gossamer.graph.csr import CSR
from gossamer.graph.drew_gcn import drew_gcn, fusable
from gossamer.graph.drew_layers import DRewGCNConv

__all__ = ["frozen_statistics", "recompute_contexts", "run_layers"]


def run_layers(
    convs: Sequence[Any], x: Tensor, shells: Sequence[CSR], edge_attr: Tensor | None, *, recompute: bool
) -> Tensor:
    """The last state of DRew layers called one after the other, from the state x."""
    if edge_attr is not None and isinstance(convs[0], DRewGCNConv):
        raise ValueError(f"DRew: edge_attr must be None with conv gcn, got {list(edge_attr.shape)}")
    fused = edge_attr is None and fusable(convs, x)
    oldest = [_oldest(convs, t) for t in range(len(convs))]
    if fused and not (recompute and oldest == list(range(len(convs)))):
        return drew_gcn(convs, x, shells, recompute=recompute)
    if not (recompute and torch.is_grad_enabled()):
        return drew_gcn(convs, x, shells) if fused else _layers(convs, shells, edge_attr, 0, [x])[-1]
    run = _fused_layers if fused else _layers
    size, first, states = math.ceil(math.sqrt(len(convs))), 0, [x]  # states: of the layers first..t
    for t in range(0, len(convs), size):
        segment, kept = convs[t : t + size], min([len(convs), *oldest[t + size :]])
        states = checkpoint(
            partial(run, segment, shells, edge_attr, kept - first), states, use_reentrant=False,
            context_fn=partial(recompute_contexts, segment),
        )  # fmt: skip
        first = kept
    return states[-1]


def _oldest(convs: Sequence[Any], t: int) -> int:
    """Number of the oldest state that layer t reads."""
    return convs[t].source(t, convs[t].num_hops)


def _layers(
    convs: Sequence[Any], shells: Sequence[CSR], edge_attr: Tensor | None, skip: int, states: list[Tensor]
) -> list[Tensor]:
    """The states, those of more layers behind them, without the first ``skip``."""
    states = list(states)
    for conv in convs:
        states.append(conv(shells, states) if edge_attr is None else conv(shells, states, edge_attr))
    return states[skip:]


def _fused_layers(
    convs: Sequence[Any], shells: Sequence[CSR], edge_attr: Tensor | None, skip: int, states: list[Tensor]
) -> list[Tensor]:
    """As _layers, for layers that read the current state alone."""
    return [drew_gcn(convs, states[-1], shells)]


def recompute_contexts(
    convs: Sequence[nn.Module],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For torch.utils.checkpoint: around the first run of some modules, and around each one in a backward pass."""
    return nullcontext(), _Again(partial(frozen_statistics, convs))


class _Again(AbstractContextManager[None]):
    """A context that can be entered again, made anew each time."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make = make

    def __enter__(self) -> None:
        self._inner = self._make()
        self._inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)


@contextmanager
def frozen_statistics(convs: Sequence[nn.Module]) -> Iterator[None]:
    """A module that is computed again normalises as before, but counts its batch no second time."""
    norms = [module for conv in convs for module in conv.modules() if isinstance(module, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    counters = [(norm.num_batches_tracked, int(norm.num_batches_tracked or 0)) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for counter, num_batches in counters:
            if counter is not None:
                counter.fill_(num_batches)
