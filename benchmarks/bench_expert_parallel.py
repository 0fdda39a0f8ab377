"""Experts spread over processes (gloo): exactness, bytes and time of the exchange, on Zipf streams of token ids.

E 64, k 8. The ranks hold equal blocks of experts; the exchange sends each row of a kept route once and pads nothing,
where DeepSpeed pads every expert to the fullest one of all ranks: that factor is what the rows against it show.
"""

from __future__ import annotations

import torch

from gossamer.sparse_nn import MoE, random_table

import expert_parallel_job as job
import harness
from tokens import VOCAB, zipf_tokens

CAPABILITY = "Expert parallelism"


def exactness(num_ranks: int) -> harness.Figure:
    """Largest error of an output or a gradient, relative to its largest entry."""
    wanted = job.step(MoE, slice(None), sum(job.SIZES[:num_ranks]))
    ranks = job.run(job.gradients, num_ranks)
    errors = {}
    for name, one in wanted.items():
        split = name in ("y", "x", "w_in", "w_out")  # over the ranks; everything else is on all of them, to be summed
        parts = torch.stack([r[name] for r in ranks]).sum(0) if not split else torch.cat([r[name] for r in ranks])
        errors[name] = ((parts - one).abs().max() / one.abs().max()).item()
    worst = max(errors, key=lambda name: errors[name])
    return harness.Figure(errors[worst], f"worst: {worst}; {job.SIZES[:num_ranks]} tokens, fp32, gloo")


@harness.goal(CAPABILITY, "2 processes against one: output and every gradient", at_most=1e-6, unit="")
def two_ranks_are_one() -> harness.Figure:
    return exactness(2)


@harness.goal(CAPABILITY, "4 processes against one: output and every gradient", at_most=1e-6, unit="")
def four_ranks_are_one() -> harness.Figure:
    return exactness(4)


@harness.goal(CAPABILITY, "bytes of a step over the closed form, 4 processes, T 512 each", at_least=1, at_most=1)
def bytes_of_a_step() -> harness.Figure:
    """Closed form: every route to another rank's expert is one row there and back, forward and backward."""
    num_tokens, d_model, num_ranks = 512, 64, 4
    owner = random_table(VOCAB, job.NUM_EXPERTS, job.TOP_K, seed=0).long() * num_ranks // job.NUM_EXPERTS
    leaving = [(owner[zipf_tokens(num_tokens, r)] != r).sum().item() for r in range(num_ranks)]
    arriving = [
        sum((owner[zipf_tokens(num_tokens, s)] == r).sum().item() for s in range(num_ranks) if s != r)
        for r in range(num_ranks)
    ]
    closed = [4 * d_model * 2 * (out + back) for out, back in zip(leaving, arriving)]
    counted = job.run(job.traffic, num_ranks, num_tokens, d_model)
    worst = max((c / f for c, f in zip(counted, closed)), key=lambda ratio: abs(ratio - 1))
    padded = max(job.plan_of(r, num_tokens).counts.max().item() for r in range(num_ranks)) * job.NUM_EXPERTS
    return harness.Figure(
        worst, f"{sum(counted) / 2**20:.1f} MiB; padded to the fullest expert {padded / num_tokens / job.TOP_K:.1f}x"
    )


@harness.goal(
    CAPABILITY, "rows to experts and back against DeepSpeed's padded exchange, 2 processes, T 2048, d 1024, bf16",
    at_least=1.0, threads=1,
)  # fmt: skip
def exchange_against_deepspeed() -> harness.Figure:
    try:
        import deepspeed.moe.sharded_moe  # noqa: F401
    except ImportError as error:
        raise harness.NotHere(f"needs deepspeed: {error}") from error
    found = job.run(job.exchange_seconds, 2, 2048, 1024, 7)[0]
    timings = {name: harness.Timing(samples) for name, samples in found["samples"].items()}
    padding = found["capacity"] * job.NUM_EXPERTS / found["rows"]
    detail = f"both on the wall clock; DeepSpeed sends {padding:.1f} rows for each of ours"
    return harness.Comparison(timings).figure("DeepSpeed", "ours", detail)


if __name__ == "__main__":
    harness.main()
