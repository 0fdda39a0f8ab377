"""Full-graph training of a deep GNN: its layers pipelined over workers (GNNPipe), its graph cut over them, or both."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gossamer.distributed import checkpoint
from gossamer.distributed.backend import make_backend
from gossamer.distributed.channel import Channel
from gossamer.distributed.chunks import ChunkedGraph
from gossamer.distributed.codec import RowCodec
from gossamer.distributed.config import PipelineConfig, load_config
from gossamer.distributed.counters import Counters
from gossamer.distributed.dependencies import Needs, spread_in_order
from gossamer.distributed.exact_chunks import ExactGraph
from gossamer.distributed.exact_schedule import exact_schedule
from gossamer.distributed.exact_worker import ExactWorker
from gossamer.distributed.executor import execute
from gossamer.distributed.grid import Grid
from gossamer.distributed.layout import spread, take_part
from gossamer.distributed.schedule import Event, Schedule, Timeline, gnnpipe
from gossamer.distributed.stages import layers_of, measure_layers, plan_stages, stage_module
from gossamer.distributed.worker import Loss, NodeData, Worker
from gossamer.graph import CSR, HopGraph
from gossamer.graph.dropout import stream_seed

__all__ = ["EpochReport", "Evaluation", "PipelineEngine", "initialize"]


@dataclass(frozen=True)
class EpochReport:
    """One training epoch, the same on every worker.

    Attributes:
        epoch: number of the epoch, from 0.
        loss: mean training loss of the pipelined forward (dropout and historical rows included).
        accuracy: training accuracy of the same forward, in [0, 1].
        seconds: wall time of the slowest worker.
        counters: bytes that crossed between workers in this epoch.
    """

    epoch: int
    loss: float
    accuracy: float
    seconds: float
    counters: Counters


@dataclass(frozen=True)
class Evaluation:
    """Exact full-graph inference with the current weights: loss and accuracy by mask name, in [0, 1]."""

    loss: dict[str, float]
    accuracy: dict[str, float]


def sum_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross entropies of [n, C] logits and [n] labels."""
    return F.cross_entropy(logits, labels, reduction="sum")


def initialize(
    model: nn.Module,
    graph: CSR | HopGraph,
    *,
    features: Tensor,
    labels: Tensor,
    masks: dict[str, Tensor],
    config: dict[str, Any] | str | os.PathLike | None = None,
    loss: Loss = sum_cross_entropy,
    device: torch.device | str = "cpu",
) -> PipelineEngine:
    """Wrap a stack of layers for full-graph training over workers: pipelined, graph parallel or hybrid.

    Every worker calls it with the same arguments and the same initial weights, and keeps the layers of its stage and
    the rows of its way (see ``num_ways`` of PipelineConfig). Without a process group the one process holds all of it
    and runs the same schedule.

    Args:
        model: a sequence of layers, or a module whose ``layers`` is one: GraphLayers and ordinary modules.
        graph: N nodes; a HopGraph for DRew layers, which is cut into chunks by its first shell.
        features: [N, F], floating point, finite.
        labels: [N], int64 classes, or what ``loss`` takes.
        masks: bool [N] by name; "train" is required, the others are evaluated.
        config: a DeepSpeed configuration (dictionary or JSON file); its section "gossamer" is a PipelineConfig.
        loss: (outputs, labels) of some training nodes -> their summed loss.
        device: where this worker's stage lives.

    Raises:
        ValueError, TypeError: what is wrong with an argument, on every worker alike, before any communication.

    Source: GNNPipe (arXiv 2308.10087).
    """
    pipeline, deepspeed = load_config(config)
    _check_data(graph, features, labels, masks)
    return PipelineEngine(model, graph, features, labels, masks, pipeline, deepspeed, loss, torch.device(device))


def _check_data(graph: CSR | HopGraph, features: Tensor, labels: Tensor, masks: dict[str, Tensor]) -> None:
    n = graph.num_nodes
    if features.dim() != 2 or features.shape[0] != n:
        raise ValueError(f"initialize: features must be [{n}, num_features], got {list(features.shape)}")
    if not features.is_floating_point():
        raise TypeError(f"initialize: features must be floating point, got {features.dtype}")
    if not torch.isfinite(features).all():
        bad = (~torch.isfinite(features)).any(dim=1).nonzero()[0].item()
        raise ValueError(f"initialize: features must be finite, got a NaN or infinity at node {bad}")
    if labels.shape[:1] != (n,):
        raise ValueError(f"initialize: labels must have {n} rows, got {list(labels.shape)}")
    if "train" not in masks:
        raise ValueError(f"initialize: masks must hold 'train', got {sorted(masks)}")
    if graph.weight is not None and graph.weight.requires_grad:
        raise ValueError("initialize: graph.weight must not require a gradient, got a learned weight")
    for name, mask in masks.items():
        if mask.shape != (n,) or mask.dtype != torch.bool:
            raise ValueError(f"initialize: masks[{name!r}] must be bool [{n}], got {mask.dtype} {list(mask.shape)}")
    if not masks["train"].any():
        raise ValueError("initialize: masks['train'] must mark at least one node, got none")


def _shells(graph: CSR | HopGraph) -> list[CSR]:
    return graph.shells if isinstance(graph, HopGraph) else []


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise TypeError(f"initialize: labels must be int64 [N], got {labels.dtype} {list(labels.shape)}")
    if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        found = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"initialize: labels must be in [0, {num_classes}), got {found}")


def _check_dtype(features: Tensor, layers: list[nn.Module]) -> None:
    dtypes = {p.dtype for layer in layers for p in layer.parameters() if p.is_floating_point()}
    if dtypes and features.dtype not in dtypes:
        raise TypeError(f"initialize: features must be of the model's {dtypes.pop()}, got {features.dtype}")


def _check_norms(layers: list[nn.Module], num_chunks: int) -> None:
    norms = [type(m).__name__ for layer in layers for m in layer.modules() if isinstance(m, _BatchNorm)]
    if norms and num_chunks > 1:
        raise ValueError(f"initialize: model must have no {norms[0]} in mode 'exact' (a chunk is not the batch)")


class PipelineEngine:
    """One worker; made by ``initialize``.

    Attributes:
        num_stages, stage: into how many runs of layers the model is cut, and which one this is.
        num_ways, way: into how many parts the graph is cut, and which one this is.
        rank: number of this worker, stage * num_ways + way.
        num_nodes: of the whole graph.
        layer_ids: the layers of this stage.
        stage_bounds: the first layer of every stage but the first.
        epoch: number of the next training epoch.
        counters: bytes of the last training epoch, summed over all workers.
        clock: of ``timeline``; ``time.thread_time`` in its place gives the CPU time of every action.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: CSR | HopGraph,
        features: Tensor,
        labels: Tensor,
        masks: dict[str, Tensor],
        config: PipelineConfig,
        deepspeed: dict[str, Any],
        loss: Loss,
        device: torch.device,
    ) -> None:
        grid = Grid.of_world(config.num_ways)
        self.num_stages, self.stage, self.num_ways, self.way = grid.num_stages, grid.stage, grid.num_ways, grid.way
        self.rank = grid.rank
        self.num_nodes = graph.num_nodes
        self.config = config
        self.epoch = 0
        self.counters = Counters()
        self.clock = time.perf_counter
        self._events: list[Event] = []
        num_chunks = config.chunks_for(self.num_stages, graph.num_nodes)
        layers = layers_of(model)
        _check_dtype(features, layers)
        ranges, states = plan_stages(
            layers, features, self.num_stages, config.stage_bounds, num_shells=len(_shells(graph))
        )
        self.layer_ids = ranges[self.stage]
        self.stage_bounds = tuple(layers.start for layers in ranges[1:])
        if loss is sum_cross_entropy:
            _check_labels(labels, states[-1][0].shape[1])
        counts, _ = measure_layers(layers, features, len(_shells(graph)))
        self._num_aggregations = tuple(sum(counts[i] for i in ids) for ids in ranges)
        graph = graph.to(device)
        shells = _shells(graph)
        if shells and config.num_ways > 1:
            raise ValueError(f"initialize: num_ways must be 1 for a HopGraph, got {config.num_ways}")
        graph = graph.shells[0] if isinstance(graph, HopGraph) else graph
        self._needs: Needs = ()
        if config.mode == "exact":
            _check_norms(layers, num_chunks)
            way, chunk, self._needs = spread_in_order(graph, config.num_ways, num_chunks, shells)
        else:
            way, chunk = spread(graph, config.num_ways, num_chunks)
        part = take_part(graph, way, chunk, grid.way if grid.num_ways > 1 else None)
        self._channel = Channel(grid, device)
        options: dict[str, Any] = {
            "recompute": config.recompute,
            "shells": [shell.permute(part.node_ids) for shell in shells],
        }
        chunked = (
            ExactGraph(part, self._channel, **options)
            if self._needs
            else ChunkedGraph(
                part,
                self._channel,
                refresh_period=config.refresh_period,
                drop_stale_gradients=config.cross_chunk_gradient != "stale",
                cross_chunk_scale=2.0 if config.cross_chunk_gradient == "rescaled" else 1.0,
                **options,
            )
        )
        rows = part.node_ids.to(features.device)
        data = NodeData(
            features[rows].to(device) if self.is_first else None,
            labels[rows].to(device),
            {name: mask[rows].to(device) for name, mask in masks.items()},
            {name: int(mask.sum()) for name, mask in masks.items()},
        )
        module = stage_module(layers, self.layer_ids).to(device)
        once = config.split_backward or config.mode == "exact"  # all gradients are handed over at the end
        make_worker: Callable[..., Worker] = Worker
        if self._needs:
            make_worker = partial(ExactWorker, self._num_aggregations[self.stage])
        self._worker = make_worker(
            make_backend(config.backend, module, deepspeed, grid, 1 if once else num_chunks),
            chunked,
            data,
            loss,
            incoming=() if self.is_first else states[self.layer_ids.start - 1],
            outgoing=states[self.layer_ids.stop - 1],
            is_last=self.is_last,
        )

    @property
    def is_first(self) -> bool:
        """Whether this worker runs the first stage."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this worker runs the last stage."""
        return self.stage == self.num_stages - 1

    @property
    def module(self) -> nn.Module:
        """The layers of this stage, with the names that they have in the whole model."""
        return self._worker.backend.module

    @property
    def num_chunks(self) -> int:
        """Chunks that the graph is cut into."""
        return self._worker.chunked.num_chunks

    @property
    def schedule(self) -> Schedule:
        """The schedule of one epoch."""
        if self._needs:
            return exact_schedule(self._needs, self._num_aggregations)
        return gnnpipe(self.num_stages, self.num_chunks, split_backward=self.config.split_backward)

    def train_epoch(self) -> EpochReport:
        """Train on every chunk once and update the weights once."""
        start = time.perf_counter()
        self.module.train()
        self._worker.begin_epoch(self._draw_order())
        self._worker.chunked.begin_epoch(self.epoch)
        self._channel.codec = self._codec()
        self._events = execute(self.schedule.stages[self.stage], self._worker, self._channel, self.clock)
        self._channel.codec = None
        self._worker.chunked.end_epoch(self.epoch)
        return self._report(self._channel.take_counters(), time.perf_counter() - start)

    def _codec(self) -> RowCodec | None:
        """How states cross the boundaries of this epoch: other random numbers on every rank."""
        bits = self.config.boundary_bits
        if bits is None:
            return None
        world = self.num_stages * self.num_ways
        return RowCodec(bits, stream_seed(self.config.seed, self.epoch * world + self.rank))

    def _draw_order(self) -> list[int]:
        if self._needs or not self.config.shuffle:
            return list(range(self.num_chunks))
        generator = torch.Generator().manual_seed((self.config.seed << 32) + self.epoch)
        return torch.randperm(self.num_chunks, generator=generator).tolist()

    def _report(self, sent: Counters, seconds: float) -> EpochReport:
        """Put together what the workers saw."""
        worker = self._worker
        slots = [0.0] * (self.num_stages * self.num_ways)
        slots[self.rank] = seconds
        num_train = worker.data.num_marked["train"]
        values = self._channel.sum_over_workers([worker.loss_sum, worker.num_correct, *sent.as_tuple(), *slots])
        self.counters = Counters(*(int(value) for value in values[2:5]))
        report = EpochReport(self.epoch, values[0] / num_train, values[1] / num_train, max(values[5:]), self.counters)
        self.epoch += 1
        return report

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Exact full-graph inference; the result is the same on every worker.

        Its traffic (the whole state once per stage boundary, the halo once per aggregation) is not part of
        ``counters``.
        """
        self.module.eval()
        worker, channel = self._worker, self._channel
        inputs = None
        if not self.is_first:
            rows = slice(0, worker.chunked.part.num_own)
            channel.expect(0, lambda: worker.empty_state(worker.incoming, rows), +1)
            inputs = channel.receive(0, +1)
        outputs = worker.infer(inputs)
        if not self.is_last:
            channel.send(outputs, +1)
            channel.flush()
        channel.take_counters()
        marked = worker.data.num_marked
        sums = worker.score(outputs[0]) if self.is_last else [0.0] * (2 * len(marked))
        counts = [max(count, 1) for count in marked.values() for _ in range(2)]
        means = [total / count for total, count in zip(channel.sum_over_workers(sums), counts)]
        return Evaluation(dict(zip(marked, means[0::2])), dict(zip(marked, means[1::2])))

    def timeline(self) -> Timeline:
        """What every worker did in the last training epoch and when, in seconds (all must call it).

        Stage s of the timeline is worker s. Only workers of one machine share a ``clock``.
        """
        events = self._channel.gather([replace(event, stage=self.rank) for event in self._events])
        return Timeline(len(events), tuple(event for worker in events for event in worker))

    def any_stage(self, flag: bool) -> bool:
        """True on every worker if ``flag`` is true on one of them (all must call it)."""
        return self._channel.sum_over_workers([float(flag)])[0] > 0

    def save_checkpoint(self, folder: str | os.PathLike) -> str:
        """Write the whole training state under ``folder``, whole or not at all; returns the checkpoint's path."""
        with self._channel.naming_lost_worker():
            return checkpoint.save(self, os.fspath(folder))

    def load_checkpoint(self, folder: str | os.PathLike) -> None:
        """Restore the newest checkpoint under ``folder`` (or ``folder`` itself, if it is one).

        Training then goes on with the numbers of an uninterrupted run.

        Raises:
            ValueError: if there is none, a file is truncated or altered, or it is of another configuration.
        """
        with self._channel.naming_lost_worker():
            checkpoint.load(self, os.fspath(folder))
