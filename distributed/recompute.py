"""A stage whose layers run again in the backward pass, a segment at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gossamer.distributed.chunks import ChunkView
from gossamer.graph.drew_stack import recompute_contexts
from gossamer.graph.layers import GraphSequential, State

__all__ = ["run_in_segments"]


def run_in_segments(stage: nn.Module, view_from: Callable[[int], ChunkView], inputs: State) -> State:
    """The state after the stage; for the backward pass the states between about sqrt(n) runs of its n layers are kept.

    For one chunk that is the whole graph: recomputing the stage at once would bring back all its activations together.

    Args:
        stage: a sequence of layers.
        view_from: the graph for layers whose first aggregation has this number in the stage.
        inputs: state at the begin of the stage.

    Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.
    """
    layers, site, state = list(cast(nn.Sequential, stage)), 0, inputs
    size = math.ceil(math.sqrt(len(layers)))
    for i in range(0, len(layers), size):
        segment, views = GraphSequential(*layers[i : i + size]), list[ChunkView]()
        state = checkpoint(
            partial(_run, segment, views, view_from, site), *state, use_reentrant=False,
            context_fn=partial(recompute_contexts, [segment]),
        )  # fmt: skip
        site = views[0].next_site
    return state


def _run(
    segment: GraphSequential, views: list[ChunkView], view_from: Callable[[int], ChunkView], site: int, *state: Tensor
) -> State:
    """The segment on a view that counts its aggregations from the same number at every run."""
    views[:] = [view_from(site)]
    outputs = segment(views[0], *state)
    return outputs if isinstance(outputs, tuple) else (outputs,)
