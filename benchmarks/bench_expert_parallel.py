"""Experts spread over processes (gloo) against one process with all experts: E 64, k 8, tokens unevenly spread."""

from __future__ import annotations

import torch

from gossamer.sparse_nn import MoE

import expert_parallel_job as job
import harness

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


if __name__ == "__main__":
    harness.main()
