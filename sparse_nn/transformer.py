"""A small decoder-only language model with hash or routed expert layers and shared key/value heads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gossamer._arguments import typed
from gossamer._files import whole_or_not_at_all
from gossamer.sparse_nn._checks import require, require_ids
from gossamer.sparse_nn.generation import TransformerCache, generate
from gossamer.sparse_nn.hash_tables import multi_hash_table, random_table
from gossamer.sparse_nn.hashes import ContextualHashRouter
from gossamer.sparse_nn.kv_cache import KVCache
from gossamer.sparse_nn.moe import MoE, dense_mlp
from gossamer.sparse_nn.multi_query_attention import MultiQueryAttention
from gossamer.sparse_nn.route_plan import RoutePlan
from gossamer.sparse_nn.routers import TopKRouter, WeightedHashRouter
from gossamer.sparse_nn.routing import HashRouter, Router, Routing
from gossamer.sparse_nn.transformer_config import SparseTransformerConfig

__all__ = ["SparseTransformer"]


class SparseTransformer(nn.Module):
    """Blocks of x + attention(norm(x)), x + feed_forward(norm(x)); the embedding is the output matrix too.

    The route plan of the hash layers depends on the token ids alone: it is built once per batch, and all of them use
    it, forward and backward.

    Args:
        config: sizes and choices.
        table: [vocab_size, top_k], where tokens go, in [0, num_experts); [vocab_size, num_hashes] as of
            ``multi_hash_table`` for MultiHash. A random table by default. Part of the ``state_dict``.

    Source: Roller et al. 2021, Hash Layers (experts); Shazeer 2019 (shared keys); Xiong et al. 2020 (norm first).
    """

    @typed
    def __init__(self, config: SparseTransformerConfig, *, table: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.positions = nn.Embedding(config.max_len, config.d_model) if config.positions == "learned" else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)
        self.router = _hash_router(config, table)
        table = None if self.router is None else self.router.table
        self.blocks = nn.ModuleList(_Block(config, index, table) for index in range(config.num_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits [B, T, vocab_size] of the next token; with targets the mean loss.

        Args:
            input_ids: [B, T], int32 or int64.
            targets: [B, T], the token to predict at each position, -100 where there is none. The loss is the cross
                entropy in nats, in training with the weighted losses of the routers added.
        """
        x, aux_loss = self.run_blocks(self.embed(input_ids), input_ids)
        logits = self.logits(x)
        if targets is None:
            return logits
        require(targets.shape == input_ids.shape, "SparseTransformer", "targets", f"of shape {tuple(input_ids.shape)}",
                tuple(targets.shape))  # fmt: skip
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten().long())
        return loss + aux_loss if self.training else loss

    def embed(self, input_ids: Tensor) -> Tensor:
        """What the first block takes, [B, T, d_model]: embeddings and positions, with dropout."""
        self._check_ids(input_ids)
        return self.dropout(self._embed(input_ids))

    def run_blocks(self, x: Tensor, input_ids: Tensor, block_ids: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Some blocks in a row, all of them by default, as a pipeline stage runs them.

        Args:
            x: [B, T, d_model], what the first of them takes.
            input_ids: [B, T], the tokens of the batch.
            block_ids: which blocks, ascending.

        Returns:
            What the last of them gives, and the weighted losses of their routers, added up.
        """
        routing, plan = self._route(input_ids)
        aux_loss = x.new_zeros((), dtype=torch.float32)
        recompute = self.config.recompute and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        for index in range(len(self.blocks)) if block_ids is None else block_ids:
            if recompute:
                x, loss = checkpoint(self.blocks[index], x, input_ids, routing, plan, use_reentrant=False)
            else:
                x, loss = self.blocks[index](x, input_ids, routing, plan)
            aux_loss = aux_loss + loss
        return x, aux_loss

    def logits(self, x: Tensor) -> Tensor:
        """[B, T, vocab_size] of what the last block gives."""
        return F.linear(self.norm(x), self.embedding.weight)

    @torch.no_grad()
    def decode(self, input_ids: Tensor, cache: TransformerCache, lengths: Sequence[int] | None = None) -> Tensor:
        """Continue the sequences of a cache, and give the logits [B, vocab_size] behind the last token of each.

        Args:
            input_ids: [B, Q], int32 or int64; sequence b goes on with its first ``lengths[b]`` tokens.
            cache: of ``new_cache``; it takes these tokens in.
            lengths: in [1, Q]; all Q by default. What stands behind them is padding and leaves no trace.

        Raises:
            CacheFullError: if the cache has no room for Q more positions.
        """
        self._check_ids(input_ids, start=max(cache.lengths))
        batch_size, count = input_ids.shape
        lengths = [count] * batch_size if lengths is None else list(lengths)
        require(len(lengths) == batch_size and all(1 <= length <= count for length in lengths), "decode", "lengths",
                f"{batch_size} numbers in [1, {count}]", lengths)  # fmt: skip
        positions = cache.remember(input_ids)
        routing, plan = self._route(input_ids, cache.token_ids, positions)
        x = self._embed(input_ids, positions)
        for block, layer_cache in zip(self.blocks, cache.layers):
            x, _ = block(x, input_ids, routing, plan, layer_cache)
        cache.advance(lengths)
        last = torch.tensor(lengths, device=x.device) - 1
        return self.logits(x[torch.arange(len(x), device=x.device), last])

    def new_cache(self, batch_size: int, max_len: int) -> TransformerCache:
        """An empty cache for ``decode``."""
        attention = [block.attention for block in self.blocks]
        layers = [layer.new_cache(batch_size, max_len) for layer in attention if isinstance(layer, MultiQueryAttention)]
        return TransformerCache(layers, batch_size, max_len, self.embedding.weight.device)

    def generate(self, prompts: Sequence[Any], max_new_tokens: int, **options: Any) -> list[Tensor]:
        """Continue prompts; see ``gossamer.sparse_nn.generation.generate`` for the options."""
        return generate(self, prompts, max_new_tokens, **options)

    def num_parameters(self, *, active: bool = False) -> int:
        """All parameters, or those that one token uses."""
        unused = 0
        for block in self.blocks:
            if isinstance(block.feed_forward, MoE):
                per_token = self.config.num_hashes if self.config.num_hashes > 1 else self.config.top_k
                w_in, w_out = block.feed_forward.w_in, block.feed_forward.w_out
                unused += (len(w_in) - per_token) * (w_in[0].numel() + w_out[0].numel())
        return sum(p.numel() for p in self.parameters()) - (unused if active else 0)

    def save(self, folder: str | os.PathLike) -> None:
        """Write config.json and model.safetensors, each whole or not at all."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with whole_or_not_at_all(folder / "model.safetensors") as file:
            file.write(save({name: tensor.contiguous() for name, tensor in self.state_dict().items()}))
        with whole_or_not_at_all(folder / "config.json") as file:
            file.write(self.config.to_json().encode())

    @classmethod
    def load(cls, folder: str | os.PathLike) -> SparseTransformer:
        """The model that ``save`` wrote.

        Raises:
            OSError: if config.json or model.safetensors cannot be read.
            ValueError: if one of them is damaged, or they do not belong together.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        folder = Path(folder)
        config = SparseTransformerConfig.from_json((folder / "config.json").read_bytes().decode(errors="replace"))
        try:
            state = load((folder / "model.safetensors").read_bytes())
            _check_counts(state, config)
            model = cls(config)
            model.load_state_dict(state)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"SparseTransformer.load: folder must hold a model.safetensors that fits its config.json, got {folder}"
            ) from error
        return model

    def _embed(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        x = self.embedding(input_ids)
        if self.positions is None:
            return x
        return x + self.positions(torch.arange(x.shape[1], device=x.device) if positions is None else positions)

    def _route(
        self, input_ids: Tensor, history: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Routing | None, RoutePlan | None]:
        """Where the tokens go in every hash layer. In decoding the hash looks back into the history [B, max_len]."""
        if self.router is None:
            return None, None
        plan = self.router.hash_plan(input_ids)
        if history is not None and isinstance(self.router, ContextualHashRouter):
            expert_ids = self.router.expert_ids(history)
            expert_ids = expert_ids[torch.arange(len(history), device=history.device)[:, None], positions]
            plan = RoutePlan.from_expert_ids(expert_ids.flatten(0, 1), self.router.num_experts)
        return self.router.routing_of(plan.expert_ids), plan

    def _check_ids(self, input_ids: Tensor, start: int = 0) -> None:
        require_ids(input_ids, "SparseTransformer", "input_ids")
        shape = tuple(input_ids.shape)
        require(len(shape) == 2 and 0 not in shape, "SparseTransformer", "input_ids", "[B, T], not empty", shape)
        require(self.config.positions == "rotary" or start + shape[1] <= self.config.max_len, "SparseTransformer",
                "input_ids", f"of at most {self.config.max_len} learned positions", start + shape[1])  # fmt: skip


class _Block(nn.Module):
    """Attention and a feed-forward layer, dense or of experts, each behind a norm and beside a residual."""

    def __init__(self, config: SparseTransformerConfig, index: int, table: Tensor | None) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model)
        self.attention = MultiQueryAttention(
            config.d_model, config.num_heads, config.num_kv_heads, config.head_dim,
            positions="rotary" if config.positions == "rotary" else "none",
        )  # fmt: skip
        self.feed_forward_norm = nn.LayerNorm(config.d_model)
        self.feed_forward: nn.Module
        if index in config.expert_layers:
            self.feed_forward = _experts(config, table)
        else:
            self.feed_forward = _FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        input_ids: Tensor,
        routing: Routing | None,
        plan: RoutePlan | None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, d_model] and the router's loss."""
        x = x + self.dropout(self.attention(self.attention_norm(x), cache))
        rows = self.feed_forward_norm(x)
        if not isinstance(self.feed_forward, MoE):
            return x + self.dropout(self.feed_forward(rows)), x.new_zeros(())
        own = self.feed_forward.router is not None  # with a hash of the token ids alone the batch's routing holds
        y = self.feed_forward(rows, input_ids, plan=plan, routing=None if own else routing)
        assert self.feed_forward.routing is not None
        return x + self.dropout(y), self.feed_forward.routing.aux_loss


class _FeedForward(nn.Module):
    """w_out activation(w_in x), with the initial weights of MoE."""

    def __init__(self, config: SparseTransformerConfig) -> None:
        super().__init__()
        self.activation = config.activation
        width = 2 if config.activation == "swiglu" else 1
        self.w_in = nn.Linear(config.d_model, width * config.d_ff, bias=False)
        self.w_out = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return dense_mlp(x, self.w_in.weight, self.w_out.weight, self.activation)


def _hash_router(config: SparseTransformerConfig, table: Tensor | None) -> HashRouter | None:
    """The router that all hash layers share; None where the experts are chosen by learned scores, or there are none."""
    if not config.expert_layers or config.router == "top_k":
        require(table is None, "SparseTransformer", "table", "None without hash layers", "a table")
        return None
    num_experts = config.num_experts * config.num_hashes
    columns = max(config.top_k, config.num_hashes)
    if table is None and config.num_hashes > 1:
        table = multi_hash_table(config.vocab_size, config.num_experts, config.num_hashes, seed=config.seed)
    elif table is None:
        table = random_table(config.vocab_size, config.num_experts, config.top_k, seed=config.seed)
    require(tuple(table.shape) == (config.vocab_size, columns), "SparseTransformer", "table",
            f"[{config.vocab_size}, {columns}]", tuple(table.shape))  # fmt: skip
    low, high = int(table.min()), int(table.max())
    require(low >= 0 and high < num_experts, "SparseTransformer", "table", f"in [0, {num_experts})", f"[{low}, {high}]")
    if config.hash == "token":
        return HashRouter(table.clone(), num_experts)
    return ContextualHashRouter(config.hash, table.clone(), num_experts, bos_id=config.bos_id)


def _check_counts(state: dict[str, Tensor], config: SparseTransformerConfig) -> None:
    """Blocks and vocabulary of a file against its config, before a damaged one makes a model beyond all memory."""
    num_blocks = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    embedding = state.get("embedding.weight")
    if num_blocks != config.num_layers or embedding is None or len(embedding) != config.vocab_size:
        raise RuntimeError(f"a config of {config.num_layers} blocks, and a file of {num_blocks}, or another vocabulary")


def _experts(config: SparseTransformerConfig, table: Tensor | None) -> MoE:
    num_experts = config.num_experts * config.num_hashes
    router: Router | None = None
    if config.router == "weighted_hash":
        assert table is not None
        router = WeightedHashRouter(config.d_model, table.clone(), num_experts)
    elif config.router == "top_k":
        router = _TopKRouter(
            config.d_model, num_experts, config.top_k, capacity_factor=config.capacity_factor,
            balance_weight=config.balance_weight,
        )  # fmt: skip
    experts = MoE(
        config.d_model, config.d_ff // config.num_hashes, num_experts, router, activation=config.activation,
        num_shared_experts=config.num_shared_experts,
    )  # fmt: skip
    with torch.no_grad():
        experts.w_out.mul_(config.num_hashes**-0.5)  # the segments of MultiHash together start as one layer of d_ff
    return experts


class _TopKRouter(TopKRouter):
    """In evaluation nothing is dropped, so that a token does not depend on the others of its batch."""

    def capacity(self, num_routes: int) -> int | None:
        return super().capacity(num_routes) if self.training else None
