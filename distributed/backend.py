"""Who owns the parameters of a stage: torch's optimizer alone, or DeepSpeed's engine with a pipeline grid."""

from __future__ import annotations

import contextlib
import io
import os
from collections import defaultdict
from dataclasses import replace
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gossamer._arguments import typed
from gossamer.distributed.grid import Grid

__all__ = ["Backend", "DeepSpeedBackend", "TorchBackend", "init_distributed", "leave_distributed", "make_backend"]


class Backend(Protocol):
    """Parameters, gradients and optimizer state of one stage.

    Attributes:
        module: the layers.
        divisor: what the summed gradients of the ways are divided by before the update.
        sync_bytes: what this worker sends per epoch to keep the weights of the ways equal.
    """

    module: nn.Module
    divisor: int
    sync_bytes: int

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar to the collected gradients."""

    def step(self) -> None:
        """Update the parameters, then forget the gradients."""

    def save(self, folder: str) -> None:
        """Write parameters and optimizer state into an existing folder."""

    def load(self, folder: str) -> None:
        """Restore what ``save`` wrote."""


def make_optimizer(module: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """The torch optimizer that a DeepSpeed ``optimizer`` section names (default Adam, lr 1e-3).

    Raises:
        ValueError: if torch has no such optimizer, or it does not take these parameters.
    """
    section = config.get("optimizer", {"type": "Adam", "params": {"lr": 1e-3}})
    name, settings = section.get("type"), section.get("params", {})
    kind = getattr(torch.optim, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ValueError(f"initialize: optimizer.type must be the name of a torch optimizer, got {name!r}")
    parameters = [p for p in module.parameters() if p.requires_grad]
    try:
        return kind(parameters, **settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"initialize: optimizer.params must be those of {name}, got {settings}: {error}") from error


class TorchBackend:
    """torch's optimizer, no DeepSpeed: one process, or several with ``backend`` set to torch."""

    divisor = 1

    def __init__(self, module: nn.Module, config: dict[str, Any], grid: Grid) -> None:
        if "scheduler" in config:
            raise ValueError(
                "initialize: scheduler must be absent where torch's optimizer works without DeepSpeed, got "
                f"{config['scheduler']!r}"
            )
        self.module = module
        self._optimizer = make_optimizer(module, config)
        self._clip = float(config.get("gradient_clipping", 0.0))
        self._grid = grid
        self._ways = _own_group(grid, [replace(grid, stage=s).ways for s in range(grid.num_stages)])
        self._stages = _own_group(grid, [replace(grid, way=w).pipeline for w in range(grid.num_ways)])
        self.sync_bytes = _all_reduce_bytes(module, grid)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        if self._grid.num_ways > 1:
            self._sum_over_ways()
        if self._clip > 0:
            self._clip_gradients()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _sum_over_ways(self) -> None:
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for gradient in gradients:
            by_dtype.setdefault(gradient.dtype, []).append(gradient)
        for alike in by_dtype.values():
            flat = torch.cat([gradient.flatten() for gradient in alike])
            dist.all_reduce(flat, group=self._ways)
            for gradient, total in zip(alike, flat.split([g.numel() for g in alike])):
                gradient.copy_(total.view_as(gradient))

    def _clip_gradients(self) -> None:
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        square = torch.stack([g.float().square().sum() for g in gradients]).sum() if gradients else torch.zeros(())
        if self._grid.num_stages > 1:
            dist.all_reduce(square, group=self._stages)
        scale = (self._clip / (square.sqrt() + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale)

    def save(self, folder: str) -> None:
        state = {"module": self.module.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save(state, os.path.join(folder, f"torch_{self._grid.rank:02d}.pt"))

    def load(self, folder: str) -> None:
        path = os.path.join(folder, f"torch_{self._grid.rank:02d}.pt")
        state = torch.load(path, weights_only=True, map_location="cpu")  # copied to where the parameters are
        self.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])


def _own_group(grid: Grid, groups: list[list[int]]) -> dist.ProcessGroup | None:
    """The group of this worker, out of groups that every worker makes; None where no group has two members."""
    if max(len(ranks) for ranks in groups) == 1:
        return None
    made = [dist.new_group(ranks) for ranks in groups]
    return next(group for group, ranks in zip(made, groups) if grid.rank in ranks)


def _all_reduce_bytes(module: nn.Module, grid: Grid, num_reductions: int = 1) -> int:
    """This worker's share of the bytes of a ring: (num_ways - 1) |W| per reduction and again for the result.

    Source: GNNPipe (arXiv 2308.10087), whose logs count 2 (p - 1) |W| bytes.
    """
    num_bytes = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    total = (num_reductions + 1) * (grid.num_ways - 1) * num_bytes
    return total // grid.num_ways + (grid.way < total % grid.num_ways)


class DeepSpeedBackend:
    """``deepspeed.initialize`` on the stage with a pipeline grid as ``mpu``; ZeRO stages 0, 1 and 2.

    The ways of a stage are DeepSpeed's data parallelism. Stages 0 and 1 reduce the gradients once per epoch, stage 2
    once per chunk.
    """

    def __init__(self, module: nn.Module, config: dict[str, Any], grid: Grid, num_chunks: int) -> None:
        import deepspeed
        from deepspeed.runtime.pipe.topology import PipeDataParallelTopology, PipelineParallelGrid

        zero = int(config.get("zero_optimization", {}).get("stage", 0))
        if zero > 2:
            raise ValueError("initialize: zero_optimization.stage must be 0, 1 or 2 (3 deadlocks in a pipeline), got 3")
        for parameter in module.parameters():
            # Else clipping leaves the other stages out of the norm. It is DeepSpeed's attribute, not torch's.
            setattr(parameter, "model_parallel", True)  # noqa: B010
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its topology
            topology = PipeDataParallelTopology(num_pp=grid.num_stages, num_dp=grid.num_ways)
            mpu = PipelineParallelGrid(topology=topology)
        self.divisor = grid.num_ways
        self.sync_bytes = _all_reduce_bytes(module, grid, num_chunks if zero == 2 else 1)
        self.engine, *_ = deepspeed.initialize(
            model=module, optimizer=make_optimizer(module, config), mpu=mpu, config=self._complete(config)
        )
        self.module = self.engine.module

    @staticmethod
    def _complete(config: dict[str, Any]) -> dict[str, Any]:
        """The caller owns the step: one per epoch, gradients of all chunks collected before it."""
        config = {key: value for key, value in config.items() if key != "optimizer"}
        defaults = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.0,  # off unless asked for; DeepSpeed's own default is 1.0
        }
        return defaults | config | {"gradient_accumulation_steps": 1, "managed_gradient_accumulation": False}

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> None:
        self.engine.step()

    def save(self, folder: str) -> None:
        self.engine.save_checkpoint(folder, tag="deepspeed", save_latest=False)

    def load(self, folder: str) -> None:
        path, _ = self.engine.load_checkpoint(folder, tag="deepspeed")
        if path is None:
            raise ValueError(f"load_checkpoint: folder must hold a DeepSpeed checkpoint, got {folder!r}")


def make_backend(name: str, module: nn.Module, config: dict[str, Any], grid: Grid, num_chunks: int) -> Backend:
    """The backend by name; "auto" is DeepSpeed where the job runs in a process group."""
    if name == "auto":
        name = "deepspeed" if dist.is_initialized() else "torch"
    if name == "deepspeed":
        return DeepSpeedBackend(module, config, grid, num_chunks)
    return TorchBackend(module, config, grid)


@typed
def init_distributed(device: str = "auto", *, timeout: float = 1800.0) -> torch.device:
    """Join the job that the launcher started (gloo on CPU, NCCL on GPU); without a launcher, stay alone.

    Args:
        device: "cpu", "cuda" or "auto" (cuda where every local worker has a GPU of its own).
        timeout: seconds without progress after which a transfer fails.

    Returns:
        The device of this worker.

    Raises:
        ValueError: if the device is none of these.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"init_distributed: device must be auto, cpu or cuda, got {device!r}")
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_SIZE", 1))
    local_size = max(local_size, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and torch.cuda.device_count() >= local_size else "cpu"
    where = torch.device(device, local_rank) if device == "cuda" else torch.device("cpu")
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if "RANK" in os.environ and not dist.is_initialized():
        _init_with_deepspeed(where, timedelta(seconds=timeout))
    return where


def leave_distributed() -> None:
    """Leave the job that ``init_distributed`` joined, once all workers are done; without one, do nothing.

    A worker that ends without it leaves the threads of its process group to the end of the process, which then aborts
    now and then.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _init_with_deepspeed(device: torch.device, timeout: timedelta) -> None:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # also where there are GPUs, but fewer than workers
    import deepspeed
    import deepspeed.ops

    if device.type == "cpu":
        # Else the first collective compiles a shared-memory operator that only inference uses.
        deepspeed.ops.__compatible_ops__ = defaultdict(bool)
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        timeout=timeout,
        auto_mpi_discovery=False,
        verbose=False,
    )
