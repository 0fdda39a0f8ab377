"""Training on batches of graphs with DeepSpeed: every worker takes its part of each batch."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gossamer.distributed.backend import make_optimizer
from gossamer.distributed.checkpoint import find_checkpoint, find_latest, write_checkpoint

from graph_sets import GraphSet
from long_range_configs import LongRangeConfig
from long_range_data import Task

__all__ = ["Trainer"]


class Trainer:
    """One worker of a data-parallel job; every worker makes it with the same arguments.

    The gradient is that of the mean loss over the whole batch, however it is split. Batch norms see the part of their
    worker, as usual; their running statistics are averaged over the workers after every epoch.

    Args:
        model: with equal initial weights on every worker.
        task: graphs, loss and metric.
        config: optimizer settings and batch size.
        deepspeed: DeepSpeed's configuration.
        seed: of the order of the graphs.
        device: of this worker.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        config: LongRangeConfig,
        deepspeed: dict[str, Any],
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        from deepspeed import initialize

        self.task, self.config, self.seed, self.device = task, config, seed, device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.epoch = 0
        optimizer = make_optimizer(model.to(device), deepspeed)
        self.schedule = Plateau(optimizer, config, task.objective.higher)
        if config.schedule == "cosine":
            self.schedule = Cosine(optimizer, config)
        section = {key: value for key, value in deepspeed.items() if key != "optimizer"}
        self.engine, *_ = initialize(model=model, optimizer=optimizer, config=section)

    def train_epoch(self) -> dict[str, float]:
        """Train on every graph once; the mean loss and the seconds of this worker."""
        start = time.perf_counter()
        self.engine.train()
        self.schedule.begin_epoch(self.epoch)
        total = torch.zeros(2, dtype=torch.float64)  # sum of the losses, and what it is divided by
        graphs = self.task.graphs.of_epoch(self._epoch_seed)
        for ids in self._batches():
            total += self._train_batch(graphs, ids)
        dist.all_reduce(total := total.to(self.device))
        self._average_statistics()
        self.epoch += 1
        return {"loss": float(total[0] / total[1]), "seconds": time.perf_counter() - start}

    @property
    def _epoch_seed(self) -> int:
        return (self.seed << 32) + self.epoch

    def _batches(self) -> tuple[Tensor, ...]:
        """The graphs in the order of this epoch, in batches of nearly equal size."""
        train = self.task.graphs.splits["train"]
        generator = torch.Generator().manual_seed(self._epoch_seed)
        count = min(math.ceil(len(train) / self.config.batch_size), len(train) // self.world)
        return train[torch.randperm(len(train), generator=generator)].tensor_split(max(count, 1))

    def _train_batch(self, graphs: GraphSet, ids: Tensor) -> Tensor:
        objective = self.task.objective
        batch = graphs.batch(ids.tensor_split(self.world)[self.rank]).to(self.device)
        loss = objective.loss(self.engine(batch), batch.y)
        # DeepSpeed takes the mean over the workers of what each of them gives
        self.engine.backward(loss * (self.world / objective.weight(graphs.targets(ids))))
        self.engine.step()
        return torch.tensor([float(loss.detach()), objective.weight(batch.y)], dtype=torch.float64)

    def _average_statistics(self) -> None:
        for buffer in self.engine.module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(self.world)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Metric and loss of validation and test, the same on every worker; also steps the schedule."""
        self.engine.eval()
        objective, found = self.task.objective, {}
        for split in ("val", "test"):
            outputs, y = self._outputs(split)
            found[f"{split}_{objective.metric}"] = objective.score(outputs, y)
            found[f"{split}_loss"] = float(objective.loss(outputs, y)) / objective.weight(y)
        self.schedule.end_epoch(found[f"val_{objective.metric}"])
        return found

    def _outputs(self, split: str) -> tuple[Tensor, Tensor]:
        ids = self.task.graphs.splits[split]
        mine = ids.tensor_split(self.world)[self.rank].split(self.config.batch_size)
        outputs = [self.engine(self.task.graphs.batch(part).to(self.device)).cpu() for part in mine if len(part)]
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, outputs)
        return torch.cat([rows for part in parts for rows in part]), self.task.graphs.targets(ids)

    def any_worker(self, flag: bool) -> bool:
        """True on every worker if ``flag`` is true on one of them (all must call it)."""
        count = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(count)
        return bool(count)

    def save(self, folder: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        write_checkpoint(
            str(folder), self._describe(), self._write, is_first=self.rank == 0, barrier=dist.barrier
        )  # fmt: skip

    def _write(self, path: str) -> None:
        self.engine.save_checkpoint(path, tag="deepspeed", save_latest=False)
        state = {"random_state": torch.get_rng_state(), "schedule": self.schedule.state_dict()}
        torch.save(state, os.path.join(path, f"worker_{self.rank:02d}.pt"))

    def load(self, folder: Path) -> None:
        """Go on from the newest checkpoint, if there is one, with the numbers of an uninterrupted run."""
        if find_latest(folder) is None:
            return
        path, manifest = find_checkpoint(str(folder), self._describe())
        self.engine.load_checkpoint(path, tag="deepspeed")
        state = torch.load(os.path.join(path, f"worker_{self.rank:02d}.pt"), weights_only=True)
        torch.set_rng_state(state["random_state"])
        self.schedule.load_state_dict(state["schedule"])
        self.epoch = manifest["epoch"]
        dist.barrier()

    def _describe(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the job that reads it."""
        parameters = sum(p.numel() for p in self.engine.module.parameters())
        model = {"dataset": self.config.dataset, "model": self.config.model, "parameters": parameters}
        return {"epoch": self.epoch, "num_workers": self.world, "seed": self.seed, **model}


class Cosine:
    """lr / 2 (1 + cos(pi epoch / epochs))."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: LongRangeConfig) -> None:
        self._optimizer, self._config = optimizer, config

    def begin_epoch(self, epoch: int) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.lr * 0.5 * (1 + math.cos(math.pi * epoch / self._config.epochs))

    def end_epoch(self, score: float) -> None:
        """The rate depends on the epoch alone."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


class Plateau:
    """Halves the rate after ``patience`` epochs without a better validation metric."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: LongRangeConfig, higher: bool) -> None:
        self._schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, "max" if higher else "min", factor=0.5, patience=config.patience, min_lr=config.min_lr
        )

    def begin_epoch(self, epoch: int) -> None:
        """The rate depends on the scores alone."""

    def end_epoch(self, score: float) -> None:
        self._schedule.step(score)

    def state_dict(self) -> dict[str, Any]:
        return self._schedule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._schedule.load_state_dict(state)
