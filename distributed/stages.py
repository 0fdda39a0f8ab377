"""Cut a stack of layers into pipeline stages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gossamer._arguments import typed
from gossamer.graph import GraphSequential
from gossamer.graph.layers import State

__all__ = ["layers_of", "measure_layers", "plan_stages", "split_layers", "stage_module"]


@typed
def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a model, in order: its own children if it is a sequence, else those of ``model.layers``.

    Raises:
        TypeError: if the model is neither.
    """
    stack = model if isinstance(model, (nn.Sequential, nn.ModuleList)) else getattr(model, "layers", None)
    if not isinstance(stack, (nn.Sequential, nn.ModuleList)):
        raise TypeError(
            "initialize: model must be a sequence of layers (GraphSequential, nn.Sequential or a module whose "
            f"`layers` is one), got {type(model).__name__}"
        )
    return list(stack)


class _ProbeGraph:
    """A graph of no rows, and of ``num_shells`` shells: aggregations keep the width and are counted."""

    num_edges = 1  # a layer may leave out a shell without edges

    def __init__(self, device: torch.device, num_shells: int) -> None:
        self.num_nodes = 0
        self.shells = [self] * num_shells
        self.node_ids = torch.empty(0, dtype=torch.int64, device=device)
        self.step = 0
        self.num_aggregations = 0

    def aggregate(self, x: Tensor, **_: Any) -> Tensor:
        self.num_aggregations += 1
        return torch.zeros_like(x)

    def gcn_aggregate(self, x: Tensor, **_: Any) -> Tensor:
        return self.aggregate(x)


def measure_layers(layers: Sequence[nn.Module], features: Tensor, num_shells: int = 0) -> tuple[list[int], list[State]]:
    """Run the layers on a graph of no rows.

    Returns:
        The number of aggregations of each layer, and the state of zero rows that leaves each layer: its tensors
        carry the widths and dtypes that cross a stage boundary there.
    """
    counts, states = [], []
    state: State = (features[:0],)
    for layer in layers:
        probe = _ProbeGraph(features.device, num_shells)
        modes = [(module, module.training) for module in layer.modules()]
        with torch.no_grad():
            state = GraphSequential(layer.eval())(probe, *state)
        for module, training in modes:
            module.training = training
        state = state if isinstance(state, tuple) else (state,)
        counts.append(probe.num_aggregations)
        states.append(state)
    return counts, states


@typed
def plan_stages(
    layers: Sequence[nn.Module],
    features: Tensor,
    num_stages: int,
    bounds: Sequence[int] | None = None,
    *,
    num_shells: int = 0,
) -> tuple[list[range], list[State]]:
    """The layers of every stage, and the state that leaves each layer (see measure_layers).

    Args:
        layers: all layers of the model.
        features: [N, F], input of the first layer.
        num_stages: between 1 and the number of layers.
        bounds: first layer of every stage but the first; None balances the aggregations, with a tenth of one for
            a layer that has parameters.
        num_shells: of the HopGraph that the layers run on; 0 for a CSR.

    Raises:
        ValueError: if there are fewer layers than stages, the bounds do not ascend or a stage has no parameters.
    """
    counts, states = measure_layers(layers, features, num_shells)
    if bounds is None:
        costs = [n + 0.1 * any(True for _ in layer.parameters()) for n, layer in zip(counts, layers)]
        ranges = split_layers(costs, num_stages)
    else:
        edges = [0, *bounds, len(layers)]
        if len(edges) != num_stages + 1 or any(a >= b for a, b in pairwise(edges)):
            raise ValueError(
                f"initialize: stage_bounds must be {num_stages - 1} ascending layer numbers between 1 and "
                f"{len(layers) - 1}, got {list(bounds)}"
            )
        ranges = [range(a, b) for a, b in pairwise(edges)]
    for stage, ids in enumerate(ranges):
        if not any(p.requires_grad for i in ids for p in layers[i].parameters()):
            raise ValueError(f"initialize: every stage must have parameters to train, got none in stage {stage}")
    return ranges, states


def split_layers(costs: Sequence[float], num_stages: int) -> list[range]:
    """Contiguous runs of layers, one per stage, with the smallest possible maximum cost; none is empty.

    Among the splits with that maximum the earlier stages are as full as they can be, so that trailing layers
    (a classifier) do not stand alone. Source: GNNPipe's min-max partition, O(L^2 S).

    Args:
        costs: cost of each layer, any unit, not negative.
        num_stages: between 1 and the number of layers.
    """
    num_layers = len(costs)
    if not 1 <= num_stages <= num_layers:
        raise ValueError(f"initialize: num_stages must be between 1 and the {num_layers} layers, got {num_stages}")
    total = [0.0, *accumulate(costs)]
    best = [[float("inf")] * (num_layers + 1) for _ in range(num_stages + 1)]
    best[0][0] = 0.0
    for stage in range(1, num_stages + 1):
        for end in range(stage, num_layers + 1):
            best[stage][end] = min(
                max(best[stage - 1][begin], total[end] - total[begin]) for begin in range(stage - 1, end)
            )
    limit = best[num_stages][num_layers] * (1 + 1e-9)
    ranges, begin = [], 0
    for stage in range(num_stages):
        last = num_layers - (num_stages - stage - 1)
        end = begin + 1
        while end < last and total[end + 1] - total[begin] <= limit:
            end += 1
        ranges.append(range(begin, end))
        begin = end
    return ranges


def stage_module(layers: Sequence[nn.Module], layer_ids: range) -> GraphSequential:
    """The layers of one stage, with the names (indices) that they have in the whole model."""
    module = GraphSequential()
    for i in layer_ids:
        module.add_module(str(i), layers[i])
    return module
