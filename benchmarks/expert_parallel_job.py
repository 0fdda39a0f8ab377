"""One training step of an expert layer on the ranks of a gloo job, for bench_expert_parallel.py."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from gossamer.distributed import ExpertParallelMoE
from gossamer.sparse_nn import MoE, TopKRouter

NUM_EXPERTS, TOP_K = 64, 8
SIZES = (130, 70, 0, 211)  # tokens of each rank, uneven on purpose


def run(job: Callable[..., Any], num_ranks: int, *arguments: Any) -> list[Any]:
    """What job(rank, num_ranks, *arguments) returned on every rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (num_ranks, folder, job, arguments), nprocs=num_ranks)
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(num_ranks)]


def _worker(rank: int, num_ranks: int, folder: str, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks)
    torch.save(job(rank, num_ranks, *arguments), os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def step(kind: type[MoE], rows: slice, num_tokens: int) -> dict[str, Tensor]:
    """Output and all gradients of one layer for some rows of a batch."""
    torch.manual_seed(1)
    layer = kind(64, 32, NUM_EXPERTS, TopKRouter(64, NUM_EXPERTS, TOP_K, normalize=True), num_shared_experts=1)
    generator = torch.Generator().manual_seed(2)
    x, weight = (torch.randn(num_tokens, 64, generator=generator)[rows] for _ in range(2))
    y = layer(x.requires_grad_())
    (y * weight).sum().backward()
    return {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}  # type: ignore[dict-item]


def gradients(rank: int, num_ranks: int) -> dict[str, Tensor]:
    sizes = SIZES[:num_ranks]
    return step(ExpertParallelMoE, slice(sum(sizes[:rank]), sum(sizes[: rank + 1])), sum(sizes))
