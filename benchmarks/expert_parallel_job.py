"""Experts over several gloo processes: what each rank computes, sends and waits, for bench_expert_parallel.py.

Every function here runs on all ranks and returns, on every rank, the results of all of them.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from gossamer.distributed import ExpertExchange, ExpertParallelMoE
from gossamer.sparse_nn import HashRouter, MoE, RoutePlan, TopKRouter, combine, dispatch, hash_plan, random_table

from tokens import VOCAB, zipf_tokens

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


def plan_of(rank: int, num_tokens: int) -> RoutePlan:
    return hash_plan(random_table(VOCAB, NUM_EXPERTS, TOP_K, seed=0), zipf_tokens(num_tokens, rank), NUM_EXPERTS)


def traffic(rank: int, num_ranks: int, num_tokens: int, d_model: int) -> int:
    """Bytes that left this rank in one step of a hash layer."""
    table = random_table(VOCAB, NUM_EXPERTS, TOP_K, seed=0)
    layer = ExpertParallelMoE(d_model, 16, NUM_EXPERTS, HashRouter(table, NUM_EXPERTS))
    x = torch.randn(num_tokens, d_model).requires_grad_()
    layer(x, zipf_tokens(num_tokens, rank)).sum().backward()
    return layer.bytes_sent


def exchange_seconds(rank: int, num_ranks: int, num_tokens: int, d_model: int, repeats: int) -> dict[str, Any]:
    """Tokens to their experts and back: ours and DeepSpeed's padded buffers in turns, forward, on the wall clock."""
    import deepspeed
    from deepspeed.moe import sharded_moe

    deepspeed.init_distributed(dist_backend="gloo")
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(num_tokens, d_model, generator=generator).bfloat16()
    plan, gates = plan_of(rank, num_tokens), torch.rand(num_tokens, TOP_K, generator=generator)
    ids = plan.expert_ids.long()
    locations = (plan.inverse - plan.offsets[ids.flatten()]).view_as(ids).int().T.contiguous()
    indices, route_gates = plan.expert_ids.T.contiguous(), gates.T.contiguous()
    most = plan.counts.max().long()
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    capacity = int(most)

    def ours() -> Tensor:
        exchange = ExpertExchange.from_plan(plan)
        return combine(exchange.to_tokens(exchange.to_experts(dispatch(x, plan))), plan, gates)

    def padded() -> Tensor:
        slots = sharded_moe._route_slots(indices, locations, NUM_EXPERTS, capacity)
        rows = sharded_moe._sparse_encode(x, slots, NUM_EXPERTS, capacity)
        arrived = sharded_moe._AllToAll.apply(dist.group.WORLD, rows)
        back = sharded_moe._AllToAll.apply(dist.group.WORLD, arrived)
        return sharded_moe._sparse_decode(back.flatten(0, 1), slots, route_gates, num_tokens)

    functions = {"ours": ours, "DeepSpeed": padded}
    results = [function().float() for function in functions.values()]
    torch.testing.assert_close(*results, rtol=3e-2, atol=6e-2)
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            dist.barrier()
            start = time.perf_counter()
            function()
            dist.barrier()
            samples[name].append(time.perf_counter() - start)
    return {"samples": samples, "capacity": capacity, "rows": plan.num_routes}
