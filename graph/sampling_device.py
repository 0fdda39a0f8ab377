"""Neighbour sampling where the seeds are on a GPU: rows by a CUDA kernel, local ids by operations of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.graph.sampling_index import Relation, _signed

__all__ = ["DeviceSample", "Rules", "sample_on_device"]

_UNKNOWN = torch.iinfo(torch.int64).max  # above every local id


@dataclass(frozen=True)
class DeviceSample:
    """Nodes and edges of a sample on the device, with the counts per hop; ``batch`` only of disjoint trees."""

    node: Tensor
    row: Tensor
    col: Tensor
    edge: Tensor
    batch: Tensor | None
    num_nodes: list[int]
    num_edges: list[int]


@dataclass(frozen=True)
class Rules:
    """How rows are sampled; ``seed_time`` [num_seeds] implies ``disjoint``, a ``window`` of -1 is none."""

    seed: int
    replace: bool = False
    temporal: str = "uniform"
    window: int = -1
    seed_time: Tensor | None = None
    disjoint: bool = False


def sample_on_device(
    relation: Relation, num_nodes: int, seeds: Tensor, fanouts: Sequence[float], rules: Rules
) -> DeviceSample:
    """One sampled subgraph for all seeds, or one tree for each, the same as on the CPU: equal draws, and ids in the
    order of discovery.

    A node is known by a key: its id, in trees (tree, id) as one number.
    """
    num_seeds = seeds.numel()
    numbers = torch.arange(num_seeds, device=seeds.device)
    known: _SharedIds | _TreeIds
    if rules.disjoint:
        known, keys = _TreeIds(seeds.device), numbers * num_nodes + seeds
    else:
        known, keys = _SharedIds(num_nodes, seeds.device), seeds
    known.add_seeds(keys)
    frontier, counts, parts = [keys], [num_seeds], []
    for hop, fanout in enumerate(fanouts):
        first = sum(counts[:-1])
        source, col, edge = _sample_hop(relation, num_nodes, frontier[-1], first, fanout, hop, rules)
        frontier.append(known.discover(source, sum(counts)))
        counts.append(frontier[-1].numel())
        parts.append((known.find(source), col, edge))
    row, col, edge = (torch.cat(p) for p in zip(*parts)) if parts else (seeds.new_empty(0) for _ in range(3))
    nodes = torch.cat(frontier)
    batch = nodes // num_nodes if rules.disjoint else None
    node = nodes % num_nodes if rules.disjoint else nodes
    return DeviceSample(node, row, col, edge, batch, counts, [part[0].numel() for part in parts])


def _sample_hop(
    relation: Relation, num_nodes: int, keys: Tensor, first: int, fanout: float, hop: int, rules: Rules
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys of the sources, local targets (counted from ``first``) and numbers of the edges of one hop."""
    tree = keys // num_nodes if rules.disjoint else None
    targets = keys if tree is None else keys - tree * num_nodes
    time = relation.time if rules.seed_time is not None else None
    bounds = torch.ops.gossamer.sample_bounds(
        relation.rowptr, time, targets, tree, rules.seed_time, float(fanout), rules.replace, rules.window
    )
    offsets = torch.nn.functional.pad(bounds.cumsum(0), (1, 0))
    num_edges = int(offsets[-1])
    source, edge = torch.ops.gossamer.sample_rows(
        relation.rowptr, relation.col, relation.weight, relation.alias, relation.cumulative, time, relation.edge_ids,
        targets, tree, rules.seed_time, offsets, num_edges, float(fanout), _signed(rules.seed), hop, rules.replace,
        rules.temporal, rules.window,
    )  # fmt: skip
    numbers = torch.arange(targets.numel(), device=targets.device)
    place = numbers.repeat_interleave(bounds, output_size=num_edges)
    if relation.weight is not None:  # rows with weights of zero may have fewer edges than there is room
        drawn = source >= 0
        source, place, edge = source[drawn], place[drawn], edge[drawn]
    return source if tree is None else source + tree[place] * num_nodes, place + first, edge


class _SharedIds:
    """Local ids of the nodes of one subgraph, in a table over all nodes."""

    def __init__(self, num_nodes: int, device: torch.device) -> None:
        self._local = torch.full((num_nodes,), _UNKNOWN, device=device)

    def add_seeds(self, keys: Tensor) -> None:
        """Number the keys in order; one that stands twice keeps its first number."""
        self._local.scatter_reduce_(0, keys, torch.arange(keys.numel(), device=keys.device), "amin")

    def discover(self, keys: Tensor, num_known: int) -> Tensor:
        """The new ones among the keys, in order of their first place; they get the next ids."""
        place = torch.arange(num_known, num_known + keys.numel(), device=keys.device)
        self._local.scatter_reduce_(0, keys, place, "amin")
        fresh = keys[self._local[keys] == place]
        self._local[fresh] = torch.arange(num_known, num_known + fresh.numel(), device=keys.device)
        return fresh

    def find(self, keys: Tensor) -> Tensor:
        """Local ids of known keys."""
        return self._local[keys]


class _TreeIds:
    """Local ids of the nodes of many trees: sorted keys, as a table of all would have an entry per tree and node."""

    def __init__(self, device: torch.device) -> None:
        self._keys = torch.empty(0, dtype=torch.int64, device=device)
        self._ids = torch.empty_like(self._keys)

    def add_seeds(self, keys: Tensor) -> None:
        """Number the keys, which all differ, in order."""
        self._keys, self._ids = keys, torch.arange(keys.numel(), device=keys.device)  # they ascend: trees do

    def discover(self, keys: Tensor, num_known: int) -> Tensor:
        """The new ones among the keys, in order of their first place; they get the next ids."""
        all_keys = torch.cat([self._keys, keys])
        ordered, order = all_keys.sort(stable=True)
        is_first = torch.ones_like(ordered, dtype=torch.bool)
        is_first[1:] = ordered[1:] != ordered[:-1]  # known ones stand before new ones: the sort is stable
        firsts = order[is_first]
        fresh_places = firsts[firsts >= self._keys.numel()].sort().values - self._keys.numel()
        fresh = keys[fresh_places]
        ids = torch.cat([self._ids, torch.full_like(keys, _UNKNOWN)])
        fresh_ids = torch.arange(num_known, num_known + fresh.numel(), device=keys.device)
        ids[fresh_places + self._keys.numel()] = fresh_ids
        self._keys, self._ids = ordered[is_first], ids[firsts]
        return fresh

    def find(self, keys: Tensor) -> Tensor:
        """Local ids of known keys."""
        return self._ids[torch.searchsorted(self._keys, keys)]


@torch.library.register_fake("gossamer::sample_bounds")
def _(rowptr: Tensor, time: Tensor | None, targets: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(targets)


@torch.library.register_fake("gossamer::sample_rows")
def _(
    rowptr: Tensor, col: Tensor, weight: Tensor | None, alias: Tensor | None, cumulative: Tensor | None,
    time: Tensor | None, edge_ids: Tensor | None, targets: Tensor, tree: Tensor | None, seed_time: Tensor | None,
    offsets: Tensor, num_edges: int, *rest: object,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return targets.new_empty(num_edges), targets.new_empty(num_edges)
