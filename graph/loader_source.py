"""Which batch is made how: the part of SampleLoader that its worker processes share with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gossamer.graph.csr import CSR
from gossamer.graph.sampling import SampledSubgraph, neighbor_sample

__all__ = ["BatchSource", "Plan", "SampledBatch", "unpack"]

Batch = dict[str, Tensor]
_SUBGRAPH = ("node", "row", "col", "edge", "batch")


class Plan(NamedTuple):
    """What to make from now on: the batches [start, stop) of an epoch. It makes older plans void."""

    version: int
    epoch: int
    start: int
    stop: int
    fanouts: tuple[float, ...]


@dataclass(frozen=True)
class SampledBatch:
    """One batch.

    Args:
        index: number of the batch in its epoch, from 0.
        seed_index: [batch_size], int64, the places of its seeds in the loader's ``seeds``; use it for labels.
        subgraph: the sampled neighbourhood of the seeds.
        features: the rows of the loader's features at ``subgraph.node``, and what its transform added, by name.
    """

    index: int
    seed_index: Tensor
    subgraph: SampledSubgraph
    features: dict[str, Tensor]


@dataclass
class BatchSource:
    """Makes batch i of an epoch from (seed, epoch, i) alone, whoever asks."""

    graph: CSR
    seeds: Tensor
    batch_size: int
    seed: int
    shuffle: bool
    rank: int
    world_size: int
    options: Mapping[str, Any]
    seed_time: Tensor | None
    features: Mapping[str, Tensor]
    transform: Callable[[Batch], Mapping[str, Tensor]] | None
    _order: tuple[int, Tensor] | None = field(default=None, repr=False)

    def sample(self, plan: Plan, index: int) -> Batch:
        """The tensors of a batch without its features."""
        number = index * self.world_size + self.rank
        at = self._epoch_order(plan.epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        out = neighbor_sample(
            self.graph,
            self.seeds[at],
            list(plan.fanouts),
            seed=_mix(self.seed, plan.epoch, number),
            seed_time=None if self.seed_time is None else self.seed_time[at],
            **self.options,
        )
        batch = {name: getattr(out, name) for name in _SUBGRAPH if getattr(out, name) is not None}
        batch["_plan"] = torch.tensor([plan.version, index])
        batch["_num_nodes"] = torch.tensor(out.num_sampled_nodes, dtype=torch.int64)
        batch["_num_edges"] = torch.tensor(out.num_sampled_edges, dtype=torch.int64)
        batch["_seed_index"] = at
        return batch

    def make(self, plan: Plan, index: int) -> Batch:
        """A whole batch."""
        batch = self.sample(plan, index)
        batch |= {f"x:{name}": rows.index_select(0, batch["node"]) for name, rows in self.features.items()}
        if self.transform is not None:
            shown = {name.removeprefix("x:"): t for name, t in batch.items() if not name.startswith("_")}
            shown |= {"seed_index": batch["_seed_index"], "epoch": torch.tensor(plan.epoch)}
            shown["fanouts"] = torch.tensor(plan.fanouts, dtype=torch.float64)
            batch |= {f"x:{name}": tensor for name, tensor in _checked(self.transform(shown)).items()}
        return batch

    def _epoch_order(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            if self.shuffle:
                generator = torch.Generator().manual_seed(_mix(self.seed, epoch, -1))
                order = torch.randperm(self.seeds.numel(), generator=generator)
            else:
                order = torch.arange(self.seeds.numel())
            self._order = (epoch, order)
        return self._order[1]


def _checked(made: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What a transform returned."""
    if not isinstance(made, Mapping):
        raise TypeError(f"SampleLoader: transform must return tensors by name, got {type(made).__name__}")
    for name, tensor in made.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"SampleLoader: transform must return tensors, got {type(tensor).__name__} for {name!r}")
    return made


def unpack(batch: Batch) -> SampledBatch:
    """The batch as users see it."""
    hops: Sequence[list[int]] = (batch["_num_nodes"].tolist(), batch["_num_edges"].tolist())
    subgraph = SampledSubgraph(*(batch.get(name) for name in _SUBGRAPH), *hops)  # type: ignore[arg-type]
    features = {name[2:]: tensor for name, tensor in batch.items() if name.startswith("x:")}
    return SampledBatch(int(batch["_plan"][1]), batch["_seed_index"], subgraph, features)


def _mix(seed: int, epoch: int, number: int) -> int:
    digest = hashlib.blake2b(f"{seed} {epoch} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
