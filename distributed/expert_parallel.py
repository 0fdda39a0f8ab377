"""Experts spread over the ranks of a process group: rows travel to their experts and back, uneven, without padding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gossamer._arguments import typed
from gossamer.sparse_nn import MoE, RoutePlan, Router, Routing, combine, dispatch, expert_mlp

__all__ = ["ExpertExchange", "ExpertParallelMoE"]


@dataclass(frozen=True, eq=False)
class ExpertExchange:
    """Who sends how many rows to whom for one route plan, agreed on once and used by every layer with that plan.

    Experts live in consecutive equal blocks: rank r of P holds experts [r E / P, (r + 1) E / P). A row travels once per
    route that was kept. Making one is a collective call, and waits for the device: the sizes must be known to the host.

    Attributes:
        plan: of the tokens of this rank, over all experts.
        local_plan: of the rows that arrive here, over the experts of this rank.
        send, receive: [P], rows to and from every rank.
        group: the process group; None is the default one.
        traffic: bytes sent to other ranks so far, forward and backward, in its only entry.
    """

    plan: RoutePlan
    local_plan: RoutePlan
    send: list[int]
    receive: list[int]
    group: dist.ProcessGroup | None
    traffic: list[int]

    @classmethod
    def from_plan(cls, plan: RoutePlan, group: dist.ProcessGroup | None = None) -> ExpertExchange:
        """Agree on the sizes with the other ranks of the group.

        Raises:
            ValueError: if the number of experts is no multiple of the number of ranks.
        """
        num_ranks = dist.get_world_size(group)
        if plan.num_experts % num_ranks != 0:
            raise ValueError(
                f"ExpertExchange: plan must have a multiple of {num_ranks} experts, one block per rank, "
                f"got {plan.num_experts}"
            )
        counts = plan.counts.contiguous()
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts, group=group)
        sent, arriving = counts.view(num_ranks, -1), arriving.view(num_ranks, -1)
        send, receive = torch.stack([sent.sum(1), arriving.sum(1)]).tolist()
        experts = torch.arange(arriving.shape[1], device=counts.device, dtype=torch.int32).repeat(num_ranks)
        expert_ids = experts.repeat_interleave(arriving.flatten(), output_size=sum(receive))
        local_plan = RoutePlan.from_expert_ids(expert_ids[:, None], arriving.shape[1])
        return cls(plan, local_plan, send, receive, group, [0])

    def to_experts(self, rows: Tensor) -> Tensor:
        """Rows in the order of ``plan`` to the rows of ``local_plan``; differentiable."""
        return _AllToAll.apply(rows, self, self.send, self.receive)

    def to_tokens(self, rows: Tensor) -> Tensor:
        """The way back."""
        return _AllToAll.apply(rows, self, self.receive, self.send)


class _AllToAll(torch.autograd.Function):
    """Exchange of consecutive blocks of rows; its gradient takes the same way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: ExpertExchange, send: list[int], receive: list[int]) -> Tensor:
        ctx.exchange, ctx.send, ctx.receive = exchange, send, receive
        return _exchange_rows(rows, exchange, send, receive)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange_rows(grad, ctx.exchange, ctx.receive, ctx.send), None, None, None


def _exchange_rows(rows: Tensor, exchange: ExpertExchange, send: list[int], receive: list[int]) -> Tensor:
    """All rows that leave a rank pass here, and are counted here."""
    rows = rows.detach().contiguous()
    arrived = rows.new_empty(sum(receive), rows.shape[1])
    dist.all_to_all_single(arrived, rows, receive, send, group=exchange.group)
    leaving = sum(send) - send[dist.get_rank(exchange.group)]
    exchange.traffic[0] += leaving * rows.shape[1] * rows.element_size()
    return arrived


class ExpertParallelMoE(MoE):
    """``MoE`` whose experts are spread over the ranks of a process group; every rank has tokens of its own.

    With equal seeds the ranks together hold the very weights of a ``MoE`` in one process, and outputs and gradients are
    the same up to rounding: the gradient of an expert is the sum over the tokens of all ranks, in the order of the
    ranks. Router and shared experts are on every rank; summing their gradients over the ranks is up to the caller (DDP,
    DeepSpeed). Where the loss of a rank is a mean, divide the gradients of ``w_in`` and ``w_out`` by the number of
    ranks, as DeepSpeed does by itself.

    A capacity holds per rank: it is that of the router for the tokens of the rank.

    Args:
        d_model, d_ff, num_experts, router, activation, num_shared_experts: as in ``MoE``; num_experts counts those of
            all ranks.
        group: the process group; None is the default one. Its ranks must all call forward and backward.

    Attributes:
        w_in, w_out: weights of the num_experts / P experts of this rank.
        bytes_sent: bytes that left this rank, forward and backward.

    Raises:
        ValueError: if num_experts is no multiple of the number of ranks.

    Source: Lepikhin et al. 2020, GShard, section 3; without capacity padding as in Gale et al. 2022, MegaBlocks.
    """

    @typed
    def __init__(
        self,
        d_model: int,
        d_ff: int,
        num_experts: int,
        router: Router,
        *,
        activation: str = "swiglu",
        num_shared_experts: int = 0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            d_model, d_ff, num_experts, router, activation=activation, num_shared_experts=num_shared_experts
        )
        self.group = group
        self._traffic = [0]
        self._place(dist.get_rank(group), dist.get_world_size(group))

    def _place(self, rank: int, num_ranks: int) -> None:
        """Keep the experts of this rank."""
        num_experts = self.w_in.shape[0]
        if num_experts % num_ranks != 0:
            raise ValueError(
                f"ExpertParallelMoE: num_experts must be a multiple of the {num_ranks} ranks, got {num_experts}"
            )
        size = num_experts // num_ranks
        first = rank * size
        self.w_in = nn.Parameter(self.w_in.detach()[first : first + size].clone())
        self.w_out = nn.Parameter(self.w_out.detach()[first : first + size].clone())

    @property
    def bytes_sent(self) -> int:
        """Bytes that left this rank so far, forward and backward."""
        return self._traffic[0]

    def exchange(self, plan: RoutePlan) -> ExpertExchange:
        """The exchange of a plan, to hand to every layer of the same group that routes alike (collective)."""
        return ExpertExchange.from_plan(plan, self.group)

    def forward(
        self,
        x: Tensor,
        token_ids: Tensor | None = None,
        *,
        plan: RoutePlan | ExpertExchange | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """Apply the layer to the tokens of this rank, x [..., d_model].

        ``plan`` is a plan of these token ids that was made before, or its exchange, to be reused.
        """
        return super().forward(x, token_ids, plan=plan, routing=routing)  # type: ignore[arg-type]

    def _experts(self, rows: Tensor, plan: RoutePlan | ExpertExchange, gates: Tensor) -> Tensor:
        exchange = plan if isinstance(plan, ExpertExchange) else self.exchange(plan)
        if torch.is_autocast_enabled(rows.device.type):
            rows = rows.to(torch.get_autocast_dtype(rows.device.type))
        exchange = replace(exchange, traffic=self._traffic)
        arrived = exchange.to_experts(dispatch(rows, exchange.plan))
        y = expert_mlp(arrived, exchange.local_plan, self.w_in, self.w_out, activation=self.activation)
        return combine(exchange.to_tokens(y), exchange.plan, gates)
