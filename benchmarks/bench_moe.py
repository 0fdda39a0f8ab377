"""Sparse experts: route plan, dispatch and combine, experts forward and backward, on a Zipf stream of token ids.

Experts are measured with E 64, k 8, d 1024, f 512, swiglu.

Large results go into memory that the system clears on first use, as in any program with the default allocator. Much of
what is won over the peers is won there, by asking for huge pages. To leave it out, keep freed memory in the process:
MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592. Ours over DeepSpeed then falls from about 22x to
5.6x, forward + backward over grouped_mm from about 1.6x to 1.1x, dispatch + combine over the floor from 2.6x to 1.5x:
clearing the 64 MiB that dispatch returns takes as long as the whole floor, however they are written.

What limits few tokens: the products of one row alone reach 85 to 90 % of the read bandwidth in a loop of their own, but
here 65 %. Tried without gain: no prefetch of the next panel (50 %), prefetch of it only where an expert has more than
four rows (55 %), gate and up one after the other instead of in turns (59 to 65 %), tiles of eight columns for one or
two rows (55 %). Many tokens: adding up the lanes of a dot product costs 10 to 20 % of its multiplications, and the
layout without that sum (pairs of rows in turns) would have to be packed for every expert, for one token as for many,
because a result may not depend on the other tokens of the batch.

The figures above are of AVX-512 with bfloat16 products. A processor with AVX2 alone widens bfloat16: its peak is that
of float32 products, and 16 registers hold the sums of a smaller tile. Forward + backward of the same shapes in a loop
of its own (Zen 3 at 91 GFLOP/s), in percent of that peak. On a loaded machine: dot products in tiles of 4 x 4
(29, with the backward pass 35), in tiles of 4 x 3 (34, 37), the same with products that the compiler may not move (50,
41 to 48; the tile alone 60: it must widen what it reads, and its sums end in lanes to add up); transposed panels in
float32 and tiles of 6 x 16 (50, 42), which are in use and gave 69 and 60 alone on the machine, before the last
changes to transposing and prefetch. What is left there: tiles alone reach 90 %; the rest goes into packing, rounding
and stores, most where a weight gradient sums over 64 rows only.

Few tokens there: panels cost more than they save (T 1 39 to 43 % of the read bandwidth, T 32 33 to 40; transposing
through the stack 28; prefetch into the first-level cache no better). Experts of up to 32 rows are now dot products
again, of 4 x 3 rows in order of memory (few_rows.h), and panels keep the sums of lanes apart so that both give the same
bits: T 1 1.5 to 1.9x faster, T 8 and 32 1.8x, T 128 1.4x, T 512 no slower. In a loop of their own these products take
76 to 81 % of the bandwidth of a sum; one row of weights at a time 72 to 80, two to four without prefetch or with
prefetch per row 52 to 69 (rows of 2 KiB are several streams of one page: one prefetch in the order of memory, 12 KiB
ahead, is what helps). Panels whose eight sums began at a multiple of 8 KiB cost T 512 12 %: one line between them
costs nothing. With 24 rows in every expert dots were still ahead of panels (129 and 154 ms, 174 and 242 on a busier
machine); 32 lies where their slopes let them meet, and was not measured by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import cycle

import torch
from torch import Tensor
from torch.nn import functional

from gossamer.sparse_nn import RoutePlan, combine, dispatch, expert_mlp, hash_plan

import harness
from expert_batch import D_FF, D_MODEL, NUM_EXPERTS, TOP_K, batch, table, weights
from tokens import zipf_tokens


def flops(plan: RoutePlan) -> float:
    """Of a gated forward."""
    return 6.0 * plan.num_routes * D_MODEL * D_FF


@lru_cache
def read_bandwidth() -> float:
    """Bytes per second of a sum over 1 GiB, which no cache holds: the floor of weights that are read once."""
    big = torch.ones(1 << 28)
    return 4 * big.numel() / min(harness.seconds(big.sum) for _ in range(5))


def forward_floor(plan: RoutePlan) -> float:
    """Seconds: weights of the touched experts and rows once, or the FLOPs."""
    size = 2 * (3 * len(plan.touched_experts()) * D_MODEL * D_FF + 2 * plan.num_tokens * D_MODEL)
    return max(size / read_bandwidth(), flops(plan) / harness.peak_flops(torch.bfloat16))


def grouped_mm_experts(x: Tensor, plan: RoutePlan, gates: Tensor) -> Tensor:
    """The strongest path in torch: sort, gather, two grouped products, gates, sum."""
    w_in, w_out = weights()
    rows = plan.order.long() // TOP_K
    ends = plan.offsets[1:]
    gate, up = torch._grouped_mm(x[rows], w_in.transpose(1, 2), offs=ends).chunk(2, -1)
    y = torch._grouped_mm(functional.silu(gate) * up, w_out.transpose(1, 2), offs=ends)
    y = y * gates.flatten()[plan.order.long()][:, None].to(y.dtype)
    return y[plan.inverse.long()].view(len(x), TOP_K, -1).sum(1)


@harness.goal("Sparse experts", "hash plan, T 4096, k 8, E 64", at_most=0.1, unit="ms")
def hash_plan_time() -> harness.Figure:
    tokens = zipf_tokens(4096)
    times = harness.compare({"plan": lambda: hash_plan(table(), tokens, NUM_EXPERTS)}, repeats=50)
    return harness.Figure(times["plan"].median * 1e3)


@harness.goal("Sparse experts", "hash plan against torch.sort of the expert ids alone, T 4096, k 8", at_least=4.0)
def hash_plan_against_sort() -> harness.Figure:
    tokens = zipf_tokens(4096)
    ids = table()[tokens].long().flatten()
    times = harness.compare(
        {"plan": lambda: hash_plan(table(), tokens, NUM_EXPERTS), "sort": lambda: ids.sort(stable=True)}, repeats=50
    )
    return times.figure("sort", "plan")


@harness.goal("Sparse experts", "dispatch + combine over the byte floor, T 4096, k 8, d 1024, bf16", at_most=1.5)
def dispatch_floor() -> harness.Figure:
    x, plan, gates = batch(4096)
    y = dispatch(x, plan)
    times = harness.compare({"dispatch": lambda: dispatch(x, plan), "combine": lambda: combine(y, plan, gates)})
    there, back = times["dispatch"].median * 1e3, times["combine"].median * 1e3
    floor = 2e3 * (1 + TOP_K) * x.numel() * x.element_size() / read_bandwidth()
    detail = f"dispatch {there:.1f} ms, combine {back:.1f} ms, floor {floor:.1f} ms"
    return harness.Figure((there + back) / floor, detail)


@harness.goal("Sparse experts", "dispatch + combine against DeepSpeed, T 4096, k 8, d 1024, bf16", at_least=27.0)
def dispatch_against_deepspeed() -> harness.Figure:
    try:
        from deepspeed.moe import sharded_moe
    except ImportError as error:
        raise harness.NotHere(f"needs deepspeed: {error}") from error
    x, plan, gates = batch(4096)
    locations = (plan.inverse - plan.offsets[plan.expert_ids.flatten().long()]).view_as(plan.expert_ids)
    capacity = int(plan.counts.max())
    indices, locations, route_gates = plan.expert_ids.T.contiguous(), locations.T.contiguous(), gates.T.contiguous()

    def theirs() -> Tensor:
        slots = sharded_moe._route_slots(indices, locations, NUM_EXPERTS, capacity)
        rows = sharded_moe._sparse_encode(x, slots, NUM_EXPERTS, capacity)
        return sharded_moe._sparse_decode(rows.flatten(0, 1), slots, route_gates, len(x))

    ours = lambda: combine(dispatch(x, plan), plan, gates)  # noqa: E731
    torch.testing.assert_close(theirs().float(), ours().float(), rtol=3e-2, atol=6e-2)
    return harness.compare({"ours": ours, "DeepSpeed": theirs}, repeats=10).figure("DeepSpeed", "ours")


@torch.no_grad()
def share_of_floor(num_tokens: int) -> harness.Figure:
    """Percent of the floor, over batches that differ, so that few tokens do not find their weights in the cache."""
    w_in, w_out = weights()
    batches = [batch(num_tokens, seed) for seed in range(16 if num_tokens == 1 else 4)]

    def run(turn: Iterator, experts: Callable) -> Callable[[], Tensor]:
        return lambda: experts(*next(turn))

    ours = lambda x, plan, gates: expert_mlp(x, plan, w_in, w_out, gates=gates)  # noqa: E731
    functions = {"ours": run(cycle(batches), ours), "grouped_mm": run(cycle(batches), grouped_mm_experts)}
    times = harness.compare(functions, repeats=16, max_seconds=30)
    floor = sum(forward_floor(plan) for _, plan, _ in batches) / len(batches)
    taken = times["ours"].median
    detail = f"{taken * 1e3:.2f} ms, floor {floor * 1e3:.2f} ms, {times.ratio('grouped_mm', 'ours'):.1f}x grouped_mm"
    return harness.Figure(100 * floor / taken, detail)


@harness.goal(
    "Sparse experts", "forward, share of the floor, T 1, E 64, k 8, d 1024, f 512, bf16", at_least=85, unit="%"
)
def forward_1() -> harness.Figure:
    return share_of_floor(1)


@harness.goal(
    "Sparse experts", "forward, share of the floor, T 32, E 64, k 8, d 1024, f 512, bf16", at_least=85, unit="%"
)
def forward_32() -> harness.Figure:
    return share_of_floor(32)


@harness.goal(
    "Sparse experts", "forward, share of the peak, T 512, E 64, k 8, d 1024, f 512, bf16", at_least=80, unit="%"
)
def forward_512() -> harness.Figure:
    return share_of_floor(512)


def training_step(experts: Callable[[Tensor, RoutePlan, Tensor], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    x, plan, gates = batch(512)
    x.requires_grad_()
    gates.requires_grad_()
    grad = torch.randn(512, D_MODEL).bfloat16()
    return lambda: torch.autograd.grad(experts(x, plan, gates), (x, gates, *weights()), grad)


def our_experts(x: Tensor, plan: RoutePlan, gates: Tensor) -> Tensor:
    return expert_mlp(x, plan, *weights(), gates=gates)


@harness.goal("Sparse experts", "forward + backward, share of the peak, T 512, bf16", at_least=70, unit="%")
def training_512() -> harness.Figure:
    times = harness.compare({"ours": training_step(our_experts)}, repeats=8)
    taken, peak = times["ours"].median, harness.peak_flops(torch.bfloat16)
    return harness.Figure(
        300 * flops(batch(512)[1]) / peak / taken, f"{taken * 1e3:.0f} ms, peak {peak / 1e9:.0f} GFLOP/s"
    )


@harness.goal("Sparse experts", "forward + backward against torch grouped_mm, T 512, bf16", at_least=1.9)
def training_against_grouped_mm() -> harness.Figure:
    steps = {"ours": training_step(our_experts), "grouped_mm": training_step(grouped_mm_experts)}
    return harness.compare(steps, repeats=6).figure("grouped_mm", "ours")


@harness.goal("Sparse experts", "saved for backward over rows and pre-activations, T 512, bf16", at_most=1.05)
def saved_activations() -> harness.Figure:
    x, plan, gates = batch(512)
    x.requires_grad_()
    parameters = {t.data_ptr() for t in (*weights(), gates, plan.order, plan.offsets)}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        our_experts(x, plan, gates)
    least = 2 * (x.numel() + 2 * D_FF * plan.num_routes)
    return harness.Figure(sum(saved.values()) / least, f"{sum(saved.values()) / 2**20:.1f} MiB")


if __name__ == "__main__":
    harness.main()
