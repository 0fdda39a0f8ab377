"""A SparseTransformer with its blocks spread over workers: micro-batches, any schedule, 2BP."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer._arguments import typed
from gossamer.distributed.channel import Channel
from gossamer.distributed.counters import Counters
from gossamer.distributed.executor import execute
from gossamer.distributed.grid import Grid
from gossamer.distributed.micro_batches import MicroBatchWorker
from gossamer.distributed.schedule import Schedule, one_f_one_b
from gossamer.distributed.schedule_memory import bound_waiting
from gossamer.distributed.stages import split_layers
from gossamer.sparse_nn import SparseTransformer

__all__ = ["TransformerPipeline", "TransformerStage"]


class TransformerStage(nn.Module):
    """A run of the blocks of a SparseTransformer, under the names that its parameters have in the whole model.

    The first stage has the embedding too; the last has the norm and, as output matrix, the embedding once more.

    Args:
        model: the whole model; the stage takes its parts, not copies.
        stage, num_stages: which run, of how many.

    Raises:
        ValueError: if there are fewer blocks than stages.
    """

    def __init__(self, model: SparseTransformer, stage: int, num_stages: int) -> None:
        super().__init__()
        self.block_ids = split_layers([1.0] * len(model.blocks), num_stages)[stage]
        self.is_first, self.is_last = stage == 0, stage == num_stages - 1
        self.blocks = nn.ModuleDict({str(i): model.blocks[i] for i in self.block_ids})
        if self.is_first or self.is_last:
            self.embedding = model.embedding
        if self.is_first and model.positions is not None:
            self.positions = model.positions
        if self.is_last:
            self.norm = model.norm
        self._whole = (model,)  # in a tuple: its other parameters are not this stage's

    def forward(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """(input_ids) on the first stage, (x [B, T, d_model], aux_loss, input_ids) elsewhere -> (x, aux_loss); on the
        last stage x is the logits [B, T, vocab_size]."""
        (model,), input_ids = self._whole, state[-1]
        x, aux_loss = (model.embed(input_ids), None) if self.is_first else state[:2]
        x, own_loss = model.run_blocks(x, input_ids, self.block_ids)
        aux_loss = own_loss if aux_loss is None else aux_loss + own_loss
        return (model.logits(x) if self.is_last else x), aux_loss


class TransformerPipeline:
    """Trains a SparseTransformer over the ranks of the default process group, one stage each.

    Every rank calls it with the same arguments, and ``train_batch`` with the same tokens: they are known everywhere,
    and hash layers route by them alone, so that only hidden states and their gradients travel. The embedding is input
    and output matrix; its two gradients are added between the first and the last stage. With one micro-batch the
    weights are those of one process but for rounding; routers that balance a batch balance a micro-batch here.

    Args:
        model: the same on every rank; the blocks of this rank's stage are trained in place.
        batch_shape: (B, T) of the batches.
        num_micro_batches: divides B.
        make_schedule: (num_stages, num_micro_batches, split_backward=) -> Schedule, as ``one_f_one_b`` and ``gpipe``.
        split_backward: 2BP. Same gradients to the bit.
        max_waiting: bound on the micro-batches between p1 and p2 (``bound_waiting``); None sets none.
        checkpoint_gradients: 2BP keeps the gradients at the outputs of blocks alone until p2. With
            ``config.recompute`` a block then keeps its input and that gradient, and nothing else.
        make_optimizer: the optimizer of some parameters.

    Attributes:
        stage_module: the TransformerStage of this rank.
        schedule: of a batch.
        counters: bytes sent by this rank so far.

    Raises:
        ValueError: if the batch cannot be cut so, or there are fewer blocks than ranks.

    Source: 2BP (arXiv 2405.18047); PipeDream-flush for the schedule.
    """

    @typed
    def __init__(
        self,
        model: SparseTransformer,
        batch_shape: tuple[int, int],
        num_micro_batches: int,
        *,
        make_schedule: Callable[..., Schedule] = one_f_one_b,
        split_backward: bool = False,
        max_waiting: int | None = None,
        checkpoint_gradients: bool = False,
        make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = torch.optim.AdamW,
    ) -> None:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        (batch, length), device = batch_shape, model.embedding.weight.device
        if num_micro_batches < 1 or batch % num_micro_batches:
            raise ValueError(
                f"TransformerPipeline: num_micro_batches must divide the batch of {batch}, got {num_micro_batches}"
            )
        self.batch_shape, self.num_micro_batches = batch_shape, num_micro_batches
        self.stage_module = TransformerStage(model, rank, world)
        self.counters = Counters()
        self.schedule = make_schedule(world, num_micro_batches, split_backward=split_backward)
        if max_waiting is not None:
            self.schedule = bound_waiting(self.schedule, max_waiting)
        self._channel = Channel(Grid(world, 1, rank), device)
        self._tied = dist.new_group([0, world - 1]) if world > 1 else None
        self._optimizer = make_optimizer(self.stage_module.parameters())
        hidden = model.embedding.weight.new_empty(batch // num_micro_batches, length, model.config.d_model)
        state = hidden, hidden.new_empty((), dtype=torch.float32)
        self._targets: tuple[Tensor, ...] = ()
        self.worker = MicroBatchWorker(
            self.stage_module,
            (state, state),
            loss=self._loss if self.stage_module.is_last else None,
            step=self._step,
            checkpoints=list(self.stage_module.blocks.values()) if checkpoint_gradients else (),
        )

    def train_batch(self, input_ids: Tensor, targets: Tensor) -> float:
        """One step of the optimizer; returns the loss of the batch, on every rank.

        Args:
            input_ids: [B, T], int32 or int64.
            targets: [B, T], int64, -100 where there is none. The loss is that of SparseTransformer.

        Raises:
            ValueError: if one of them has another shape.
        """
        for name, value in (("input_ids", input_ids), ("targets", targets)):
            if tuple(value.shape) != tuple(self.batch_shape):
                raise ValueError(
                    f"train_batch: {name} must be of shape {tuple(self.batch_shape)}, got {tuple(value.shape)}"
                )
        self._optimizer.zero_grad(set_to_none=True)
        self._targets = targets.long().chunk(self.num_micro_batches)
        self._num_targets = max(int((targets != -100).sum()), 1)
        self.worker.begin_batch(input_ids.chunk(self.num_micro_batches))
        execute(self.schedule.stages[self._channel.grid.stage], self.worker, self._channel)
        self.counters += self._channel.take_counters()
        return self._channel.sum_over_workers([self.worker.loss_sum])[0]

    def _loss(self, logits: Tensor, aux_loss: Tensor, micro_batch: int) -> Tensor:
        """The micro-batch's share of the mean loss of the batch."""
        targets = self._targets[micro_batch].flatten()
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="sum") / self._num_targets
        return loss + aux_loss / self.num_micro_batches if self.stage_module.training else loss

    def _step(self) -> None:
        stage = self.stage_module
        if self._tied is not None and (stage.is_first or stage.is_last):
            gradient: Any = stage.embedding.weight.grad
            dist.all_reduce(gradient, group=self._tied)
            self._channel.count_weight_sync(gradient.numel() * gradient.element_size())
        self._optimizer.step()
