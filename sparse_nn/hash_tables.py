"""Hash tables: which experts a token id goes to, built before training and fixed from then on.

A table is an int32 tensor [vocab_size, k] whose rows hold k different experts.
"""

from __future__ import annotations

import heapq
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer._files import read_sealed, write_sealed
from gossamer.sparse_nn._checks import require, require_ids, require_num_experts
from gossamer.sparse_nn._random import random_below, random_uniform

__all__ = [
    "LoadBalance", "balanced_table", "clustered_table", "count_tokens", "dispersed_table", "load_balance", "load_table",
    "multi_hash_table", "random_table", "save_table",
]  # fmt: skip

_MAGIC = b"gossamer table 1"
_HEADER = struct.Struct("<qqq")  # of a sealed file: vocab_size, k, num_experts; then the table
MAX_ENTRIES = 1 << 40  # of a table: more than any memory holds, and no product of sizes overflows


@typed
def count_tokens(token_ids: Tensor | Iterable[Tensor], vocab_size: int) -> Tensor:
    """How often each id occurs: what ``balanced_table`` and ``dispersed_table`` are built from.

    Args:
        token_ids: int32 or int64, any shape, in [0, vocab_size); or a stream of such batches, read once.
        vocab_size: number of token ids.

    Returns:
        [vocab_size], int64.
    """
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for batch in [token_ids] if isinstance(token_ids, Tensor) else token_ids:
        require_ids(batch, "count_tokens", "token_ids")
        fits = batch.numel() == 0 or (int(batch.min()) >= 0 and int(batch.max()) < vocab_size)
        require(fits, "count_tokens", "token_ids", f"in [0, {vocab_size})", fits or f"[{batch.min()}, {batch.max()}]")
        counts += batch.flatten().bincount(minlength=vocab_size).cpu()
    return counts


@typed
def random_table(vocab_size: int, num_experts: int, k: int = 1, *, seed: int) -> Tensor:
    """table[v] = k different experts, every k-subset equally likely.

    Args:
        vocab_size: number of token ids, at least 1.
        num_experts: number of experts.
        k: experts per token, in [1, num_experts].
        seed: equal seeds give equal tables; a row depends on (seed, token id) alone.

    Returns:
        [vocab_size, k], int32.

    Source: Roller et al. 2021, Hash Layers, section 3.1; subsets by Floyd's algorithm (Bentley and Floyd 1987).
    """
    _check_sizes("random_table", vocab_size, num_experts, k)
    table = torch.empty(vocab_size, k, dtype=torch.int64)
    for j in range(k):
        last = num_experts - k + j
        draw = random_below(last + 1, vocab_size, seed=seed, stream=j)
        taken = (table[:, :j] == draw[:, None]).any(1)
        table[:, j] = torch.where(taken, last, draw)
    return table.int()


@typed
def balanced_table(token_counts: Tensor, num_experts: int, k: int = 1, *, seed: int) -> Tensor:
    """Tokens by falling count, each to the k experts with the least load so far.

    Tokens never counted carry no load; they are dealt evenly, so that none of them overwhelms an expert later.

    Args:
        token_counts: [vocab_size], how often each token occurs (``count_tokens``), not negative.
        num_experts: number of experts.
        k: experts per token, in [1, num_experts].
        seed: decides between experts that are equally loaded.

    Returns:
        [vocab_size, k], int32.

    Source: Roller et al. 2021, section 3.1, balanced assignment; greedy rule of Graham 1969 (longest first).
    """
    counts = _checked_counts("balanced_table", token_counts)
    vocab_size = counts.numel()
    _check_sizes("balanced_table", vocab_size, num_experts, k)
    ties = random_below(1 << 31, num_experts, seed=seed).tolist()
    heap = [(0.0, 0, ties[e], e) for e in range(num_experts)]  # load, tokens held, tie-breaker, expert
    table = torch.empty(vocab_size, k, dtype=torch.int32)
    order = counts.argsort(descending=True, stable=True)
    num_seen = int((counts > 0).sum())
    rows = _deal(heap, counts[order[:num_seen]].tolist(), k)
    heap = [(0.0, held, tie, e) for _, held, tie, e in heap]
    heapq.heapify(heap)
    rows += _deal(heap, [0.0] * (vocab_size - num_seen), k)
    table[order] = torch.tensor(rows, dtype=torch.int32).view(vocab_size, k)
    return table


@typed
def clustered_table(embeddings: Tensor, num_experts: int, *, seed: int, num_iterations: int = 20) -> Tensor:
    """table[v] = cluster of embedding v: similar tokens share an expert (k-means).

    Args:
        embeddings: [vocab_size, dim], floating point, of a trained baseline; vocab_size at least num_experts.
        num_experts: number of clusters.
        seed: of the first centres.
        num_iterations: rounds of Lloyd's algorithm.

    Returns:
        [vocab_size, 1], int32.

    Source: Roller et al. 2021, section 3.1, clustered hashes; first centres of Arthur and Vassilvitskii 2007.
    """
    require(embeddings.dim() == 2, "clustered_table", "embeddings", "[vocab_size, dim]", tuple(embeddings.shape))
    vocab_size = embeddings.shape[0]
    _check_sizes("clustered_table", vocab_size, num_experts, 1)
    require(vocab_size >= num_experts, "clustered_table", "embeddings", f"at least {num_experts} rows", vocab_size)
    points = embeddings.detach().float()
    centres = _first_centres(points, num_experts, seed)
    for _ in range(num_iterations):
        cluster = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, cluster, points)
        size = cluster.bincount(minlength=num_experts)[:, None]
        centres = torch.where(size > 0, sums / size.clamp(min=1), centres)
    return torch.cdist(points, centres).argmin(1, keepdim=True).int()


@typed
def dispersed_table(embeddings: Tensor, token_counts: Tensor, num_experts: int, *, seed: int) -> Tensor:
    """Similar tokens to different experts: each cluster is dealt over all experts, most frequent tokens first.

    Args:
        embeddings: [vocab_size, dim], floating point.
        token_counts: [vocab_size], how often each token occurs (``count_tokens``).
        num_experts: number of experts, and of clusters.
        seed: of the clustering.

    Returns:
        [vocab_size, 1], int32.

    Source: Roller et al. 2021, section 3.1, dispersed hashes; the dealing starts at the least loaded expert.
    """
    counts = _checked_counts("dispersed_table", token_counts)
    require(counts.numel() == embeddings.shape[0], "dispersed_table", "token_counts",
            f"one per embedding ({embeddings.shape[0]})", counts.numel())  # fmt: skip
    cluster = clustered_table(embeddings, num_experts, seed=seed).flatten()
    table = torch.empty(counts.numel(), 1, dtype=torch.int32)
    load = torch.zeros(num_experts, dtype=torch.float64)
    for c in range(num_experts):
        members = (cluster == c).nonzero().flatten()
        members = members[counts[members].argsort(descending=True, stable=True)]
        experts = load.argsort(stable=True).repeat(len(members) // num_experts + 1)[: len(members)]
        table[members, 0] = experts.int()
        load.index_add_(0, experts, counts[members])
    return table


@typed
def multi_hash_table(vocab_size: int, num_experts: int, num_hashes: int, *, seed: int) -> Tensor:
    """table[v, m] = m * num_experts + hash_m(v): one of num_experts slices for each of num_hashes segments.

    A MultiHash layer of hidden width D is an ordinary expert layer with num_hashes * num_experts experts of width
    D / num_hashes and this table; a token meets one of num_experts ** num_hashes combinations at unchanged cost.

    Returns:
        [vocab_size, num_hashes], int32, in [0, num_hashes * num_experts).

    Source: Roller et al. 2021, section 3.2, MultiHash.
    """
    require(num_hashes >= 1, "multi_hash_table", "num_hashes", "at least 1", num_hashes)
    hashes = [random_table(vocab_size, num_experts, seed=seed + m) + m * num_experts for m in range(num_hashes)]
    return torch.cat(hashes, dim=1)


@typed
def save_table(path: str | os.PathLike, table: Tensor, num_experts: int) -> None:
    """Write a table (as int32) with the sizes it is valid for; the file appears whole or not at all."""
    _check_table("save_table", table, num_experts)
    write_sealed(path, _MAGIC, _HEADER.pack(*table.shape, num_experts) + table.cpu().numpy().astype("<i4").tobytes())


@typed
def load_table(path: str | os.PathLike, *, vocab_size: int, num_experts: int) -> Tensor:
    """Read a table, [vocab_size, k], int32; one made for another vocabulary or number of experts is refused.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is damaged or no file of ``save_table``, or its sizes are others than these.
    """
    content = read_sealed(path, _MAGIC, "load_table", "save_table")
    saved_vocab_size, k, saved_experts = _HEADER.unpack_from(content)
    for name, wanted, saved in (
        ("vocab_size", vocab_size, saved_vocab_size), ("num_experts", num_experts, saved_experts)
    ):  # fmt: skip
        require(saved == wanted, "load_table", name, f"{saved}, as the table was saved", wanted)
    entries = numpy.frombuffer(content, "<i4", vocab_size * k, _HEADER.size)
    return torch.from_numpy(entries.astype(numpy.int32)).view(vocab_size, k)


@dataclass(frozen=True)
class LoadBalance:
    """Load per expert on a stream of tokens: counts [num_experts] and their spread relative to the mean."""

    counts: Tensor
    max_over_mean: float
    min_over_mean: float
    cv: float

    def __str__(self) -> str:
        return f"max/mean {self.max_over_mean:.2f}, min/mean {self.min_over_mean:.2f}, CV {self.cv:.2f}"


@typed
def load_balance(table: Tensor, token_ids: Tensor, num_experts: int) -> LoadBalance:
    """How evenly a table spreads a stream of token ids over the experts; CV is std / mean."""
    require_ids(token_ids, "load_balance", "token_ids")
    _check_table("load_balance", table, num_experts)
    require(token_ids.numel() > 0, "load_balance", "token_ids", "at least one token", 0)
    low, high = int(token_ids.min()), int(token_ids.max())
    require(low >= 0 and high < len(table), "load_balance", "token_ids", f"in [0, {len(table)})", f"[{low}, {high}]")
    counts = table[token_ids.flatten()].flatten().bincount(minlength=num_experts)
    relative = counts.double() / counts.double().mean()
    return LoadBalance(counts, relative.max().item(), relative.min().item(), relative.std(correction=0).item())


def _first_centres(points: Tensor, num_centres: int, seed: int) -> Tensor:
    """k-means++: each centre is a point drawn with probability proportional to its squared distance to the others."""
    draws = random_uniform(num_centres, seed=seed).to(points.device)
    chosen = [int(draws[0] * len(points))]
    distance = torch.full_like(points[:, 0], float("inf")).double()
    for draw in draws[1:]:
        distance = torch.minimum(distance, (points - points[chosen[-1]]).double().square().sum(1))
        cumulated = distance.cumsum(0)
        chosen.append(min(int((cumulated <= draw * cumulated[-1]).sum()), len(points) - 1))
    return points[chosen]


def _deal(heap: list[tuple[float, int, int, int]], loads: list[float], k: int) -> list[list[int]]:
    """Give every load to the k least loaded experts of the heap, which is updated."""
    rows = []
    for load in loads:
        picked = [heapq.heappop(heap) for _ in range(k)]
        rows.append([expert for *_, expert in picked])
        for total, held, tie, expert in picked:
            heapq.heappush(heap, (total + load, held + 1, tie, expert))
    return rows


def _check_sizes(function: str, vocab_size: int, num_experts: int, k: int) -> None:
    require(1 <= vocab_size <= MAX_ENTRIES, function, "vocab_size", f"in [1, {MAX_ENTRIES}]", vocab_size)
    require_num_experts(function, num_experts)
    require(1 <= k <= num_experts, function, "k", f"in [1, {num_experts}]", k)
    require(k <= MAX_ENTRIES // vocab_size, function, "k", f"at most {MAX_ENTRIES} / vocab_size", k)


def _check_table(function: str, table: Tensor, num_experts: int) -> None:
    require(table.dim() == 2 and table.numel() > 0, function, "table", "[vocab_size, k], not empty", tuple(table.shape))
    if table.dtype is not torch.int16:
        require_ids(table, function, "table")
    require_num_experts(function, num_experts)
    low, high = int(table.min()), int(table.max())
    require(low >= 0 and high < num_experts, function, "table", f"in [0, {num_experts})", f"[{low}, {high}]")


def _checked_counts(function: str, token_counts: Tensor) -> Tensor:
    require(token_counts.dim() == 1, function, "token_counts", "[vocab_size]", tuple(token_counts.shape))
    counts = token_counts.double()
    require(bool((counts >= 0).all()), function, "token_counts", "not negative", "a negative or NaN count")
    return counts
