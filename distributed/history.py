"""Historical rows: how they are kept, when they are taken again, and how old they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from gossamer.distributed.channel import Channel
from gossamer.distributed.layout import Part
from gossamer.graph import CSR, dequantize_rows, quantize_rows
from gossamer.graph.dropout import stream_seed

__all__ = ["HISTORY_DTYPES", "HistoryKeeper", "HistoryPolicy", "Snapshot", "Staleness"]

HISTORY_DTYPES = ("full", "bfloat16", "int8")


@dataclass(frozen=True)
class HistoryPolicy:
    """How the history of one stage is kept; the fields are those of PipelineConfig.

    Attributes:
        period: epochs between two snapshots; 1 keeps none: history is what the last epoch left.
        distance: relative distance of a chunk's mean rows from its snapshot that makes a new one due, or None.
        dtype: one of HISTORY_DTYPES.
        seed: of the rounding to int8.
        first_site: how many aggregations the stages before have, so that rounding does not depend on stages.
    """

    period: int = 23
    distance: float | None = None
    dtype: str = "full"
    seed: int = 0
    first_site: int = 0

    def new(self, like: Tensor, num_rows: int, site: int) -> Snapshot:
        """The zero snapshot of the stage's aggregation number ``site``."""
        return Snapshot(like, num_rows, self.dtype, stream_seed(self.seed, self.first_site + site))


class Snapshot:
    """[num_rows, F] in the dtype of ``like``, in bfloat16 (to nearest), or in int8 with a scale per row (unbiased).

    Args:
        like: [any, F]: width, dtype and device of what is kept.
        num_rows: of the snapshot, all zero at first.
        dtype: one of HISTORY_DTYPES.
        seed: of the rounding to int8.
    """

    def __init__(self, like: Tensor, num_rows: int, dtype: str, seed: int) -> None:
        self._like, self._seed = like[:0].detach(), seed
        stored = {"full": like.dtype, "bfloat16": torch.bfloat16, "int8": torch.uint8}[dtype]
        self._values = like.new_zeros(num_rows, *like.shape[1:], dtype=stored)
        self._scale = like.new_zeros(num_rows, dtype=torch.float32) if dtype == "int8" else None

    @property
    def num_bytes(self) -> int:
        """What it holds in memory."""
        return sum(t.numel() * t.element_size() for t in self.state())

    def write(self, rows: Tensor, begin: int, step: int) -> None:
        """Replace the rows from ``begin`` on; another ``step`` rounds with other random numbers."""
        place = slice(begin, begin + len(rows))
        if self._scale is None:
            self._values[place] = rows
            return
        codes, self._scale[place] = quantize_rows(rows.flatten(1), 8, seed=self._seed, step=step)
        self._values[place] = codes.view(self._values[place].shape)

    def rows(self) -> Tensor:
        """[num_rows, F] as numbers of the original dtype (the kept tensor itself where it has that dtype)."""
        if self._scale is None:
            return self._values.to(self._like.dtype)
        codes = self._values.flatten(1)
        rows = dequantize_rows(codes, self._scale, codes.shape[1], 8, dtype=self._like.dtype)
        return rows.view(self._values.shape)

    def state(self) -> list[Tensor]:
        """The tensors behind it."""
        return [self._values] if self._scale is None else [self._values, self._scale]


@dataclass(frozen=True)
class Staleness:
    """What the aggregations of one epoch read from other chunks: rows per aggregation, over all ways.

    A row that several rows of a chunk read counts once for this chunk.

    Attributes:
        current: rows that this epoch had computed already.
        historical: age in epochs -> rows; age 1 is the last epoch, age 0 the exact pass before the first epoch.
        empty: rows that were zero because no snapshot had been taken.
    """

    current: int = 0
    historical: dict[int, int] = field(default_factory=dict)
    empty: int = 0

    @property
    def mean_age(self) -> float:
        """Mean age of the historical rows in epochs; 0 where there are none."""
        count = sum(self.historical.values())
        return sum(age * rows for age, rows in self.historical.items()) / max(count, 1)


class HistoricalSite(Protocol):
    """The rows of one aggregation."""

    inputs: Tensor
    history: Snapshot | None


class HistoryKeeper:
    """Which chunks have which history on one stage: it restores, refreshes and counts.

    Args:
        part: the nodes of the way.
        channel: to the other workers, who must agree on what is due.
        policy: when.
        graphs: along whose edges rows are read.

    Attributes:
        taken: epoch of the historical rows of every chunk; None before the first snapshot.
    """

    def __init__(self, part: Part, channel: Channel, policy: HistoryPolicy, graphs: list[CSR]) -> None:
        self.taken: list[int | None] = [None] * part.num_chunks
        self._part, self._channel, self._policy, self._graphs = part, channel, policy, graphs
        self._epoch, self._order = 0, list(range(part.num_chunks))

    def begin_epoch(self, epoch: int, order: list[int], sites: Sequence[HistoricalSite]) -> None:
        """Put the historical rows where chunks read them; the chunks will pass in this order."""
        self._epoch, self._order = epoch, order
        for site in sites:
            if site.history is not None:
                site.inputs.copy_(site.history.rows())

    def end_epoch(self, sites: Sequence[HistoricalSite]) -> None:
        """Take the snapshots that are due."""
        for chunk in self._due(sites):
            self._take(chunk, sites)

    def take_all(self, sites: Sequence[HistoricalSite]) -> None:
        """Make the rows of all chunks, as they are now, the historical ones."""
        for chunk in range(self._part.num_chunks):
            self._take(chunk, sites)

    def num_reads(self) -> tuple[int, list[int]]:
        """Rows that chunks of this way read from other chunks in this epoch: those that the epoch had computed
        already, and for every chunk those of it that were historical."""
        place = torch.empty(len(self._order), dtype=torch.int64)
        place[self._order] = torch.arange(len(self._order))
        current = self._reads[place[:, None] > place].sum()
        return int(current), (self._reads * (place[:, None] < place)).sum(dim=0).tolist()

    def staleness(self, current: int, historical: Sequence[int]) -> Staleness:
        """Of this epoch, from what ``num_reads`` gives, summed over the ways."""
        ages: dict[int, int] = {}
        empty = 0
        for taken, rows in zip(self.taken, historical):
            if taken is None:
                empty += rows
            elif rows:
                ages[self._epoch - taken] = ages.get(self._epoch - taken, 0) + rows
        return Staleness(current, dict(sorted(ages.items())), empty)

    def taken_epochs(self) -> Tensor:
        """[num_chunks]: ``taken``, for a checkpoint."""
        return torch.tensor([-1 if taken is None else taken for taken in self.taken])

    def load_taken_epochs(self, epochs: Tensor) -> None:
        """Restore what ``taken_epochs`` gave."""
        self.taken = [None if taken < 0 else taken for taken in epochs.tolist()]

    @cached_property
    def _reads(self) -> Tensor:
        """[num_chunks, num_chunks]: how many rows of the second the first reads."""
        num_chunks, chunk = self._part.num_chunks, self._part.chunk
        counts = chunk.new_zeros(num_chunks**2)
        for graph in self._graphs:
            pairs = (chunk[graph._rows] * len(chunk) + graph.col.long()).unique()
            cells = (pairs // len(chunk)) * num_chunks + chunk[pairs % len(chunk)]
            counts += cells.bincount(minlength=num_chunks**2)
        return counts.view(num_chunks, num_chunks).cpu()

    def _due(self, sites: Sequence[HistoricalSite]) -> list[int]:
        """Chunks whose snapshot is due at the end of this epoch."""
        if (self._epoch + 1) % self._policy.period == 0:
            return list(range(self._part.num_chunks))
        if self._policy.distance is None:
            return []
        return [chunk for chunk, distance in enumerate(self._distances(sites)) if distance > self._policy.distance]

    def _distances(self, sites: Sequence[HistoricalSite]) -> list[float]:
        """|current - historical| / |current| of the mean rows of every chunk, over all aggregations of all stages: in
        the mean over a chunk the noise of dropout cancels."""
        changes, sizes = [torch.zeros(self._part.num_chunks, dtype=torch.float64) for _ in range(2)]
        for site in sites:
            assert site.history is not None
            past = site.history.rows()
            for chunk, (a, b) in enumerate(pairwise(self._part.bounds)):
                mean = site.inputs[a:b].mean(0)
                changes[chunk] += (mean - past[a:b].mean(0)).square().sum().item()
                sizes[chunk] += mean.square().sum().item()
        sums = self._channel.sum_over_workers([*changes.tolist(), *sizes.tolist()])
        change, size = torch.tensor(sums, dtype=torch.float64).view(2, -1)
        return (change / size.clamp(min=1e-30)).sqrt().tolist()

    def _take(self, chunk: int, sites: Sequence[HistoricalSite]) -> None:
        """Keep the rows of a chunk, and those of its halo, as of this epoch."""
        cells = self._part.halo_bounds[chunk]
        self.taken[chunk] = self._epoch
        for piece, (a, b) in enumerate(
            [(self._part.bounds[chunk], self._part.bounds[chunk + 1]), (cells[0], cells[-1])]
        ):
            step = (self._epoch * self._part.num_chunks + chunk) * 2 + piece
            for site in sites:
                if site.history is not None and a < b:
                    site.history.write(site.inputs[a:b], a, step)
