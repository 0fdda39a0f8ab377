"""Sweeps of the operators of sparse transformers, on a Zipf stream of token ids; bfloat16 where weights count."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.sparse_nn import (
    RoutePlan,
    combine,
    decode_attention,
    dispatch,
    expert_mlp,
    hash_gate,
    hash_plan,
    random_table,
    top_k_gate,
)

from cost import Cost, cost
from sweep import Problem, optional, sweep
from tokens import VOCAB, zipf_tokens

NUM_EXPERTS, TOP_K, D_MODEL, D_FF = 64, 8, 1024, 512
TOKENS = (64, 512, 4096)


@lru_cache
def table(num_experts: int = NUM_EXPERTS, k: int = TOP_K) -> Tensor:
    return random_table(VOCAB, num_experts, k, seed=0)


def plan_of(num_tokens: int) -> RoutePlan:
    return hash_plan(table(), zipf_tokens(num_tokens), NUM_EXPERTS)


@sweep("hash_plan", "T", (*TOKENS, 32768))
def hash_plan_problem(num_tokens: int) -> Problem:
    tokens = zipf_tokens(num_tokens)

    def stock() -> tuple[Tensor, ...]:
        """Look up, sort, invert, count."""
        ids = table()[tokens].long().flatten()
        order = ids.sort(stable=True).indices
        inverse = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)))
        return order, inverse, F.pad(ids.bincount(minlength=NUM_EXPERTS).cumsum(0), (1, 0))

    def check() -> None:
        ours, (order, inverse, offsets) = hash_plan(table(), tokens, NUM_EXPERTS), stock()
        torch.testing.assert_close(
            [ours.order.long(), ours.inverse.long(), ours.offsets.long()], [order, inverse, offsets]
        )

    ours = lambda: hash_plan(table(), tokens, NUM_EXPERTS)  # noqa: E731
    return Problem(ours, cost("hash_plan", table(), tokens, NUM_EXPERTS), stock, check=check)


@sweep("route_plan", "T", (*TOKENS, 32768))
def route_plan_problem(num_tokens: int) -> Problem:
    ids = table()[zipf_tokens(num_tokens)]
    flat = ids.long().flatten()
    return Problem(
        lambda: RoutePlan.from_expert_ids(ids, NUM_EXPERTS), cost("route_plan", num_tokens, TOP_K, NUM_EXPERTS),
        lambda: flat.sort(stable=True),
    )  # fmt: skip


@sweep("dispatch", "T", TOKENS, threads=True)
def dispatch_problem(num_tokens: int) -> Problem:
    x, plan = torch.randn(num_tokens, D_MODEL).bfloat16(), plan_of(num_tokens)
    rows = plan.order.long() // TOP_K
    return Problem(lambda: dispatch(x, plan), cost("dispatch", x, plan), lambda: x[rows])


@sweep("combine", "T", TOKENS, threads=True)
def combine_problem(num_tokens: int) -> Problem:
    plan, gates = plan_of(num_tokens), torch.rand(num_tokens, TOP_K)
    y = torch.randn(num_tokens * TOP_K, D_MODEL).bfloat16()
    inverse = plan.inverse.long()

    def stock() -> Tensor:
        return torch.einsum("tkd,tk->td", y[inverse].view(num_tokens, TOP_K, D_MODEL).float(), gates).bfloat16()

    def check() -> None:
        torch.testing.assert_close(combine(y, plan, gates), stock(), rtol=2e-2, atol=2e-2)

    return Problem(lambda: combine(y, plan, gates), cost("combine", y, plan, gates), stock, check=check)


@lru_cache
def weights() -> tuple[Tensor, Tensor]:
    w_in = torch.randn(NUM_EXPERTS, 2 * D_FF, D_MODEL) / D_MODEL**0.5
    return w_in.bfloat16(), (torch.randn(NUM_EXPERTS, D_MODEL, D_FF) / D_FF**0.5).bfloat16()


@sweep("expert_mlp", "T", (1, 8, 64, 512), full=(4096,), threads=True)
def expert_mlp_problem(num_tokens: int) -> Problem:
    """Dispatch, both products and combine."""
    w_in, w_out = weights()
    plan, gates = plan_of(num_tokens), torch.rand(num_tokens, TOP_K)
    x = torch.randn(num_tokens, D_MODEL).bfloat16()
    rows, ends, flat = plan.order.long() // TOP_K, plan.offsets[1:].int(), gates.flatten()[plan.order.long()]

    def grouped() -> Tensor:
        gate, up = torch._grouped_mm(x[rows], w_in.transpose(1, 2), offs=ends).chunk(2, -1)
        y = torch._grouped_mm(F.silu(gate) * up, w_out.transpose(1, 2), offs=ends) * flat[:, None].to(x.dtype)
        return y[plan.inverse.long()].view(num_tokens, TOP_K, -1).sum(1)

    def stock() -> Tensor:
        """Expert by expert, as eager models do it."""
        out, bounds = torch.zeros_like(x), plan.offsets.tolist()
        for e, (begin, end) in enumerate(pairwise(bounds)):
            if begin < end:
                token = rows[begin:end]
                gate, up = F.linear(x[token], w_in[e]).chunk(2, -1)
                out.index_add_(0, token, F.linear(F.silu(gate) * up, w_out[e]) * flat[begin:end, None].to(x.dtype))
        return out

    def ours() -> Tensor:
        return expert_mlp(x, plan, w_in, w_out, gates=gates)

    def check() -> None:
        torch.testing.assert_close(ours().float(), stock().float(), rtol=6e-2, atol=6e-2)

    least = cost("expert_mlp", x, plan, w_in, w_out)
    return Problem(ours, least, stock, {"torch grouped_mm": grouped}, dtype=torch.bfloat16, check=check)


@sweep("hash_gate", "T", (1, 32, 512), full=(4096,), threads=True)
def hash_gate_problem(num_tokens: int) -> Problem:
    num_experts, width = 256, 4096
    x = torch.randn(num_tokens, width).bfloat16()
    weight = (torch.randn(num_experts, width) / width**0.5).bfloat16()
    ids, tokens = table(num_experts, 6), zipf_tokens(num_tokens)

    def stock() -> Tensor:
        """All logits, then the chosen ones, as the router of DeepSeek-V4 in transformers."""
        scores = F.softplus((x @ weight.T).float()).sqrt().gather(1, ids[tokens].long())
        return scores / scores.sum(1, keepdim=True)

    def ours() -> Tensor:
        return hash_gate(x, weight, ids, tokens)[1]

    def check() -> None:
        torch.testing.assert_close(ours().float(), stock().float(), rtol=3e-2, atol=1e-2)

    return Problem(ours, cost("hash_gate", x, weight, ids), stock, dtype=torch.bfloat16, check=check)


@sweep("top_k_gate", "T", TOKENS, full=(32768,), threads=True)
def top_k_gate_problem(num_tokens: int) -> Problem:
    num_experts, k = 256, 6
    logits = torch.randn(num_tokens, num_experts) + torch.randn(num_experts) / 2

    def stock() -> tuple[Tensor, Tensor]:
        """Scores, choice, gates, and the sort that a plan needs."""
        gates, ids = logits.softmax(-1).topk(k)
        return gates / gates.sum(1, keepdim=True), ids.flatten().sort(stable=True).indices

    def deepspeed_gate() -> dict[str, Callable[[], Any]]:
        from deepspeed.moe.sharded_moe import topkgating

        return {"DeepSpeed": lambda: topkgating(logits, k, 1.25, 4, drop_policy="position", sparse_routes=True)}

    def ours() -> Any:
        return top_k_gate(logits, k, normalize=True)

    def check() -> None:
        torch.testing.assert_close(ours().gates, stock()[0], rtol=1e-4, atol=1e-6)

    return Problem(ours, cost("top_k_gate", logits, k), stock, optional(deepspeed_gate), check=check)


def decoding(length: int, batch: int, heads: int, kv_heads: int, dim: int) -> Problem:
    q = torch.randn(batch, 1, heads, dim).bfloat16()
    k, v = (torch.randn(batch, length, kv_heads, dim).bfloat16() for _ in range(2))
    rows, keys, values = q.view(batch, kv_heads, -1, dim), k.transpose(1, 2), v.transpose(1, 2)

    def ours() -> Tensor:
        return decode_attention(q, k, v)

    def stock() -> Tensor:
        return F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, enable_gqa=True).transpose(1, 2)

    def check() -> None:
        torch.testing.assert_close(ours().float(), stock().float(), rtol=3e-2, atol=2e-2)

    rivals = {
        "group folded into rows, SDPA": lambda: F.scaled_dot_product_attention(rows, keys, values),
        "group folded into rows, matmul": lambda: torch.softmax(rows @ keys.transpose(2, 3) * dim**-0.5, -1) @ values,
    }
    least: Cost = cost("decode_attention", q, k, v)
    return Problem(ours, least, stock, rivals, dtype=torch.bfloat16, check=check)


@sweep("decode_attention", "S", (512, 4096, 32768), full=(131072,), threads=True)
def multi_query_problem(length: int) -> Problem:
    """One sequence, 32 query heads on one key/value head of 128."""
    return decoding(length, 1, 32, 1, 128)
