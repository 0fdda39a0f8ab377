"""2BP on two workers: fused and split schedules in turns, with the cost of every action.

python benchmarks/split_job.py RESULT.json        (under the deepspeed launcher)
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gossamer import distributed
from gossamer.distributed import gpipe, naive, one_f_one_b
from gossamer.distributed.channel import Channel
from gossamer.distributed.executor import execute
from gossamer.distributed.grid import Grid
from gossamer.distributed.micro_batches import MicroBatchWorker
from gossamer.graph import GCNII

from graphs import block_graph

WIDTH, ROWS, NUM_LINEARS, ROUNDS = 512, 512, 6, 12
NUM_NODES, NUM_EDGES, NUM_CHUNKS, HIDDEN = 20_000, 200_000, 8, 128
SCHEDULES = {
    name: (make(*sizes), make(*sizes, split_backward=True))
    for name, make, sizes in (
        ("naive", naive, (2,)),
        ("gpipe", gpipe, (2, 2)),
        ("1f1b-1", one_f_one_b, (2, 2)),
        ("1f1b-2", one_f_one_b, (2, 4)),
    )
}
ACTIONS = {"forward": "forward", "backward": "backward", "backward_input": "p1", "backward_weight": "p2"}


class Stopwatch:
    """Seconds per micro-batch of everything that stage workers compute."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def watch(self, worker: Any) -> None:
        for method, name in ACTIONS.items():
            setattr(worker, method, self._timed(getattr(worker, method), name))

    def _timed(self, method: Any, name: str) -> Any:
        def call(micro_batches: Any, *arguments: Any) -> Any:
            start = time.perf_counter()
            result = method(micro_batches, *arguments)
            count = 1 if isinstance(micro_batches, int) else len(micro_batches)
            self.seconds[name] += [(time.perf_counter() - start) / count] * count
            return result

        return call

    def costs(self) -> list[dict[str, float]]:
        """Of every worker."""
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, {name: statistics.median(values) for name, values in self.seconds.items()})
        return found


def in_turns(watch: Stopwatch, channel: Channel, fused: Any, split: Any) -> dict[str, Any]:
    """Seconds of either by turns, without the first round, which allocates, and the costs of the actions."""
    seconds: dict[str, list[float]] = {"fused": [], "split": []}
    for r in range(1 + ROUNDS):
        for name, run in (("fused", fused), ("split", split)):
            channel.barrier()
            start = time.perf_counter()
            run()
            channel.barrier()
            seconds[name].append(time.perf_counter() - start)
        if r == 0:
            watch.seconds.clear()
    return {name: values[1:] for name, values in seconds.items()} | {"costs": watch.costs()}


def stacks(channel: Channel, name: str) -> dict[str, Any]:
    """A stack of linear layers under one of the schedules."""
    rank, (fused, split) = dist.get_rank(), SCHEDULES[name]
    layers = [layer for _ in range(NUM_LINEARS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    like = torch.zeros(ROWS, WIDTH)
    worker = MicroBatchWorker(
        nn.Sequential(*layers),
        (like, like),
        inputs=torch.randn(fused.num_micro_batches, ROWS, WIDTH).unbind() if rank == 0 else (),
        loss=(lambda output, m: output.square().mean()) if rank == 1 else None,
    )
    watch = Stopwatch()
    watch.watch(worker)
    runs = [lambda actions=made.stages[rank]: execute(actions, worker, channel) for made in (fused, split)]
    return in_turns(watch, channel, *runs)


def chunks(channel: Channel) -> dict[str, Any]:
    """GNNPipe: a deep GCNII, its epochs with either backward pass."""
    graph, watch = block_graph(NUM_NODES, NUM_EDGES, 16, between=0.2), Stopwatch()
    generator = torch.Generator().manual_seed(0)
    data = {
        "features": torch.randn(NUM_NODES, HIDDEN, generator=generator),
        "labels": torch.randint(8, (NUM_NODES,), generator=generator),
        "masks": {"train": torch.rand(NUM_NODES, generator=generator) < 0.5},
    }
    engines = []
    for split in (False, True):
        torch.manual_seed(0)
        section = {"num_chunks": NUM_CHUNKS, "split_backward": split, "backend": "torch"}
        model = GCNII(HIDDEN, HIDDEN, 8, num_layers=16)
        engines.append(distributed.initialize(model, graph, **data, config={"gossamer": section}))
        watch.watch(engines[-1]._worker)
    return in_turns(watch, channel, *(engine.train_epoch for engine in engines))


def main() -> None:
    torch.set_num_threads(1)
    distributed.init_distributed("cpu")
    rank = dist.get_rank()
    torch.manual_seed(rank)
    channel = Channel(Grid(2, 1, rank), torch.device("cpu"))
    found = {name: stacks(channel, name) for name in SCHEDULES} | {"gnnpipe": chunks(channel)}
    if rank == 0:
        with open(sys.argv[1], "w") as file:
            json.dump(found, file)
    distributed.leave_distributed()


if __name__ == "__main__":
    main()
