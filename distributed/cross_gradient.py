"""What a chunk leaves for the chunks before it in the order: the gradients that cross chunks.

In the backward pass a chunk pulls, through the transposed graph, the gradients of the rows that read it. Those of
chunks after it in the order are there; the chunks before it read its historical rows and come later. So a pair of
chunks counts for half of the orders, and a path through k + 1 different chunks for 1 of (k + 1)!.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["CROSS_CHUNK_GRADIENTS", "CrossChunkGradient", "cross_chunk_gradient"]


class CrossChunkGradient(Protocol):
    """One remedy.

    Attributes:
        keeps_last: whether the gradients of the last epoch are there at the start of an epoch.
        keeps_copy: whether they are needed beside the rows themselves.
    """

    keeps_last: bool
    keeps_copy: bool

    def leave(self, rows: Tensor, last: Tensor | None, position: int, num_chunks: int) -> None:
        """Change the output gradients ``rows`` of a chunk, after its own pull, into what earlier chunks pull.

        ``last`` are those of the last epoch, to be replaced; ``position`` is the chunk's in the order, from 0.
        """


class _Scaled:
    """The same factor for every chunk: 1, or 2 for the right expectation of one hop. A path of k hops has the
    expected weight factor^k / (k + 1)!. Source: GNNPipe (arXiv 2308.10087)."""

    keeps_last = keeps_copy = False

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def leave(self, rows: Tensor, last: Tensor | None, position: int, num_chunks: int) -> None:
        if self.factor != 1:
            rows.mul_(self.factor)


class _Positional:
    """num_chunks / position: a chunk at position j hands its gradient to j of the others, as a whole as much as if
    it were all of them. Where the last chunk of a path stands is uniform, where the one before it stands is uniform
    below that, and so on: with many chunks a path of any length through different chunks has expected weight 1."""

    keeps_last = keeps_copy = False

    def leave(self, rows: Tensor, last: Tensor | None, position: int, num_chunks: int) -> None:
        rows.mul_(num_chunks / max(position, 1))


class _Stale:
    """The gradients of the last epoch stay for the chunks that come before their readers; nothing is scaled."""

    keeps_last, keeps_copy = True, False

    def leave(self, rows: Tensor, last: Tensor | None, position: int, num_chunks: int) -> None:
        pass


class _Compensated:
    """2 G - G_last where the gradient is there, G_last where it is not: the mean over the orders is G for any G_last,
    and there is no variance where the gradients stand still. Then paths of every length have weight 1.

    The compensation of LMC (Shi et al. 2023, arXiv 2302.00924, section 4) as a control variate.
    """

    keeps_last = keeps_copy = True

    def leave(self, rows: Tensor, last: Tensor | None, position: int, num_chunks: int) -> None:
        assert last is not None
        now = rows.clone()
        rows.mul_(2).sub_(last)
        last.copy_(now)


_RULES: dict[str, CrossChunkGradient] = {
    "rescaled": _Scaled(2.0),
    "detached": _Scaled(1.0),
    "positional": _Positional(),
    "stale": _Stale(),
    "compensated": _Compensated(),
}
CROSS_CHUNK_GRADIENTS = tuple(_RULES)


def cross_chunk_gradient(name: str) -> CrossChunkGradient:
    """The rule of that name in PipelineConfig."""
    return _RULES[name]
