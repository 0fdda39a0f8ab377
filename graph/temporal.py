"""The temporal model of LiGNN: tokens from a sampled neighbourhood, then the member's events, in one transformer."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer._arguments import typed
from gossamer.graph.csr import CSR
from gossamer.graph.layers import reset_linear
from gossamer.graph.sampled_sage import SampledSAGE
from gossamer.graph.sampling import SampledSubgraph

__all__ = ["TemporalEncoder", "TemporalOutput", "TemporalSAGE", "long_term_loss", "prefix_causal_mask"]


@typed
def prefix_causal_mask(num_prefix: int, num_events: int, *, device: Any = None) -> Tensor:
    """mask[i, j]: token i sees token j. The prefix is seen by all tokens, event j by events from j on.

    Args:
        num_prefix: tokens that see each other and no event.
        num_events: tokens after them.

    Returns:
        [num_prefix + num_events, num_prefix + num_events], bool.
    """
    for name, value in (("num_prefix", num_prefix), ("num_events", num_events)):
        if value < 0:
            raise ValueError(f"prefix_causal_mask: {name} must be at least 0, got {value}")
    place = torch.arange(num_prefix + num_events, device=device)
    return (place[None, :] < num_prefix) | (place[None, :] <= place[:, None])


class TemporalOutput(NamedTuple):
    """What the temporal model gives.

    Args:
        embedding: [B, out_channels], the member after all its events.
        states: [B, num_tokens + N, dim], every token; ``long_term_loss`` reads those of events.
    """

    embedding: Tensor
    states: Tensor


class TemporalEncoder(nn.Module):
    """Transformer over [prefix tokens, encoded events] under the prefix-causal mask.

    Pre-norm blocks of attention and a gelu MLP of 4 dim. Learned positions count events from the latest backwards, so
    that a member with few events looks like the recent part of one with many; ages enter as sines of their logarithm,
    which spans seconds to years.

    Args:
        dim: width of a token, a multiple of num_heads and even.
        event_channels: width of an event's features.
        max_events: most events of a sequence.
        num_blocks: transformer blocks, at least 1.
        num_heads: attention heads.

    Source: LiGNN (Borisyuk et al. 2024), temporal graph modelling.
    """

    @typed
    def __init__(
        self, dim: int, event_channels: int, max_events: int, *, num_blocks: int = 1, num_heads: int = 2
    ) -> None:
        super().__init__()
        for name, value in (("event_channels", event_channels), ("max_events", max_events), ("num_blocks", num_blocks)):
            if value < 1:
                raise ValueError(f"TemporalEncoder: {name} must be at least 1, got {value}")
        if dim < 2 or dim % 2 or num_heads < 1 or dim % num_heads:
            raise ValueError(f"TemporalEncoder: dim must be even and a multiple of num_heads = {num_heads}, got {dim}")
        self.dim, self.max_events = dim, max_events
        self.event = nn.Linear(event_channels, dim)
        self.position = nn.Parameter(torch.empty(max_events, dim))
        self.age = nn.Linear(dim, dim, bias=False)
        self.blocks = nn.ModuleList(_Block(dim, num_heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.position, std=0.02)
        for linear in (self.event, self.age):
            reset_linear(linear)

    def forward(self, prefix: Tensor, events: Tensor, num_events: Tensor, age: Tensor | None = None) -> Tensor:
        """Every token after the last block.

        Args:
            prefix: [B, H, dim].
            events: [B, N, event_channels], N at most max_events, in the order of time, the first num_events of a row
                valid; what stands behind them has no influence on them.
            num_events: [B], integers in [0, N].
            age: [B, N], at least 0, how long before the example each event was; None leaves it out.

        Returns:
            [B, H + N, dim].
        """
        num_rows, num_prefix, _ = prefix.shape
        length = events.shape[1]
        _check_events(events, num_events, num_rows, self.max_events)
        place = torch.arange(length, device=events.device)
        from_latest = (num_events[:, None] - 1 - place).clamp(min=0)  # [B, N]
        tokens = self.event(events) + self.position[from_latest]
        if age is not None:
            if age.shape != events.shape[:2]:
                raise ValueError(f"TemporalEncoder: age must be {list(events.shape[:2])}, got {list(age.shape)}")
            tokens = tokens + self.age(_sines(age, self.dim, tokens.dtype))
        tokens = torch.cat([prefix, tokens], dim=1)
        mask = prefix_causal_mask(num_prefix, length, device=tokens.device)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return self.norm(tokens)


class TemporalSAGE(nn.Module):
    """A member from its sampled neighbourhood and its latest events: GraphSAGE, H tokens, TemporalEncoder.

    The last SAGE layer is num_tokens times as wide as a token; its row of a seed is cut into the prefix. The embedding
    is a linear map of the token of the latest event (of the last prefix token where there is no event).

    Args:
        in_channels: width of the node features.
        hidden_channels: width between SAGE layers.
        out_channels: width of the embedding.
        num_layers: SAGE layers, as many as hops were sampled.
        event_channels, max_events, num_blocks, num_heads: of the TemporalEncoder.
        num_tokens: H.
        token_dim: width of a token; None takes out_channels.

    Source: LiGNN (Borisyuk et al. 2024), temporal graph modelling.
    """

    @typed
    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 2,
        *,
        event_channels: int,
        max_events: int,
        num_tokens: int = 4,
        token_dim: int | None = None,
        num_blocks: int = 1,
        num_heads: int = 2,
    ) -> None:
        super().__init__()
        if num_tokens < 1:
            raise ValueError(f"TemporalSAGE: num_tokens must be at least 1, got {num_tokens}")
        dim = out_channels if token_dim is None else token_dim
        self.num_tokens = num_tokens
        self.sage = SampledSAGE(in_channels, hidden_channels, num_tokens * dim, num_layers)
        self.encoder = TemporalEncoder(dim, event_channels, max_events, num_blocks=num_blocks, num_heads=num_heads)
        self.head = nn.Linear(dim, out_channels)
        reset_linear(self.head)

    def forward(
        self, graph: SampledSubgraph | CSR, x: Tensor, events: Tensor, num_events: Tensor, age: Tensor | None = None
    ) -> TemporalOutput:
        """The embeddings of the first B nodes of the graph.

        Args:
            graph: the sampled neighbourhood of the members, which come first.
            x: [num_nodes, in_channels].
            events, num_events, age: as for TemporalEncoder, a row per seed.
        """
        num_rows = events.shape[0]
        prefix = self.sage(graph, x, num_rows).view(num_rows, self.num_tokens, -1)
        states = self.encoder(prefix, events, num_events, age)
        last = self.num_tokens - 1 + num_events
        embedding = self.head(states[torch.arange(num_rows, device=x.device), last])
        return TemporalOutput(embedding, states)


@typed
def long_term_loss(predicted: Tensor, future: Tensor, valid: Tensor | None = None) -> Tensor:
    """-mean log softmax of predicted[b] . future[b, n] among the n-th future events of all rows of the batch.

    Of the N events of a sequence the first N1 are shown to the model and the last N2 are to be foretold: give the
    output at event N1, and the embeddings of events N1 + 1 to N1 + N2. The other rows' events are the negatives.

    Args:
        predicted: [B, dim].
        future: [B, N2, dim].
        valid: [B, N2], bool, which future events there are; None for all.

    Returns:
        A scalar; 0 where no event is valid.

    Source: LiGNN (Borisyuk et al. 2024), long-term loss.
    """
    if predicted.dim() != 2 or future.dim() != 3 or future.shape[::2] != predicted.shape:
        raise ValueError(
            "long_term_loss: future must be [B, N2, dim] for predicted [B, dim], "
            f"got {list(future.shape)} and {list(predicted.shape)}"
        )
    valid = torch.ones(future.shape[:2], dtype=torch.bool, device=future.device) if valid is None else valid
    if valid.shape != future.shape[:2] or valid.dtype != torch.bool:
        raise ValueError(
            f"long_term_loss: valid must be {list(future.shape[:2])} of bool, got {list(valid.shape)} of {valid.dtype}"
        )
    score = torch.einsum("bd,cnd->nbc", predicted, future)  # [N2, B, B]
    score = score.masked_fill(~valid.T[:, None, :], -math.inf)
    own = torch.arange(len(predicted), device=future.device).expand(future.shape[1], -1)
    # A row without this event may see nothing at all: it gets a finite score, and no weight.
    score = score.masked_fill(~valid.T[:, :, None], 0.0)
    each = F.cross_entropy(score.flatten(0, 1), own.flatten(), reduction="none") * valid.T.flatten()
    return each.sum() / valid.sum().clamp(min=1)


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        num_rows, length, dim = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(num_rows, length, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, H + N, dim / heads]
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(seen.transpose(1, 2).reshape(num_rows, length, dim))
        return x + self.mlp(self.norm_mlp(x))


def _sines(age: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """[..., dim]: sine and cosine of log(1 + age) at dim / 2 frequencies from 1/4 to 8."""
    frequency = torch.logspace(-2, 3, dim // 2, base=2.0, device=age.device, dtype=torch.float64)
    angle = age.double().clamp(min=0).log1p()[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(dtype)


def _check_events(events: Tensor, num_events: Tensor, num_rows: int, max_events: int) -> None:
    if events.dim() != 3 or events.shape[0] != num_rows or events.shape[1] > max_events:
        raise ValueError(
            f"TemporalEncoder: events must be [{num_rows}, at most {max_events}, channels], got {list(events.shape)}"
        )
    if num_events.shape != (num_rows,) or num_events.is_floating_point():
        raise ValueError(
            f"TemporalEncoder: num_events must be [{num_rows}] integers, "
            f"got {list(num_events.shape)} of {num_events.dtype}"
        )
    if num_rows and not (int(num_events.min()) >= 0 and int(num_events.max()) <= events.shape[1]):
        raise ValueError(
            f"TemporalEncoder: num_events must be in [0, {events.shape[1]}], "
            f"got {int(num_events.min())} to {int(num_events.max())}"
        )
