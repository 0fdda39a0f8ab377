"""zentorch's fused experts and ours in turns, in a process of their own.

python benchmarks/zentorch_job.py RESULT.json DTYPE TOKENS

zentorch changes weights that it was given, and the process that imports it; each has weights of its own here.
"""

from __future__ import annotations

import json
import sys

import torch

from gossamer.sparse_nn import expert_mlp

import harness
from expert_batch import NUM_EXPERTS, batch, weights


@torch.no_grad()
def main() -> None:
    path, dtype, num_tokens = sys.argv[1], getattr(torch, sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    import zentorch  # noqa: F401

    x, plan, gates = batch(num_tokens)
    x, ours = x.to(dtype), [w.detach().to(dtype) for w in weights()]
    theirs, ids, out = [w.clone() for w in ours], plan.expert_ids.int(), torch.empty_like(x)
    assert len(theirs[0]) == NUM_EXPERTS

    def fused() -> torch.Tensor:
        torch.ops.zentorch.zentorch_fused_moe(out, x, *theirs, None, None, gates, ids, False, "silu")
        return out

    functions = {"ours": lambda: expert_mlp(x, plan, *ours, gates=gates), "zentorch": fused}
    wanted = functions["ours"]().float()
    error = ((fused().float() - wanted).abs().max() / wanted.abs().max()).item()
    times = harness.compare(functions, repeats=12, max_seconds=25) if error < 0.05 else {}
    result = {"error": error, "samples": {name: timing.samples for name, timing in times.items()}}
    with open(path, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
