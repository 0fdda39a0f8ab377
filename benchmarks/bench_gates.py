"""Gates and plans: hash-selected experts with learned weights, and the plan of any router, on a Zipf stream of tokens.

The router of DeepSeek-V4 in transformers multiplies by all E rows of its weight and then reads k of the results.
``hash_gate`` reads k rows per token: E 256, k 6, d 4096.

What limits the ratios: here the dense product of transformers is fast (2.7 ms at T 512, close to the peak of the
processor by its FLOPs), so ten times faster is about the time to read x and the weight from memory once. In turns with
it, ours finds the caches emptied and takes 0.7 ms; alone 0.36 ms. Tried: rows of the weight as a whole (0.39 ms), in
blocks of columns that stay in the L2 cache (0.36 ms, kept). T 1 takes 12 us, most of it the cost of a call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from gossamer.sparse_nn import RoutePlan, hash_gate, random_table

import harness
from tokens import VOCAB, zipf_tokens

NUM_EXPERTS, TOP_K, D_MODEL = 256, 6, 4096


@lru_cache
def problem(num_tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_tokens, D_MODEL, generator=generator).bfloat16()
    weight = (torch.randn(NUM_EXPERTS, D_MODEL, generator=generator) / D_MODEL**0.5).bfloat16()
    return x, weight, random_table(VOCAB, NUM_EXPERTS, TOP_K, seed=0), zipf_tokens(num_tokens)


def transformers_router(num_tokens: int) -> Callable[[], Tensor]:
    try:
        from transformers import DeepseekV4Config
        from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HashRouter
    except ImportError as error:
        raise harness.NotHere(f"needs transformers with DeepSeek-V4: {error}") from error
    config = DeepseekV4Config(
        vocab_size=VOCAB, hidden_size=D_MODEL, num_local_experts=NUM_EXPERTS, num_experts_per_tok=TOP_K
    )
    x, weight, table, tokens = problem(num_tokens)
    router = DeepseekV4HashRouter(config).bfloat16()
    router.weight.data.copy_(weight)
    router.tid2eid.copy_(table)
    return lambda: router(x, tokens)[1]


@torch.no_grad()
def gate_times(num_tokens: int, *, rival: bool) -> harness.Comparison:
    x, weight, table, tokens = problem(num_tokens)
    functions = {"ours": lambda: hash_gate(x, weight, table, tokens)[1]}
    if rival:
        functions["transformers"] = transformers_router(num_tokens)
        scale = 1.5  # its default
        torch.testing.assert_close(
            functions["transformers"]().float(), scale * functions["ours"](), rtol=3e-2, atol=1e-2
        )
    return harness.compare(functions, repeats=30)


@harness.goal("Sparse experts", "hash-selected gate, T 512, E 256, k 6, d 4096, bf16", at_most=0.6, unit="ms")
def hash_gate_512() -> harness.Figure:
    return harness.Figure(gate_times(512, rival=False)["ours"].median * 1e3)


@harness.goal("Sparse experts", "hash-selected gate against the transformers router, T 512", at_least=10.0)
def hash_gate_512_against_transformers() -> harness.Figure:
    return gate_times(512, rival=True).figure("transformers", "ours")


@harness.goal("Sparse experts", "hash-selected gate, T 1, E 256, k 6, d 4096, bf16", at_most=0.02, unit="ms")
def hash_gate_1() -> harness.Figure:
    return harness.Figure(gate_times(1, rival=False)["ours"].median * 1e3)


@harness.goal("Sparse experts", "hash-selected gate against the transformers router, T 1", at_least=15.0)
def hash_gate_1_against_transformers() -> harness.Figure:
    return gate_times(1, rival=True).figure("transformers", "ours")


@harness.goal("Sparse experts", "route plan of given ids against torch.sort alone, T 4096, k 8, E 64", at_least=4.0)
def route_plan_against_sort() -> harness.Figure:
    ids = random_table(VOCAB, 64, 8, seed=0)[zipf_tokens(4096)]
    flat = ids.long().flatten()
    return harness.compare(
        {"route_plan": lambda: RoutePlan.from_expert_ids(ids, 64), "sort": lambda: flat.sort(stable=True)}, repeats=50
    ).figure("sort", "route_plan")


if __name__ == "__main__":
    harness.main()
