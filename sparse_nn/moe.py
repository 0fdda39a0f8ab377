"""The sparse layer: a router, experts in one grouped operator, and optional shared experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from gossamer._arguments import typed
from gossamer.sparse_nn._checks import require
from gossamer.sparse_nn.expert_mlp import ACTIVATIONS, expert_mlp
from gossamer.sparse_nn.route_plan import RoutePlan
from gossamer.sparse_nn.routing import Router, Routing

__all__ = ["MoE", "dense_mlp"]


class MoE(nn.Module):
    """y = shared(x) + sum over the routes of a token of gate * expert(x).

    After a forward ``routing`` holds what the router said; add ``routing.aux_loss`` to the training loss.

    Args:
        d_model: width of a token.
        d_ff: inner width of one expert.
        num_experts: number of experts.
        router: decides which expert sees which token; None where every forward is given ``routing`` and ``plan``.
        activation: relu, gelu or swiglu.
        num_shared_experts: experts that see every token, as one feed-forward network of their joint width.

    Source: Shazeer et al. 2017; shared experts of Dai et al. 2024, DeepSeekMoE, section 3.2.
    """

    @typed
    def __init__(
        self,
        d_model: int,
        d_ff: int,
        num_experts: int,
        router: Router | None,
        *,
        activation: str = "swiglu",
        num_shared_experts: int = 0,
    ) -> None:
        super().__init__()
        require(activation in ACTIVATIONS, "MoE", "activation", "relu, gelu or swiglu", repr(activation))
        if router is not None:
            require(router.num_experts == num_experts, "MoE", "num_experts", f"{router.num_experts}, as in the router",
                    num_experts)  # fmt: skip
        self.router, self.activation = router, activation
        width = 2 if activation == "swiglu" else 1
        self.w_in = nn.Parameter(torch.empty(num_experts, width * d_ff, d_model))
        self.w_out = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        shared = num_shared_experts * d_ff
        self.shared_in = nn.Parameter(torch.empty(width * shared, d_model)) if shared else None
        self.shared_out = nn.Parameter(torch.empty(d_model, shared)) if shared else None
        self.routing: Routing | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1 / sqrt(fan in), as nn.Linear does."""
        for weight in (self.w_in, self.w_out, self.shared_in, self.shared_out):
            if weight is not None:
                nn.init.uniform_(weight, -(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)

    def forward(
        self,
        x: Tensor,
        token_ids: Tensor | None = None,
        *,
        plan: RoutePlan | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """Apply the layer to x [..., d_model]; token_ids [...] are for routers that hash.

        ``plan`` is a plan that was made of these token ids before (``HashRouter.hash_plan``), to be reused; ``routing``
        likewise what a hash router said of them, in place of this layer's own router.
        """
        rows = x.reshape(-1, x.shape[-1])
        if routing is None:
            routing = self._own_router()(rows, token_ids)
        if plan is None:
            plan = self._own_router().plan(routing)
        y = self._experts(rows, plan, routing.gates)
        self.routing = routing
        if self.shared_in is not None and self.shared_out is not None:
            y = y + self._shared(rows, self.shared_in, self.shared_out)
        return y.view(x.shape)

    def _own_router(self) -> Router:
        if self.router is None:
            raise ValueError("MoE: routing and plan must be given to a layer without a router, got None")
        return self.router

    def _experts(self, rows: Tensor, plan: RoutePlan, gates: Tensor) -> Tensor:
        return expert_mlp(rows, plan, self.w_in, self.w_out, gates=gates, activation=self.activation)

    def _shared(self, x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        return dense_mlp(x, w_in, w_out, self.activation)


def dense_mlp(x: Tensor, w_in: Tensor, w_out: Tensor, activation: str) -> Tensor:
    """w_out activation(w_in x): one expert for every token, with the activations of ``expert_mlp``."""
    hidden = functional.linear(x, w_in)
    if activation == "swiglu":
        gate, up = hidden.chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, w_out)
    return functional.linear(getattr(functional, activation)(hidden), w_out)
