"""Training of the recommender: DeepSpeed's engine for the network, local gradient aggregation for the table of ids."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gossamer.distributed import LocalGradientAggregation
from gossamer.distributed.backend import make_optimizer
from gossamer.graph import IDEmbedding, RowwiseAdagrad, SampleLoader
from gossamer.graph.loader_source import SampledBatch

from recsys_batches import cut_slices, make_loader, num_edges
from recsys_data import Task
from recsys_model import Recommender, auc, inputs_of, losses

__all__ = ["Engine", "EpochReport", "PlainEngine", "Sizes", "Trainer", "deepspeed_engine", "over_workers"]


class Engine(Protocol):
    """What of DeepSpeed's engine is used."""

    def __call__(self, inputs: Any) -> tuple[Tensor, Tensor]: ...
    def backward(self, loss: Tensor) -> Any: ...
    def step(self) -> Any: ...


class PlainEngine:
    """The same for one process without DeepSpeed, one step per batch."""

    def __init__(self, module: nn.Module, lr: float) -> None:
        self.module = module
        self.optimizer = torch.optim.Adam(module.parameters(), lr=lr)

    def __call__(self, inputs: Any) -> tuple[Tensor, Tensor]:
        return self.module(inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def deepspeed_engine(module: nn.Module, config: dict[str, Any]) -> Any:
    """``deepspeed.initialize`` with the torch optimizer that the configuration names."""
    import deepspeed

    settings = {key: value for key, value in config.items() if key != "optimizer"}
    optimizer = make_optimizer(module, config)
    return deepspeed.initialize(
        model=module, optimizer=optimizer, config={"zero_allow_untested_optimizer": True} | settings
    )[0]


@dataclass(frozen=True)
class Sizes:
    """Of the model and of its batches."""

    id_dim: int = 16
    hidden: int = 32
    dim: int = 32
    hops: int = 2
    max_events: int = 20
    num_future: int = 5
    batch_examples: int = 256
    long_term: float = 0.1
    id_lr: float = 0.05

    def build(self, task: Task, seed: int) -> tuple[Recommender, IDEmbedding]:
        """Network and table, with the same initial weights on every worker."""
        torch.manual_seed(seed)
        width = self.id_dim + task.content.shape[1]
        model = Recommender(
            width, self.hidden, self.dim, num_layers=self.hops, max_events=self.max_events, num_future=self.num_future
        )
        return model, IDEmbedding(task.graph.num_nodes, self.id_dim)


@dataclass(frozen=True)
class EpochReport:
    """One epoch, of this worker alone."""

    loss: float
    num_examples: int
    num_slices: int
    num_edges: int
    num_bytes: int
    seconds: float


class Trainer:
    """Steps of training, and scores, for one worker.

    Args:
        task: data and graph.
        sizes: of model and batches.
        engine: owns the network.
        ids: the table, outside the engine.
        num_batches: mini-batches per exchange of gradients.
        seed: of batches and negatives.
        rank, world_size: of this worker.
    """

    def __init__(
        self,
        task: Task,
        sizes: Sizes,
        engine: Engine,
        ids: IDEmbedding,
        *,
        num_batches: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.task, self.sizes, self.engine, self.ids, self.seed = task, sizes, engine, ids, seed
        self._place = {"rank": rank, "world_size": world_size}
        self.ids_optimizer = RowwiseAdagrad(ids.parameters(), lr=sizes.id_lr)
        self.aggregate_every(num_batches)

    def aggregate_every(self, num_batches: int) -> None:
        """Exchange the gradients of the table after so many mini-batches; the engine has a setting of its own."""
        self.aggregation = LocalGradientAggregation(self.ids.parameters(), num_batches)

    def loader(self, split: str, fanout: int, slice_size: int, num_workers: int = 0) -> SampleLoader:
        """This worker's batches of a split."""
        slices = cut_slices(self.task, self.task.examples(split), slice_size)
        return make_loader(
            self.task, slices, [fanout] * self.sizes.hops, batch_size=max(self.sizes.batch_examples // slice_size, 1),
            max_events=self.sizes.max_events, seed=self.seed, training=split == "train", num_workers=num_workers,
            **self._place,
        )  # fmt: skip

    def step(self, batch: SampledBatch) -> float:
        """Train on one mini-batch; returns its link loss."""
        logits, long_term = self.engine(inputs_of(batch, self.task, self.ids))
        link = losses(logits)
        self.engine.backward(link + self.sizes.long_term * long_term)
        self.engine.step()
        if self.aggregation.step():
            self.ids_optimizer.step()
            self.ids_optimizer.zero_grad()
        return float(link.detach())

    def epoch(self, loader: SampleLoader, max_batches: int | None = None) -> EpochReport:
        """Train on the loader's batches, whole groups of the aggregation alone.

        An epoch that ``max_batches`` cuts short is begun anew by the next one.
        """
        limit = len(loader) if max_batches is None else min(max_batches, len(loader))
        is_cut = limit < len(loader)
        limit -= limit % self.aggregation.num_batches
        begin, bytes_before = time.perf_counter(), self.aggregation.counters.total
        link, counts = 0.0, torch.zeros(3, dtype=torch.int64)
        for number, batch in enumerate(loader):
            if number < limit:
                link += self.step(batch)
                examples, slices = len(batch.features["row"]), len(batch.seed_index)
                counts += torch.tensor([examples, slices, num_edges(batch)])
            del batch  # its memory belongs to the worker that makes the next ones
            if is_cut and number + 1 >= limit:
                break
        num_bytes = self.aggregation.counters.total - bytes_before
        seconds = time.perf_counter() - begin
        return EpochReport(link / max(limit, 1), *counts.tolist(), num_bytes, seconds)

    @torch.no_grad()
    def scores(self, loader: SampleLoader) -> Tensor:
        """[2, n]: logits of this worker's positives and their negatives."""
        module = getattr(self.engine, "module", self.engine)
        return torch.cat([module(inputs_of(batch, self.task, self.ids))[0] for batch in loader], dim=1)

    def evaluate(self, loader: SampleLoader) -> tuple[float, float]:
        """AUC and loss over all workers."""
        parts = over_workers(self.scores(loader))
        positive, negative = torch.cat(parts, dim=1)
        return auc(positive, negative), float(losses(torch.stack([positive, negative])))


def over_workers(value: Any) -> list[Any]:
    """The value of every worker."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
