"""Gates and plans: hash-selected experts with learned weights, and the plan of any router, on a Zipf stream of tokens.

The router of DeepSeek-V4 in transformers multiplies by all E rows of its weight and then reads k of the results.
``hash_gate`` reads k rows per token: E 256, k 6, d 4096.

What limits the ratios: here the dense product of transformers is fast (2.7 ms at T 512, close to the peak of the
processor by its FLOPs), so ten times faster is about the time to read x and the weight from memory once. In turns with
it, ours finds the caches emptied and takes 0.7 ms; alone 0.36 ms. Tried: rows of the weight as a whole (0.39 ms), in
blocks of columns that stay in the L2 cache (0.36 ms, kept). T 1 is the cost of a call:
the third design attacks that. Where nothing needs a gradient the operator is called below torch's autograd layer, whose
Python part costs more than the gate (on a loaded machine with AVX2 28.9 us for the operator with that layer, 17.5 us
without it; adding two numbers took 2.7 us there).

The row of top-k gates against DeepSpeed holds more than the gate alone (1.58 ms against 1.21): the balance loss, for
which choices are counted before any is dropped, in turns with a rival that empties the caches. The two shares were not
measured apart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from gossamer.sparse_nn import RoutePlan, hash_gate, load_balance_loss, random_table, top_k_gate

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


def skewed_logits(num_tokens: int = 4096) -> Tensor:
    """Logits of a router that prefers some experts, so that a capacity drops routes."""
    generator = torch.Generator().manual_seed(0)
    preference = torch.randn(NUM_EXPERTS, generator=generator) / 2
    return torch.randn(num_tokens, NUM_EXPERTS, generator=generator) + preference


@harness.goal("Sparse experts", "top-k gates, capacity, places, T 4096, E 256, k 6", at_most=1.5, unit="ms")
def top_k_gate_4096() -> harness.Figure:
    logits = skewed_logits()
    gate = lambda: top_k_gate(logits, TOP_K, normalize=True, capacity=120, score_sums=True)  # noqa: E731
    times = harness.compare({"ours": gate, "torch.topk": lambda: logits.topk(TOP_K)}, repeats=30)
    return harness.Figure(times["ours"].median * 1e3, f"{times.ratio('torch.topk', 'ours'):.1f}x torch.topk alone")


@harness.goal("Sparse experts", "top-k gates against DeepSpeed's topkgating, T 4096, E 256, k 6", at_least=20.0)
def top_k_gate_against_deepspeed() -> harness.Figure:
    """Both drop in token order and give a balance loss; theirs is the faster of its two policies."""
    try:
        from deepspeed.moe.sharded_moe import topkgating
    except ImportError as error:
        raise harness.NotHere(f"needs deepspeed: {error}") from error
    logits = skewed_logits()
    theirs = lambda: topkgating(logits, TOP_K, 1.25, 4, drop_policy="position", sparse_routes=True)  # noqa: E731
    loss, capacity, _, indices, locations, *_ = theirs()

    def ours() -> tuple[Tensor, Tensor]:
        gating = top_k_gate(logits, TOP_K, normalize=True, capacity=int(capacity), score_sums=True)
        load = gating.plan.expert_ids.flatten().bincount(minlength=NUM_EXPERTS) / (len(logits) * TOP_K)
        return NUM_EXPERTS * (load * gating.score_sums / len(logits)).sum(), gating.locations

    torch.testing.assert_close(ours()[0], loss)
    assert torch.equal(ours()[1], torch.where(indices < 0, -1, locations).T)
    return harness.compare({"ours": ours, "DeepSpeed": theirs}, repeats=12).figure("DeepSpeed", "ours")


@harness.goal("Sparse experts", "top-k gates forward + backward against torch, T 4096, E 256, k 6", at_least=3.0)
def top_k_gate_backward() -> harness.Figure:
    logits = skewed_logits().requires_grad_()

    def theirs() -> Tensor:
        probabilities = logits.softmax(1)
        gates, ids = probabilities.topk(TOP_K)
        loss = (gates / gates.sum(1, keepdim=True)).square().sum() + load_balance_loss(probabilities, ids)
        return torch.autograd.grad(loss, logits)[0]

    def ours() -> Tensor:
        gating = top_k_gate(logits, TOP_K, normalize=True, score_sums=True)
        share = gating.plan.counts / gating.plan.num_routes
        loss = gating.gates.square().sum() + NUM_EXPERTS * (share * gating.score_sums / len(logits)).sum()  # type: ignore[operator]
        return torch.autograd.grad(loss, logits)[0]

    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-6)
    return harness.compare({"ours": ours, "torch": theirs}, repeats=12).figure("torch", "ours")


@harness.goal("Sparse experts", "route plan of given ids against torch.sort alone, T 4096, k 8, E 64", at_least=4.0)
def route_plan_against_sort() -> harness.Figure:
    ids = random_table(VOCAB, 64, 8, seed=0)[zipf_tokens(4096)]
    flat = ids.long().flatten()
    return harness.compare(
        {"route_plan": lambda: RoutePlan.from_expert_ids(ids, 64), "sort": lambda: flat.sort(stable=True)}, repeats=50
    ).figure("sort", "route_plan")


if __name__ == "__main__":
    harness.main()
