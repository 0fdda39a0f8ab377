"""The experts of a model in transformers computed by its own paths and by ours, and the fused experts of zentorch.

E 64, k 8, d 1024, f 512, swiglu, on a Zipf stream of token ids. transformers is called through its own module, with
``experts_implementation`` as a user sets it. zentorch runs in a process of its own, as it changes the weights it is
given: see zentorch_job.py; `pip install --no-deps zentorch deprecated wrapt` brings it. On a processor without
AVX-512 its bfloat16 results are wrong (off by more than their largest entry), so only its float32 rows run there.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import harness
from expert_batch import D_FF, D_MODEL, NUM_EXPERTS, TOP_K, batch, weights

CAPABILITY = "Sparse experts"
SHAPE = "E 64, k 8, d 1024, f 512"


@lru_cache
def experts_module() -> Any:
    """The experts of Qwen3-MoE with the weights of bench_moe; the same module serves every implementation."""
    try:
        from transformers import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

        from gossamer.sparse_nn import transformers_experts

        transformers_experts.register()
    except ImportError as error:
        raise harness.NotHere(f"needs transformers 5: {error}") from error
    config = Qwen3MoeConfig(
        hidden_size=D_MODEL, moe_intermediate_size=D_FF, num_experts=NUM_EXPERTS, num_experts_per_tok=TOP_K
    )
    with torch.device("meta"):
        module = Qwen3MoeExperts(config)
    module.gate_up_proj, module.down_proj = (torch.nn.Parameter(w.detach()) for w in weights())
    return module


def experts(implementation: str, x: Tensor, ids: Tensor, gates: Tensor) -> Tensor:
    module = experts_module()
    module.config._experts_implementation = implementation
    return module(x, ids, gates)


def batches(num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    x, plan, gates = batch(num_tokens)
    return x, plan.expert_ids.long(), gates.to(x.dtype)


@torch.no_grad()
def forward_against(implementation: str, num_tokens: int) -> harness.Figure:
    inputs = batches(num_tokens)
    functions = {name: lambda name=name: experts(name, *inputs) for name in ("gossamer", implementation)}
    torch.testing.assert_close(*(f().float() for f in functions.values()), rtol=3e-2, atol=3e-2)
    return harness.compare(functions, repeats=12, max_seconds=20).figure(implementation, "gossamer")


def training_against(implementation: str, repeats: int) -> harness.Figure:
    x, ids, gates = batches(512)
    x, gates, module = x.requires_grad_(), gates.requires_grad_(), experts_module()
    grad = torch.randn(512, D_MODEL).bfloat16()

    def step(name: str) -> tuple[Tensor, ...]:
        inputs = (x, gates, module.gate_up_proj, module.down_proj)
        return torch.autograd.grad(experts(name, x, ids, gates), inputs, grad)

    functions: dict[str, Callable] = {name: lambda name=name: step(name) for name in ("gossamer", implementation)}
    return harness.compare(functions, repeats=repeats, warmup=1, max_seconds=40).figure(implementation, "gossamer")


@harness.goal(CAPABILITY, f"in transformers, forward against its grouped_mm, T 1, {SHAPE}, bf16", at_least=2.9)
def transformers_grouped_mm_1() -> harness.Figure:
    return forward_against("grouped_mm", 1)


@harness.goal(CAPABILITY, f"in transformers, forward against its grouped_mm, T 512, {SHAPE}, bf16", at_least=1.6)
def transformers_grouped_mm_512() -> harness.Figure:
    return forward_against("grouped_mm", 512)


@harness.goal(CAPABILITY, f"in transformers, forward against its eager experts, T 32, {SHAPE}, bf16")
def transformers_eager_32() -> harness.Figure:
    return forward_against("eager", 32)


@harness.goal(CAPABILITY, f"in transformers, training against its grouped_mm, T 512, {SHAPE}, bf16", at_least=1.9)
def transformers_grouped_mm_training() -> harness.Figure:
    return training_against("grouped_mm", 5)


@harness.goal(CAPABILITY, f"in transformers, training against eager, T 512, {SHAPE}, bf16", at_least=30, slow=True)
def transformers_eager_training() -> harness.Figure:
    return training_against("eager", 1)


def against_zentorch(dtype: torch.dtype, num_tokens: int) -> harness.Figure:
    if importlib.util.find_spec("zentorch") is None:
        raise harness.NotHere("needs zentorch (x86; pip install --no-deps zentorch deprecated wrapt)")
    job = Path(__file__).with_name("zentorch_job.py")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "result.json")
        command = [sys.executable, str(job), str(path), str(dtype).removeprefix("torch."), str(num_tokens)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=170)
        if done.returncode != 0:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise harness.NotHere(f"zentorch does not run on this processor and torch: {last}")
        result = json.loads(path.read_text())
    if not result["samples"]:
        raise harness.NotHere(
            f"zentorch's {dtype} results are wrong on this processor: relative error {result['error']:.2g}"
        )
    timings = {name: harness.Timing(samples) for name, samples in result["samples"].items()}
    return harness.Comparison(timings).figure("zentorch", "ours")


@harness.goal(CAPABILITY, f"forward against zentorch, T 1, {SHAPE}, bf16", at_least=0.97)
def zentorch_1() -> harness.Figure:
    return against_zentorch(torch.bfloat16, 1)


@harness.goal(CAPABILITY, f"forward against zentorch, T 32, {SHAPE}, bf16", at_least=0.97)
def zentorch_32() -> harness.Figure:
    return against_zentorch(torch.bfloat16, 32)


@harness.goal(CAPABILITY, f"forward against zentorch, T 512, {SHAPE}, bf16", at_least=0.97)
def zentorch_512() -> harness.Figure:
    return against_zentorch(torch.bfloat16, 512)


@harness.goal(CAPABILITY, f"forward against zentorch, T 32, {SHAPE}, fp32", at_least=0.97)
def zentorch_32_float() -> harness.Figure:
    return against_zentorch(torch.float32, 32)


@harness.goal(CAPABILITY, f"forward against zentorch, T 512, {SHAPE}, fp32", at_least=0.97)
def zentorch_512_float() -> harness.Figure:
    return against_zentorch(torch.float32, 512)


if __name__ == "__main__":
    harness.main()
