"""2BP: the simulator against the paper's table and against two workers, and the bytes that wait for p2."""

from __future__ import annotations

import statistics
import tempfile
from functools import cache
from typing import Any

import torch
from split_job import NUM_CHUNKS, SCHEDULES
from torch import nn

from gossamer.distributed import bound_waiting, gnnpipe, gpipe, naive, one_f_one_b, peak_bytes, simulate
from gossamer.distributed.schedule import Costs, Schedule
from gossamer.distributed.split import SplitBackward, saved_bytes
from gossamer.distributed.transformer_pipeline import TransformerStage
from gossamer.sparse_nn import SparseTransformer, SparseTransformerConfig

import harness
from pipeline_job import run_job

CAPABILITY = "2BP"


@harness.goal(CAPABILITY, "simulator minus the paper's table, N = 2, 4, 8, 16", at_most=1e-12, unit="")
def paper_table() -> harness.Figure:
    """Times and bubbles of the four schedules with and without the split, at unit costs."""
    worst, gains = 0.0, []
    for n in (2, 4, 8, 16):
        table = [
            (naive, (n,), 3 * n, 2 * n + 1, (n - 1) / n, 2 * (n - 1) / (2 * n + 1)),
            (gpipe, (n, n), 3 * (2 * n - 1), 5 * n - 2, (n - 1) / (2 * n - 1), 2 * (n - 1) / (5 * n - 2)),
            (one_f_one_b, (n, n), 3 * (2 * n - 1), 4 * n - 1, (n - 1) / (2 * n - 1), (n - 1) / (4 * n - 1)),
            (one_f_one_b, (n, 2 * n), 3 * (3 * n - 1), 7 * n - 1, (n - 1) / (3 * n - 1), (n - 1) / (7 * n - 1)),
        ]
        for make, sizes, *expected in table:
            lines = [simulate(make(*sizes, split_backward=split), Costs()) for split in (False, True)]
            found = [lines[0].makespan, lines[1].makespan, lines[0].bubble, lines[1].bubble]
            worst = max(worst, *(abs(ours - theirs) for ours, theirs in zip(found, expected)))
            if n == 4:
                gains.append(f"{found[0] / found[1]:.3f}")
    return harness.Figure(worst, f"gains at N = 4: {', '.join(gains)} (naive, GPipe, 1F1B-1, 1F1B-2)")


@cache
def measured() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return run_job("split_job.py", f"{folder}/result.json", f"{folder}/result.json", 2)


def gain(name: str, fused: Schedule, split: Schedule) -> harness.Figure:
    """Measured gain over that of the simulator, which gets the median of every action on every worker.

    Needs two idle cores: where others work, one stage waits for the other and the simulator does not know.
    """
    found = measured()[name]
    costs = {kind: tuple(one[kind] for one in found["costs"]) for kind in ("forward", "backward", "p1", "p2")}
    times = simulate(fused, Costs(costs["forward"], costs["backward"], 0.0)).makespan
    times /= simulate(split, Costs(costs["forward"], costs["p1"], costs["p2"])).makespan
    ratio = statistics.median(found["fused"]) / statistics.median(found["split"])
    text = ", ".join(f"{kind} {values[0] * 1e3:.1f} and {values[1] * 1e3:.1f} ms" for kind, values in costs.items())
    return harness.Figure(ratio / times, f"measured {ratio:.3f}, simulated {times:.3f}; {text}")


GAIN = "{} on 2 workers: measured gain / simulated with measured costs"
WITHIN = {"at_least": 0.95, "at_most": 1.05, "unit": ""}


@harness.goal(CAPABILITY, GAIN.format("naive"), **WITHIN)
def gain_naive() -> harness.Figure:
    return gain("naive", *SCHEDULES["naive"])


@harness.goal(CAPABILITY, GAIN.format("GPipe"), **WITHIN)
def gain_gpipe() -> harness.Figure:
    return gain("gpipe", *SCHEDULES["gpipe"])


@harness.goal(CAPABILITY, GAIN.format("1F1B-1"), **WITHIN)
def gain_1f1b_1() -> harness.Figure:
    return gain("1f1b-1", *SCHEDULES["1f1b-1"])


@harness.goal(CAPABILITY, GAIN.format("1F1B-2"), **WITHIN)
def gain_1f1b_2() -> harness.Figure:
    return gain("1f1b-2", *SCHEDULES["1f1b-2"])


@harness.goal(CAPABILITY, GAIN.format(f"GNNPipe, GCNII of 16 layers, {NUM_CHUNKS} chunks,"), **WITHIN)
def gain_gnnpipe() -> harness.Figure:
    return gain("gnnpipe", gnnpipe(2, NUM_CHUNKS), gnnpipe(2, NUM_CHUNKS, split_backward=True))


@harness.goal(CAPABILITY, "bytes that wait for p2 / closed form, 8 linear layers", at_least=1.0, at_most=1.0)
def waiting_bytes() -> harness.Figure:
    """Per layer its input and the gradient of its output; nothing for what p1 alone needs."""
    rows, width, depth = 256, 128, 8
    stack = nn.Sequential(
        *(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU(), nn.Dropout()))
    )
    output = stack(torch.randn(rows, width))
    fused = saved_bytes([output])
    split = SplitBackward([output], [])
    split.input_gradients([torch.ones_like(output)])
    expected = 2 * depth * rows * width * 4
    return harness.Figure(split.waiting_bytes / expected, f"{expected} bytes; {fused} before the backward pass")


@harness.goal(CAPABILITY, "peak bytes of the first of 4 stages, 1F1B-2 of a SparseTransformer: 2BP over fused")
def peak_of_2bp() -> harness.Figure:
    return peak()


@harness.goal(CAPABILITY, "the same with p2 run early, at most one micro-batch waiting", at_most=1.1)
def peak_of_bounded() -> harness.Figure:
    return peak(max_waiting=1)


@harness.goal(CAPABILITY, "the same with derivative checkpoints and recomputed blocks", at_most=0.5)
def peak_of_checkpoints() -> harness.Figure:
    return peak(checkpoints=True)


def peak(*, max_waiting: int | None = None, checkpoints: bool = False) -> harness.Figure:
    """Bytes of one micro-batch, counted, and the most of them that the schedule keeps.

    torch.utils.checkpoint holds the input of a block itself; it is added here (one hidden state per block).
    """
    fused = peak_bytes(one_f_one_b(4, 8), in_flight=stage_bytes(False)[0], waiting=0)[0]
    in_flight, waiting = stage_bytes(checkpoints)
    split = one_f_one_b(4, 8, split_backward=True)
    schedule = split if max_waiting is None else bound_waiting(split, max_waiting)
    kept = peak_bytes(schedule, in_flight=in_flight, waiting=waiting)[0]
    detail = f"fused {fused / 2**20:.1f} MiB, this {kept / 2**20:.1f} MiB; per micro-batch {in_flight / 2**20:.2f} in "
    detail += f"flight, {waiting / 2**20:.2f} waiting; time at unit costs {simulate(schedule, Costs()).makespan:.0f} "
    detail += f"of {simulate(one_f_one_b(4, 8), Costs()).makespan:.0f}"
    return harness.Figure(kept / fused, detail)


def stage_bytes(checkpoints: bool) -> tuple[int, int]:
    """Bytes of one micro-batch of the first stage (8 blocks over 4) before p1, and between p1 and p2."""
    torch.manual_seed(0)
    config = SparseTransformerConfig(
        vocab_size=512, d_model=128, num_layers=8, d_ff=512, expert_layers=(1, 3, 5, 7), recompute=checkpoints
    )
    stage = TransformerStage(SparseTransformer(config), 0, 4)
    marked: list[torch.Tensor] = []
    for block in stage.blocks.values():
        block.register_forward_hook(lambda module, arguments, output: marked.append(output[0]))
    output = stage(torch.randint(512, (4, 128)))[0]
    hidden = output.numel() * 4 * len(stage.blocks) if checkpoints else 0
    in_flight = saved_bytes([output]) + hidden
    split = SplitBackward([output], [], checkpoints=list(marked) if checkpoints else ())
    split.input_gradients([torch.ones_like(output)])
    return in_flight, split.waiting_bytes + hidden


if __name__ == "__main__":
    harness.main()
