"""Local gradient aggregation of LiGNN: several mini-batches before one exchange of gradients between workers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from gossamer._arguments import typed
from gossamer.distributed.counters import Counters

__all__ = ["LocalGradientAggregation"]

_NONE, _DENSE, _SPARSE = 0, 1, 2


class LocalGradientAggregation:
    """Gradients of num_batches mini-batches per worker, summed where they are, then averaged over the workers at once.

    The update is that of one batch num_batches * workers times as large, for num_batches times fewer exchanges; the
    learning rate may have to grow with it. Dense gradients go in one message per dtype. Of sparse gradients
    (``IDEmbedding``) only the rows that some worker read are sent, and every worker gets the same bits. A parameter
    that some worker did not use counts as zero there. Alone, or without ``torch.distributed``, nothing is sent.

        aggregation = LocalGradientAggregation(model.parameters(), num_batches=4)
        for batch in loader:
            aggregation.backward(loss_of(model, batch))
            if aggregation.step():
                optimizer.step()
                optimizer.zero_grad()

    Under DeepSpeed, whose engine does the same for its own parameters (``gradient_accumulation_steps``), use it for
    parameters outside the engine, such as tables with sparse gradients: ``engine.backward(loss)`` fills their gradients
    too, already divided; then call ``step()``.

    Args:
        parameters: all workers give the same, in the same order.
        num_batches: mini-batches per exchange, at least 1.
        group: process group; None takes the default one, where there is one.

    Attributes:
        num_exchanges: exchanges so far.
        counters: bytes that this worker handed to the exchanges, under weight_sync.

    Source: LiGNN (Borisyuk et al. 2024), local gradient aggregation.
    """

    @typed
    def __init__(
        self, parameters: Iterable[Tensor], num_batches: int, *, group: dist.ProcessGroup | None = None
    ) -> None:
        if num_batches < 1:
            raise ValueError(f"LocalGradientAggregation: num_batches must be at least 1, got {num_batches}")
        self.num_batches = num_batches
        self.num_exchanges = 0
        self.counters = Counters()
        self._parameters = [p for p in parameters if p.requires_grad]
        self._group = group
        self._collected = 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a mini-batch's mean loss, divided by num_batches."""
        (loss / self.num_batches).backward()

    def step(self) -> bool:
        """Count a mini-batch; True when its group is complete and every worker has the same gradients."""
        self._collected += 1
        if self._collected < self.num_batches:
            return False
        self._collected = 0
        self._exchange()
        return True

    def _exchange(self) -> None:
        self.num_exchanges += 1
        num_workers = dist.get_world_size(self._group) if dist.is_initialized() else 1
        if num_workers == 1 or not self._parameters:
            return
        layouts = self._layouts()
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter, layout in zip(self._parameters, layouts):
            if layout == _DENSE:
                by_dtype.setdefault(parameter.dtype, []).append(parameter)
            elif layout == _SPARSE:
                self._exchange_rows(parameter, num_workers)
        for parameters in by_dtype.values():
            self._exchange_dense(parameters, num_workers)

    def _layouts(self) -> list[int]:
        """What each parameter's gradient is on any worker: those without one take part with zeros."""
        own = [_NONE if p.grad is None else _SPARSE if p.grad.is_sparse else _DENSE for p in self._parameters]
        layouts = torch.tensor(own, device=self._parameters[0].device)
        dist.all_reduce(layouts, dist.ReduceOp.MAX, group=self._group)
        self.counters.weight_sync += _num_bytes(layouts)
        return layouts.tolist()

    def _exchange_dense(self, parameters: list[Tensor], num_workers: int) -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=self._group)
        self.counters.weight_sync += _num_bytes(flat)
        flat /= num_workers
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters])):
            parameter.grad = part.view_as(parameter)

    def _exchange_rows(self, parameter: Tensor, num_workers: int) -> None:
        rows, values = _rows_of(parameter)
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(num_workers)]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device), group=self._group)
        longest = int(torch.cat(counts).max())
        all_rows = self._gather(rows, longest, num_workers)
        all_values = self._gather(values, longest, num_workers)
        sizes = [int(count) for count in counts]
        index = torch.cat([part[:size] for part, size in zip(all_rows, sizes)])
        total = torch.cat([part[:size] for part, size in zip(all_values, sizes)]) / num_workers
        # Summed in the order of the workers, so that all of them get the same bits.
        parameter.grad = torch.sparse_coo_tensor(index[None], total, parameter.shape, check_invariants=False).coalesce()

    def _gather(self, tensor: Tensor, length: int, num_workers: int) -> list[Tensor]:
        """The tensors of all workers, filled up to the longest."""
        padded = tensor.new_zeros(length, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        out = [torch.empty_like(padded) for _ in range(num_workers)]
        dist.all_gather(out, padded, group=self._group)
        self.counters.weight_sync += _num_bytes(padded)
        return out


def _rows_of(parameter: Tensor) -> tuple[Tensor, Tensor]:
    """The rows with a gradient, ascending, and their gradients."""
    if parameter.grad is None:
        empty = torch.zeros(0, dtype=torch.int64, device=parameter.device)
        return empty, parameter.new_zeros(0, *parameter.shape[1:])
    if not parameter.grad.is_sparse:
        rows = torch.arange(len(parameter), device=parameter.device)
        return rows, parameter.grad
    gradient = parameter.grad.coalesce()
    return gradient.indices()[0], gradient.values()


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
