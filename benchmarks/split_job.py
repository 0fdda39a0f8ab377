"""2BP on two workers: fused and split schedules in turns, with the cost of every action.

python benchmarks/split_job.py RESULT.json        (under the deepspeed launcher)
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gossamer import distributed
from gossamer.distributed import one_f_one_b
from gossamer.distributed.channel import Channel
from gossamer.distributed.executor import execute
from gossamer.distributed.grid import Grid
from gossamer.distributed.micro_batches import MicroBatchWorker

WIDTH, ROWS, NUM_LINEARS, ROUNDS = 512, 512, 6, 12


class TimedWorker(MicroBatchWorker):
    """Keeps the seconds per micro-batch of everything that it computes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def forward(self, micro_batch: int, inputs: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        return self._timed("forward", 1, lambda: super(TimedWorker, self).forward(micro_batch, inputs))

    def backward(self, micro_batch: int, gradients: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        return self._timed("backward", 1, lambda: super(TimedWorker, self).backward(micro_batch, gradients))

    def backward_input(self, micro_batch: int, gradients: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        return self._timed("p1", 1, lambda: super(TimedWorker, self).backward_input(micro_batch, gradients))

    def backward_weight(self, micro_batches: Sequence[int]) -> None:
        self._timed("p2", len(micro_batches), lambda: super(TimedWorker, self).backward_weight(micro_batches))

    def _timed(self, name: str, count: int, call: Any) -> Any:
        start = time.perf_counter()
        result = call()
        self.seconds[name].append((time.perf_counter() - start) / count)
        return result


def main() -> None:
    torch.set_num_threads(1)
    distributed.init_distributed("cpu")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)
    layers = [layer for _ in range(NUM_LINEARS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    like = torch.zeros(ROWS, WIDTH)
    worker = TimedWorker(
        nn.Sequential(*layers),
        (like, like),
        inputs=torch.randn(world, ROWS, WIDTH).unbind() if rank == 0 else (),
        loss=(lambda output, m: output.square().mean()) if rank == world - 1 else None,
    )
    channel = Channel(Grid(world, 1, rank), torch.device("cpu"))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for r in range(1 + ROUNDS):
        for split, taken in seconds.items():
            channel.barrier()
            start = time.perf_counter()
            execute(one_f_one_b(world, world, split_backward=split).stages[rank], worker, channel)
            channel.barrier()
            taken.append(time.perf_counter() - start)
        if r == 0:  # the first round allocates
            worker.seconds.clear()
    costs: list[Any] = [None] * world
    dist.all_gather_object(costs, {name: statistics.median(values) for name, values in worker.seconds.items()})
    if rank == 0:
        with open(sys.argv[1], "w") as file:
            json.dump({"fused": seconds[False][1:], "split": seconds[True][1:], "costs": costs}, file)
    distributed.leave_distributed()


if __name__ == "__main__":
    main()
