"""Decoding: decode_attention against the floor of the machine and against the ways to write it in torch.

The floor of a call is max(bytes / read bandwidth, FLOPs / peak). Both limits are measured in turns with the call
itself, by a sum over 128 MiB and by a matrix product: a disturbance of the machine then hits all of them alike. The
peak is that of the faster of two products, in the type of the call and in float32: where the processor has no
instructions for bfloat16, torch multiplies it at 1 GFLOP/s, which is no peak.

Reading. Several heads of a leaf are computed together. With four and more query rows the values are fetched while the
scores are computed, and the keys of the next leaf while the values are added, in the order of addresses. With one or
two rows, where a key is read by whole vectors, walking the positions in order without any fetching is faster (1.95 ->
1.5 times the bytes); with four rows it is slower (1.9 -> 2.7 times). Copies of these access patterns without arithmetic
reach 70 to 80 % of the bandwidth of a sum in 4 KB pages and all of it in 2 MB pages: the walks of the page table are
what keeps GQA from its goal.

Arithmetic. Of 1.67 ms for MQA (a sampling profile) 0.87 were products with the values, of which 0.36 packed them into
pairs of positions while they came from memory, 0.63 scores, 0.15 the softmax; the two products alone would take 1.0 at
the peak. Values packed for two vectors of dims at a time, which stay in the first cache, and fetched a phase ahead took
MQA from 54 to 58 .. 60 % and K = V from 68 to 73 %, and 4 queries over 1 from 2.0 to 1.56; queries are packed by
transposing registers, and the first leaf of a sequence is its state. What is left for the group of 16 with D 64 and for
windows of 128 is one load for every product of pairs, and a cold call.

AVX2. A bfloat16 row is multiplied as it lies: its even elements are floats after a shift and its odd ones after a mask,
and outputs stay split into even and odd dims until a sequence ends. With several kv heads the rows of one head lie a
power of two apart and meet in a few sets of the caches: in a profile of groups of 4 60 % of the value product waited
for its loads, which is why up to 8 query rows take the positions in order, 16 values at a time.

Groups of 4 on AVX2: few rows fetch 32 KB ahead of what they read, with 2 to 4 rows a vector of sums runs along the key,
which halves the instructions of a broadcast for every two words, and int8 and half rows are converted where they are
multiplied: 34 -> 22 ms for bfloat16 and 64 -> 23 for int8, in a loop of its own on a loaded machine. int8 then takes as
long as bfloat16, for the two products of 4 rows in cache take more than its 8.5 ms of reading; products of 16 bits
(vpmaddwd) were not tried. Four query positions of groups of 4 are bound by arithmetic (2.1 GFLOP, 23 to 32 ms at the
peak), those of single heads by memory.

What keeps them from 85 % of the read bandwidth, in loops of their own (both caches of groups of 4, 134 MB, 14.0 ms to
read on a quiet machine in 4 KB pages). Reading 256 bytes of every 2 KB takes 16 positions at a time 82 % of the
bandwidth, and all of it with one prefetch in the order of memory. The products alone take 5.1 to 5.8 ms (scores) and
4.5 (values) on rows in the first cache. From memory, with one prefetch 8 to 32 KB ahead, scores run at 81 to 86 % of
the bandwidth, values at 86 to 97 % in blocks of 16 positions and at 47 to 63 % in blocks of 32; the two phases leaf by
leaf take 15.5 ms. The operator, which reads and fetches in this order, takes 20.5 ms at least, and 14.4 where its rows
are in the second cache. A profile has a fifth of the time at the first line of a new row, which for every second row
lies in a new page. Tried without a gain that shows in 3 turns: heads that lie side by side fetched as one run of lines;
a fetch after every key and every second value instead of 16 lines for 4 keys and 4 for 8 values; scores of the heads
apart in the sets of the first cache; a lead of 16 KB. Two sums for every row and key took groups of 2 from 51 .. 56 to
59 .. 63 % of the bandwidth (23.3 -> 20.9 ms, on a loaded machine); groups of 4 and int8 stayed where they were.

Shared prefixes. Sequences take turns on a pass of a leaf whose rows are in the second cache. With AVX-512 2 cost 1.28
times one and 8 three times; with AVX2 1.8 and 5.3 times, for the products bound one sequence already.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.sparse_nn import decode_attention

import harness
from timing import middle_half

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))  # the oracle and its random cases

CAPABILITY = "Decoding"
MATRIX, READ = 768, 1 << 25  # side of the product, floats of the sum


@dataclass(frozen=True)
class Shape:
    """One decoding step: sizes, dtype, and whether values are the keys."""

    batch: int
    heads: int
    kv_heads: int
    dim: int
    length: int
    dtype: torch.dtype = torch.bfloat16
    shared: bool = False
    num_queries: int = 1

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        q, k, v = (
            torch.randn(self.batch, positions, heads, self.dim, generator=generator).to(self.dtype)
            for positions, heads in (
                (self.num_queries, self.heads), (self.length, self.kv_heads), (self.length, self.kv_heads)
            )
        )  # fmt: skip
        return q, k, k if self.shared else v

    def bytes(self, positions: int) -> int:
        rows = self.batch * positions * self.kv_heads
        return rows * self.dim * self.dtype.itemsize * (1 if self.shared else 2)

    def flops(self, positions: int) -> int:
        return 4 * self.num_queries * self.batch * self.heads * self.dim * positions


MQA = Shape(1, 32, 1, 128, 32768)
GQA = Shape(8, 32, 8, 128, 4096)
MHA = Shape(8, 8, 8, 128, 4096)
SHARED = Shape(1, 64, 1, 512, 4096, shared=True)
SMALL = Shape(1, 32, 8, 128, 512)


def float32(shape: Shape) -> Shape:
    return Shape(shape.batch, shape.heads, shape.kv_heads, shape.dim, shape.length, torch.float32)


def grouped(shape: Shape, q: Tensor) -> Tensor:
    """Query heads of a group as query rows, [B, Hkv, G, D]."""
    return q.view(shape.batch, shape.kv_heads, -1, shape.dim)


def rewrites(shape: Shape, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The two honest ways to write it in torch: the group folded into the rows of SDPA, and two products."""
    rows, keys, values = grouped(shape, q), k.transpose(1, 2), v.transpose(1, 2)
    return {
        "fold": lambda: F.scaled_dot_product_attention(rows, keys, values),
        "matmul": lambda: torch.softmax(rows @ keys.transpose(2, 3) * shape.dim**-0.5, -1) @ values,
    }


def limits(dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """What the machine can do: a matrix product, in dtype or in float32 if that is faster, and a sum."""
    matrices, block = [torch.randn(MATRIX, MATRIX).to(t) for t in (torch.float32, dtype)], torch.ones(READ)
    matrix = min(matrices, key=lambda m: min(harness.seconds(lambda: m @ m) for _ in range(3)))
    return {"product": lambda: matrix @ matrix, "read": lambda: block.sum()}


def fraction_of_floor(shape: Shape, *, bound: str = "both", **options: Any) -> harness.Figure:
    """Floor over time in percent; ``bound`` names the limit that counts."""
    q, k, v = shape.tensors()
    times = harness.compare(
        {"ours": lambda: decode_attention(q, k, v, **options), **limits(shape.dtype)}, max_seconds=12
    )
    positions = min(shape.length, options.get("window") or shape.length)
    compute = [shape.flops(positions) / (2 * MATRIX**3) * r for r in times.ratios("product", "ours")]
    memory = [shape.bytes(positions) / (4 * READ) * r for r in times.ratios("read", "ours")]
    parts = {"compute": compute, "memory": memory, "both": [max(pair) for pair in zip(compute, memory)]}
    ranked = sorted(parts[bound])
    low, high = middle_half(ranked)
    peak, read = 2 * MATRIX**3 / times["product"].median / 1e9, 4 * READ / times["read"].median / 1e9
    detail = (
        f"{times['ours'].median * 1e3:.3g} ms, {100 * low:.0f} .. {100 * high:.0f}; {peak:.0f} GFLOP/s, {read:.0f} GB/s"
    )
    return harness.Figure(100 * ranked[len(ranked) // 2], detail)


def against_rewrites(shape: Shape, names: tuple[str, ...] = ("fold", "matmul"), **options: Any) -> harness.Figure:
    """Time of the fastest rewrite over ours."""
    q, k, v = shape.tensors()
    rivals = {name: call for name, call in rewrites(shape, q, k, v).items() if name in names}
    times = harness.compare({"ours": lambda: decode_attention(q, k, v, **options), **rivals}, max_seconds=12)
    best = min(rivals, key=lambda name: times[name].median)
    return times.figure(best, "ours", best)


@harness.goal(CAPABILITY, "MQA bf16 (1, 32, 1, 128, 32768), of the peak", at_least=75, unit="%")
def mqa_peak() -> harness.Figure:
    return fraction_of_floor(MQA, bound="compute")


@harness.goal(CAPABILITY, "MQA bf16 (1, 32, 1, 128, 32768) against the best torch rewrite", at_least=2.6)
def mqa_rewrites() -> harness.Figure:
    return against_rewrites(MQA)


@harness.goal(CAPABILITY, "MQA bf16 (1, 32, 1, 128, 32768) against enable_gqa", at_least=75)
def mqa_enable_gqa() -> harness.Figure:
    q, k, v = MQA.tensors()
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    stock = {"enable_gqa": lambda: F.scaled_dot_product_attention(*heads, enable_gqa=True)}
    times = harness.compare({"ours": lambda: decode_attention(q, k, v), **stock}, repeats=5, max_seconds=12)
    return times.figure("enable_gqa", "ours")


@harness.goal(CAPABILITY, "group of 16, D 64 (1, 16, 1, 64, 32768), of the floor", at_least=75, unit="%")
def group16_peak() -> harness.Figure:
    return fraction_of_floor(Shape(1, 16, 1, 64, 32768))


@harness.goal(CAPABILITY, "GQA bf16 (8, 32, 8, 128, 4096), of the read bandwidth", at_least=85, unit="%")
def gqa_bandwidth() -> harness.Figure:
    return fraction_of_floor(GQA, bound="memory")


@harness.goal(CAPABILITY, "GQA bf16 (8, 32, 8, 128, 4096) against the best torch rewrite", at_least=3)
def gqa_rewrites() -> harness.Figure:
    return against_rewrites(GQA)


@harness.goal(CAPABILITY, "MQA fp32 (1, 32, 1, 128, 32768), of the floor", at_least=70, unit="%")
def mqa_fp32() -> harness.Figure:
    return fraction_of_floor(float32(MQA))


@harness.goal(CAPABILITY, "GQA fp32 (8, 32, 8, 128, 4096), of the floor", at_least=70, unit="%")
def gqa_fp32() -> harness.Figure:
    return fraction_of_floor(float32(GQA))


@harness.goal(CAPABILITY, "MQA fp32 (1, 32, 1, 128, 32768) against fold", at_least=1.5)
def mqa_fp32_fold() -> harness.Figure:
    return against_rewrites(float32(MQA), ("fold",))


@harness.goal(CAPABILITY, "GQA fp32 (8, 32, 8, 128, 4096) against fold", at_least=1.5)
def gqa_fp32_fold() -> harness.Figure:
    return against_rewrites(float32(GQA), ("fold",))


def against_onnxruntime(shape: Shape, *, int8: bool = False) -> harness.Figure:
    """Time of onnxruntime over ours, float32 queries; it also writes the new position into the cache, in place."""
    try:
        from onnx_attention import GroupQueryAttention
    except ImportError:
        raise harness.NotHere("needs onnxruntime") from None
    q, k, v = shape.tensors()
    options: dict[str, Tensor] = {}
    scales = [x.abs().max().div(127).view(1) for x in (k, v)]  # onnxruntime has one for all positions
    if int8:
        k, v = ((x / s).round().to(torch.int8) for x, s in zip((k, v), scales))
        options = {f"{name}_scale": s.expand(k.shape[:3]).contiguous() for name, s in zip("kv", scales)}
    theirs = GroupQueryAttention(q, k, v, scales if int8 else None)
    torch.testing.assert_close(theirs(), decode_attention(q, k, v, **options), rtol=1e-3, atol=1e-3)
    calls = {"ours": lambda: decode_attention(q, k, v, **options), "onnxruntime": theirs}
    return harness.compare(calls, max_seconds=12).figure("onnxruntime", "ours")


@harness.goal(CAPABILITY, "MQA fp32 (1, 32, 1, 128, 32768) against onnxruntime's GroupQueryAttention", at_least=5)
def mqa_onnxruntime() -> harness.Figure:
    return against_onnxruntime(float32(MQA))


@harness.goal(CAPABILITY, "GQA fp32 (8, 32, 8, 128, 4096) against onnxruntime's GroupQueryAttention", at_least=1.8)
def gqa_onnxruntime() -> harness.Figure:
    return against_onnxruntime(float32(GQA))


@harness.goal(CAPABILITY, "int8 cache, GQA (8, 32, 8, 128, 4096), against onnxruntime's of int8", at_least=1)
def int8_onnxruntime() -> harness.Figure:
    return against_onnxruntime(float32(GQA), int8=True)


def against_zentorch(shape: Shape) -> harness.Figure:
    """Time of zentorch's attention over ours, measured in a process of its own."""
    if importlib.util.find_spec("zentorch") is None:
        raise harness.NotHere(
            "needs zentorch: pip install --no-deps zentorch deprecated wrapt, of the version of torch"
        )
    sizes = (shape.batch, shape.heads, shape.kv_heads, shape.dim, shape.length)
    script = Path(__file__).with_name("zentorch_attention.py")
    done = subprocess.run([sys.executable, str(script), *map(str, sizes)], capture_output=True, text=True, check=True)
    return harness.Figure(**json.loads(done.stdout.splitlines()[-1]))


@harness.goal(CAPABILITY, "MQA bf16 (1, 32, 1, 128, 32768) against zentorch", at_least=15)
def mqa_zentorch() -> harness.Figure:
    return against_zentorch(MQA)


@harness.goal(CAPABILITY, "GQA bf16 (8, 32, 8, 128, 4096) against zentorch", at_least=5)
def gqa_zentorch() -> harness.Figure:
    return against_zentorch(GQA)


@harness.goal(CAPABILITY, "K = V, 64 heads, D 512, sinks, 4096 positions, of the peak", at_least=75, unit="%")
def shared_peak() -> harness.Figure:
    return fraction_of_floor(SHARED, bound="compute", sinks=torch.zeros(64))


@harness.goal(CAPABILITY, "K = V, 64 heads, D 512, sinks, window 128, of the peak", at_least=75, unit="%")
def shared_window_peak() -> harness.Figure:
    return fraction_of_floor(SHARED, bound="compute", sinks=torch.zeros(64), window=128)


@harness.goal(CAPABILITY, "K = V, 64 heads, D 512, sinks, 4096 positions, against fold without sinks", at_least=2.4)
def shared_fold() -> harness.Figure:
    return against_rewrites(SHARED, ("fold",), sinks=torch.zeros(64))


def four_over_one(shape: Shape) -> harness.Figure:
    """Time of 4 query positions over that of 1."""
    q, k, v = shape.tensors()
    many = q.repeat(1, 4, 1, 1)
    times = harness.compare({"1": lambda: decode_attention(q, k, v), "4": lambda: decode_attention(many, k, v)})
    return times.figure("4", "1")


@harness.goal(CAPABILITY, "4 query positions over 1, GQA bf16 (8, 32, 8, 128, 4096)", at_most=1.15)
def four_queries() -> harness.Figure:
    return four_over_one(GQA)


@harness.goal(CAPABILITY, "4 query positions over 1, MHA bf16 (8, 8, 8, 128, 4096)", at_most=1.15)
def four_queries_of_one_head() -> harness.Figure:
    return four_over_one(MHA)


def shared_prefix(sequences: int, length: int) -> harness.Figure:
    """Time over the floor with the prefix counted once, for sequences whose block tables are equal."""
    one = Shape(1, 32, 8, 128, length)
    q, (_, k, v) = Shape(sequences, 32, 8, 128, 1).tensors()[0], one.tensors()
    pages = [x.view(-1, 64, 8, 128) for x in (k, v)]
    table = torch.arange(length // 64).expand(sequences, -1).contiguous()
    times = harness.compare(
        {
            "ours": lambda: decode_attention(q, *pages, block_table=table),
            "one sequence": lambda: decode_attention(q[:1], *pages, block_table=table[:1]),
            **limits(one.dtype),
        },
        max_seconds=12,
    )
    compute = [sequences * one.flops(length) / (2 * MATRIX**3) / r for r in times.ratios("ours", "product")]
    memory = [one.bytes(length) / (4 * READ) / r for r in times.ratios("ours", "read")]
    over = sorted(1 / max(pair) for pair in zip(compute, memory))
    low, high = middle_half(over)
    detail = f"{low:.2f} .. {high:.2f}; {times.ratio('ours', 'one sequence'):.2f} times one sequence"
    return harness.Figure(over[len(over) // 2], detail)


@harness.goal(CAPABILITY, "prefix of 16384 shared by 2 sequences, GQA (32, 8, 128), over its bytes", at_most=1.2)
def prefix_of_two() -> harness.Figure:
    return shared_prefix(2, 16384)


@harness.goal(CAPABILITY, "prefix of 8192 shared by 8 sequences, GQA (32, 8, 128), over its floor", at_most=1.2)
def prefix_of_eight() -> harness.Figure:
    return shared_prefix(8, 8192)


@harness.goal(CAPABILITY, "int8 cache against bf16, GQA (8, 32, 8, 128, 4096)", at_least=1.7)
def int8_cache() -> harness.Figure:
    q, k, v = GQA.tensors()
    scales = [x.abs().amax(-1).float() / 127 for x in (k, v)]
    ints = [(x / s[..., None]).round().to(torch.int8) for x, s in zip((k, v), scales)]
    calls = {
        "int8": lambda: decode_attention(q, *ints, k_scale=scales[0], v_scale=scales[1]),
        "bf16": lambda: decode_attention(q, k, v),
    }
    return harness.compare(calls).figure("bf16", "int8")


@harness.goal(CAPABILITY, "MQA bf16 (1, 32, 1, 128, 32768) against Flex attention", at_least=60, slow=True)
def mqa_flex() -> harness.Figure:
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = MQA.tensors()
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    flex = torch.compile(flex_attention)
    with torch.no_grad():
        calls = {"ours": lambda: decode_attention(q, k, v), "Flex": lambda: flex(*heads, enable_gqa=True)}
        times = harness.compare(calls, repeats=5, max_seconds=12)
    return times.figure("Flex", "ours")


@harness.goal(CAPABILITY, "5000 random cases: how many miss the oracle", at_most=0, unit="", slow=True)
def random_cases() -> harness.Figure:
    from test_sparse_nn_decode_attention import assert_matches, random_case

    missed = []
    for seed in range(5000):
        q, k, v, options = random_case(seed)
        try:
            assert_matches(q, k, v, **options)
        except AssertionError:
            missed.append(seed)
    return harness.Figure(len(missed), f"seeds {missed[:10]}" if missed else "seeds 0 .. 4999")


@harness.goal(CAPABILITY, "small cache (1, 32, 8, 128, 512) against the best torch rewrite", at_least=1)
def small_cache() -> harness.Figure:
    return against_rewrites(SMALL)


@harness.goal(CAPABILITY, "two threads over one, MQA bf16 (1, 32, 1, 128, 32768)", at_least=1.8, threads=2)
def two_threads() -> harness.Figure:
    q, k, v = MQA.tensors()

    def with_threads(count: int) -> Callable[[], None]:
        def call() -> None:
            torch.set_num_threads(count)
            decode_attention(q, k, v)

        return call

    return harness.compare({"one": with_threads(1), "two": with_threads(2)}, wall=True).figure("one", "two")


if __name__ == "__main__":
    harness.main()
