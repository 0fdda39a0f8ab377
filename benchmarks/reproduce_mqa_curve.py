"""Time per token of multi-head, grouped and multi-query attention over batch and length of the cache.

``python benchmarks/reproduce_mqa_curve.py`` measures and writes docs/reproductions/mqa_curve.md and its plot.

Source: Shazeer 2019, Fast Transformer Decoding (arXiv 1911.02150), table 2: eight heads of 128 dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.sparse_nn import decode_attention

from environment import environment_line
from reproduction import plot, write_page
from timing import compare, middle_half

NAME = "mqa_curve"
HEADS, DIM = 8, 128
KV_HEADS = {"MHA": 8, "GQA, 2 heads": 2, "MQA": 1}
BATCHES, LENGTHS = (1, 8, 64), (128, 512, 2048, 8192)
MOST_BYTES = 600 << 20  # of the largest cache


def caches(batch: int, length: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Keys and values of every variant, bfloat16."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: (batch, length, heads, DIM) for name, heads in KV_HEADS.items()}
    return {
        name: tuple(torch.randn(shape, generator=generator).bfloat16() for _ in range(2))
        for name, shape in shapes.items()
    }


def measure(batch: int, length: int) -> dict[str, Any]:
    """Microseconds per token of every variant, in turns, and how often MQA goes into MHA."""
    q = torch.randn(batch, 1, HEADS, DIM, generator=torch.Generator().manual_seed(1)).bfloat16()
    held = caches(batch, length)
    calls = {name: (lambda k=k, v=v: decode_attention(q, k, v)) for name, (k, v) in held.items()}
    times = compare(calls, repeats=15, max_seconds=6)
    point: dict[str, Any] = {name: 1e6 * times[name].median / batch for name in KV_HEADS}
    low, high = middle_half(times.ratios("MHA", "MQA"))
    return point | {"batch": batch, "length": length, "ratio": times.ratio("MHA", "MQA"), "low": low, "high": high}


def table(points: list[dict[str, Any]]) -> str:
    """One line per batch and length."""
    lines = [f"| batch | length | cache of MHA | {' | '.join(KV_HEADS)} | MHA / MQA |", "|---" * 7 + "|"]
    for p in points:
        size = f"{p['batch'] * p['length'] * HEADS * DIM * 4 / 2**20:.1f} MiB"
        values = " | ".join(f"{p[name]:.1f}" for name in KV_HEADS)
        ratio = f"{p['ratio']:.1f} ({p['low']:.1f} .. {p['high']:.1f})"
        lines.append(f"| {p['batch']} | {p['length']} | {size} | {values} | {ratio} |")
    return "\n".join(lines)


def draw(points: list[dict[str, Any]]) -> None:
    with plot(NAME, nrows=1, ncols=len(BATCHES), figsize=(11, 3.6), sharey=True) as (_, axes):
        for axis, batch in zip(axes, BATCHES):
            own = [p for p in points if p["batch"] == batch]
            for name, marker in zip(KV_HEADS, "os^"):
                axis.plot([p["length"] for p in own], [p[name] for p in own], marker=marker, label=name)
            axis.set(xscale="log", yscale="log", title=f"batch {batch}", xlabel="positions in the cache")
            axis.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("us per token and layer")
        axes[0].legend()


def page(points: list[dict[str, Any]]) -> str:
    largest = max(points, key=lambda p: p["ratio"])
    return f"""# Time per token of MHA, GQA and MQA

Multi-query attention keeps one key/value head for all query heads
([Shazeer 2019](https://arxiv.org/abs/1911.02150)): the FLOPs stay, the bytes of the cache fall by the number of heads.
The headline of the paper is 46 us per token for multi-head against 3.8 us for multi-query (table 2, TPUv2, six decoder
layers with encoder attention, length 128, 128 sequences per core).

Here: one layer's attention over its cache by `decode_attention`, {HEADS} query heads of {DIM} dimensions, bfloat16, one
thread. Microseconds per token (median of up to 15 turns), and MHA over MQA with the middle half of the turns.

{table(points)}

![time per token over the length of the cache]({NAME}.png)

The largest ratio is {largest["ratio"]:.1f} (batch {largest["batch"]}, {largest["length"]} positions). Bytes alone would
give {HEADS}; a cache of MQA that stays in the processor where that of MHA does not can give more. At short lengths and
batch 1 the call itself costs more than the cache.

What differs from the paper: no projections, no encoder attention, random caches, a CPU in place of a TPU; points whose
multi-head cache is above {MOST_BYTES >> 20} MiB are left out. The processor was shared with other work, so that ratios,
taken in turns, are firmer than times.

`python benchmarks/reproduce_mqa_curve.py` writes this page. {environment_line()}
"""


def main() -> None:
    torch.set_num_threads(1)
    sizes = [(b, s) for b in BATCHES for s in LENGTHS if b * s * HEADS * DIM * 4 <= MOST_BYTES]
    points = [measure(batch, length) for batch, length in sizes]
    draw(points)
    print(write_page(NAME, page(points)))


if __name__ == "__main__":
    main()
