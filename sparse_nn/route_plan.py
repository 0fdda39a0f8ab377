"""The route plan: which token goes to which expert, sorted by expert, built once and reused by every layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.sparse_nn._checks import require, require_ids, require_num_experts

__all__ = ["RoutePlan", "hash_plan"]


@dataclass(frozen=True, eq=False)
class RoutePlan:
    """Routes sorted by expert. Route t * k + j is the j-th choice of token t.

    Attributes:
        expert_ids: [num_tokens, k], int32 or int64; -1 where a token makes no use of a choice.
        order: [num_routes], int32, the routes by expert, in token order within an expert (unless first choices come
            first); dropped routes are absent.
        offsets: [num_experts + 1], int32, ascending; expert e owns order[offsets[e] : offsets[e + 1]].
        inverse: [num_tokens * k], int32, position of each route in ``order``, -1 where it was dropped.
    """

    expert_ids: Tensor
    order: Tensor
    offsets: Tensor
    inverse: Tensor

    @classmethod
    @typed
    def from_expert_ids(
        cls, expert_ids: Tensor, num_experts: int, *, capacity: int | None = None, first_choices_first: bool = False
    ) -> RoutePlan:
        """Sort routes by expert, stably, in one counting pass.

        Args:
            expert_ids: [num_tokens, k], int32 or int64, in [0, num_experts); with a capacity also -1, no route.
            num_experts: number of experts.
            capacity: routes an expert keeps, in token order; the rest is dropped. None keeps all (dropless), and only
                then does the plan need no wait for the device: the number of routes is known.
            first_choices_first: within an expert the first choices of all tokens come before the second ones, and so
                on, so that second choices are dropped first.

        Raises:
            ValueError: if an id is out of range (on CUDA: a device-side assertion).

        Source: counting sort by key, Knuth, The Art of Computer Programming 3, 5.2 algorithm D.
        """
        require_ids(expert_ids, "RoutePlan", "expert_ids")
        require(expert_ids.dim() == 2, "RoutePlan", "expert_ids", "[num_tokens, k]", tuple(expert_ids.shape))
        require_num_experts("RoutePlan", num_experts)
        require(capacity is None or capacity >= 0, "RoutePlan", "capacity", "at least 0", capacity)
        limit = -1 if capacity is None else capacity
        routes = expert_ids.T if first_choices_first else expert_ids
        with range_errors():
            order, offsets, inverse = torch.ops.gossamer.route_plan(routes.contiguous(), num_experts, limit)
        if capacity is not None:
            order = order[: int(offsets[-1])]
        if first_choices_first:  # from j * T + t to t * k + j
            num_tokens, k = expert_ids.shape
            order = order % max(num_tokens, 1) * k + order // max(num_tokens, 1)
            inverse = inverse.view(k, num_tokens).T.flatten()
        return cls(expert_ids, order, offsets, inverse)

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens."""
        return self.expert_ids.shape[0]

    @property
    def top_k(self) -> int:
        """k, the routes of every token."""
        return self.expert_ids.shape[1]

    @property
    def num_experts(self) -> int:
        """E, the number of experts."""
        return self.offsets.shape[0] - 1

    @property
    def num_routes(self) -> int:
        """Routes kept."""
        return self.order.shape[0]

    @property
    def counts(self) -> Tensor:
        """[num_experts], int32, routes kept per expert."""
        return self.offsets.diff()

    @property
    def token_ids(self) -> Tensor:
        """[num_routes], int32, the row of x behind each position of ``order``."""
        return self.order // max(self.top_k, 1)

    def touched_experts(self) -> Tensor:
        """[num_touched], int64, the experts with at least one route: exactly what a prefetch must bring."""
        return self.counts.nonzero().flatten()

    def splits(self, num_ranks: int) -> Tensor:
        """[num_ranks], int64, routes per rank where consecutive equal blocks of experts live on each rank."""
        require(self.num_experts % max(num_ranks, 1) == 0 and num_ranks >= 1, "RoutePlan.splits", "num_ranks",
                f"a divisor of {self.num_experts} experts", num_ranks)  # fmt: skip
        return self.counts.view(num_ranks, -1).sum(1)

    def to(self, device: torch.device | str) -> RoutePlan:
        """The same plan on another device."""
        fields = ("expert_ids", "order", "offsets", "inverse")
        return replace(self, **{name: getattr(self, name).to(device) for name in fields})


@typed
def hash_plan(table: Tensor, token_ids: Tensor, num_experts: int) -> RoutePlan:
    """The route plan of expert_ids[t] = table[token_ids[t]], looked up and sorted in one operator.

    It depends on token ids alone: build it once per batch and hand it to every hash layer.

    Args:
        table: [vocab_size, k], int16, int32 or int64, in [0, num_experts).
        token_ids: any shape with num_tokens entries, int32 or int64, in [0, vocab_size).
        num_experts: number of experts.

    Raises:
        ValueError: if a token id or a table entry is out of range (on CUDA: a device-side assertion).

    Source: Roller et al. 2021, Hash Layers For Large Sparse Models, section 3.
    """
    require_ids(token_ids, "hash_plan", "token_ids")
    if table.dtype is not torch.int16:
        require_ids(table, "hash_plan", "table")
    require(table.dim() == 2, "hash_plan", "table", "[vocab_size, k]", tuple(table.shape))
    require_num_experts("hash_plan", num_experts)
    ids = token_ids.flatten().long()
    with range_errors():
        return RoutePlan(*torch.ops.gossamer.hash_plan(table.contiguous(), ids, num_experts))


class range_errors:
    """Range errors that an operator finds while it counts are the caller's: ValueError with the first line."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError) and " must be " in str(error):
            raise ValueError(str(error).splitlines()[0]) from None


@torch.library.register_fake("gossamer::route_plan")
def _(expert_ids: Tensor, num_experts: int, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    num_routes = expert_ids.shape[0] * expert_ids.shape[1]
    order, offsets, inverse = (
        expert_ids.new_empty(n, dtype=torch.int32) for n in (num_routes, num_experts + 1, num_routes)
    )
    return order, offsets, inverse


@torch.library.register_fake("gossamer::hash_plan")
def _(table: Tensor, token_ids: Tensor, num_experts: int) -> tuple[Tensor, ...]:
    num_tokens, k = token_ids.shape[0], table.shape[1]
    new = lambda *size: token_ids.new_empty(size, dtype=torch.int32)  # noqa: E731
    return new(num_tokens, k), new(num_tokens * k), new(num_experts + 1), new(num_tokens * k)
