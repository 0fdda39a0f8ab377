"""Neighbour sampling where the seeds are on a GPU: rows by a CUDA kernel, local ids by operations of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gossamer.graph.csr import CSR
from gossamer.graph.sampling_index import _signed, checked_weight

__all__ = ["DeviceSample", "sample_on_device"]


@dataclass(frozen=True)
class DeviceSample:
    """Nodes and edges of a sample on the device, with the counts per hop."""

    node: Tensor
    row: Tensor
    col: Tensor
    edge: Tensor
    num_nodes: list[int]
    num_edges: list[int]


def sample_on_device(
    graph: CSR, seeds: Tensor, fanouts: Sequence[float], *, seed: int, replace: bool, weighted: bool
) -> DeviceSample:
    """One sampled subgraph for all seeds, the same as on the CPU: equal draws, and ids in the order of discovery."""
    weight, alias = _weights(graph) if weighted else (None, None)
    num_seeds = seeds.numel()
    nodes, num_nodes, parts = [seeds], [num_seeds], []
    # Local id of every node. One that is not known has a number above those of all that are.
    local = torch.full((graph.num_nodes,), torch.iinfo(torch.int64).max, device=seeds.device)
    local.scatter_reduce_(0, seeds, torch.arange(num_seeds, device=seeds.device), "amin")
    for hop, fanout in enumerate(fanouts):
        first = sum(num_nodes[:-1])
        source, col, edge = _sample_hop(graph, weight, alias, nodes[-1], first, fanout, seed, hop, replace)
        nodes.append(_discover(local, source, sum(num_nodes)))
        num_nodes.append(nodes[-1].numel())
        parts.append((local[source], col, edge))
    row, col, edge = (torch.cat(p) for p in zip(*parts)) if parts else (seeds.new_empty(0) for _ in range(3))
    return DeviceSample(torch.cat(nodes), row, col, edge, num_nodes, [part[0].numel() for part in parts])


def _sample_hop(
    graph: CSR, weight: Tensor | None, alias: Tensor | None, targets: Tensor, first: int, fanout: float, seed: int,
    hop: int, replace: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Global sources, local targets (counted from ``first``) and numbers of the edges of one hop."""
    bounds = torch.ops.gossamer.sample_bounds(graph.rowptr, targets, float(fanout), replace)
    offsets = torch.nn.functional.pad(bounds.cumsum(0), (1, 0))
    num_edges = int(offsets[-1])
    source, edge = torch.ops.gossamer.sample_rows(
        graph.rowptr, graph.col, weight, alias, graph.edge_ids, targets, offsets, num_edges, float(fanout),
        _signed(seed), hop, replace,
    )  # fmt: skip
    numbers = torch.arange(first, first + targets.numel(), device=targets.device)
    col = numbers.repeat_interleave(bounds, output_size=num_edges)
    if weight is None:
        return source, col, edge
    drawn = source >= 0  # rows with weights of zero may have fewer edges than there is room
    return source[drawn], col[drawn], edge[drawn]


def _discover(local: Tensor, source: Tensor, num_known: int) -> Tensor:
    """The new nodes among the sources, in order of their first edge; ``local`` gets their ids."""
    place = torch.arange(num_known, num_known + source.numel(), device=source.device)
    local.scatter_reduce_(0, source, place, "amin")
    fresh = source[local[source] == place]
    local[fresh] = torch.arange(num_known, num_known + fresh.numel(), device=source.device)
    return fresh


_WEIGHTS: WeakKeyDictionary[CSR, tuple[Tensor, Tensor]] = WeakKeyDictionary()


def _weights(graph: CSR) -> tuple[Tensor, Tensor]:
    """The weights of a graph and their tables, where the graph is; made once."""
    if graph not in _WEIGHTS:
        if graph.weight is None:
            raise ValueError("neighbor_sample: graph must have weights for weighted=True, got None")
        weight = checked_weight(graph.weight)
        alias = torch.ops.gossamer.alias_table(graph.rowptr.cpu(), weight.cpu()).to(weight.device)
        pinned = graph.rowptr.is_pinned()
        _WEIGHTS[graph] = (weight.pin_memory(), alias.pin_memory()) if pinned else (weight, alias)
    return _WEIGHTS[graph]


@torch.library.register_fake("gossamer::sample_bounds")
def _(rowptr: Tensor, targets: Tensor, fanout: float, replace: bool) -> Tensor:
    return torch.empty_like(targets)


@torch.library.register_fake("gossamer::sample_rows")
def _(
    rowptr: Tensor, col: Tensor, weight: Tensor | None, alias: Tensor | None, edge_ids: Tensor | None, targets: Tensor,
    offsets: Tensor, num_edges: int, *rest: object,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return targets.new_empty(num_edges), targets.new_empty(num_edges)
