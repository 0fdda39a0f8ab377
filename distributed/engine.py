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

from gossamer._arguments import typed
from gossamer.distributed import checkpoint
from gossamer.distributed.backend import make_backend
from gossamer.distributed.channel import Channel
from gossamer.distributed.checks import check_data, check_dtype, check_labels
from gossamer.distributed.chunks import ChunkedGraph
from gossamer.distributed.codec import RowCodec
from gossamer.distributed.config import PipelineConfig, load_config
from gossamer.distributed.counters import Counters
from gossamer.distributed.cross_gradient import cross_chunk_gradient
from gossamer.distributed.dependencies import Needs, spread_in_order
from gossamer.distributed.exact_chunks import ExactGraph
from gossamer.distributed.exact_schedule import exact_schedule
from gossamer.distributed.exact_worker import ExactWorker
from gossamer.distributed.executor import execute
from gossamer.distributed.grid import Grid
from gossamer.distributed.history import HistoryPolicy, Staleness
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
        staleness: how old the rows were that chunks read from one another.
    """

    epoch: int
    loss: float
    accuracy: float
    seconds: float
    counters: Counters
    staleness: Staleness


@dataclass(frozen=True)
class Evaluation:
    """Exact full-graph inference with the current weights: loss and accuracy by mask name, in [0, 1]."""

    loss: dict[str, float]
    accuracy: dict[str, float]


def sum_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross entropies of [n, C] logits and [n] labels."""
    return F.cross_entropy(logits, labels, reduction="sum")


@typed
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
    check_data(graph, features, labels, masks)
    return PipelineEngine(model, graph, features, labels, masks, pipeline, deepspeed, loss, torch.device(device))


def _shells(graph: CSR | HopGraph) -> list[CSR]:
    return graph.shells if isinstance(graph, HopGraph) else []


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

    @typed
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
        check_dtype(features, layers)
        ranges, states = plan_stages(
            layers, features, self.num_stages, config.stage_bounds, num_shells=len(_shells(graph))
        )
        self.layer_ids = ranges[self.stage]
        self.stage_bounds = tuple(layers.start for layers in ranges[1:])
        if loss is sum_cross_entropy:
            check_labels(labels, states[-1][0].shape[1])
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
        history = HistoryPolicy(
            config.refresh_period,
            config.refresh_distance,
            config.history_dtype,
            config.seed,
            first_site=sum(measure_layers(layers[: self.layer_ids.start], features, len(shells))[0]),
        )
        chunked = (
            ExactGraph(part, self._channel, **options)
            if self._needs
            else ChunkedGraph(
                part,
                self._channel,
                history=history,
                gradient=cross_chunk_gradient(config.cross_chunk_gradient),
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
    def history_bytes(self) -> int:
        """Memory of this worker's snapshots; they are made in the first epoch."""
        snapshots = [site.history for site in self._worker.chunked.sites]
        return sum(snapshot.num_bytes for snapshot in snapshots if snapshot is not None)

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
        order = self._draw_order()
        self._worker.begin_epoch(order)
        if self.epoch == 0 and not self._needs and self.num_chunks > 1 and self.config.history_start == "exact":
            self._infer(keep=True)
        self._worker.chunked.begin_epoch(self.epoch, order)
        self._channel.codec = self._codec()
        self._events = execute(self.schedule.stages[self.stage], self._worker, self._channel, self.clock)
        self._channel.codec = None
        reads = self._worker.chunked.num_reads()
        report = self._report(self._channel.take_counters(), time.perf_counter() - start, reads)
        self._worker.chunked.end_epoch()
        return report

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

    def _report(self, sent: Counters, seconds: float, reads: tuple[int, list[int]]) -> EpochReport:
        """Put together what the workers saw."""
        worker = self._worker
        slots = [0.0] * (self.num_stages * self.num_ways)
        slots[self.rank] = seconds
        num_train = worker.data.num_marked["train"]
        mine = [worker.loss_sum, worker.num_correct, *sent.as_tuple(), *slots, reads[0], *reads[1]]
        values = self._channel.sum_over_workers(mine)
        self.counters = Counters(*(int(value) for value in values[2:5]))
        seconds = max(values[5 : 5 + len(slots)])
        current, *historical = (int(value) // self.num_stages for value in values[5 + len(slots) :])
        staleness = worker.chunked.keeper.staleness(current, historical)
        loss, accuracy = values[0] / num_train, values[1] / num_train
        report = EpochReport(self.epoch, loss, accuracy, seconds, self.counters, staleness)
        self.epoch += 1
        return report

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Exact full-graph inference; the result is the same on every worker.

        Its traffic (the whole state once per stage boundary, the halo once per aggregation) is not part of
        ``counters``.
        """
        worker, channel = self._worker, self._channel
        outputs = self._infer()
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

    @torch.no_grad()
    def _infer(self, *, keep: bool = False) -> tuple[Tensor, ...]:
        """Exact inference; ``keep`` makes its rows the history of the next epoch. Leaves training as it was."""
        worker, channel = self._worker, self._channel
        training = self.module.training
        self.module.eval()
        inputs = None
        if not self.is_first:
            rows = slice(0, worker.chunked.part.num_own)
            channel.expect(0, lambda: worker.empty_state(worker.incoming, rows), +1)
            inputs = channel.receive(0, +1)
        outputs = worker.infer(inputs, keep=keep)
        if not self.is_last:
            channel.send(outputs, +1)
            channel.flush()
        if keep:
            worker.chunked.keeper.take_all(worker.chunked.sites)
        self.module.train(training)
        return outputs

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
