"""Sparse transformers: hash and learned routing, experts, attention with shared keys."""

import gossamer  # noqa: F401  (loads the operators)
from gossamer.sparse_nn.decode_attention import decode_attention, merge_attention
from gossamer.sparse_nn.dispatch import combine, dispatch
from gossamer.sparse_nn.expert_mlp import expert_mlp
from gossamer.sparse_nn.hash_gate import hash_gate
from gossamer.sparse_nn.hash_tables import (
    LoadBalance,
    balanced_table,
    clustered_table,
    count_tokens,
    dispersed_table,
    load_balance,
    load_table,
    multi_hash_table,
    random_table,
    save_table,
)
from gossamer.sparse_nn.hashes import (
    ContextualHashRouter,
    bigram_hash,
    oracle_future_hash,
    position_hash,
    previous_token_hash,
    token_hash,
)
from gossamer.sparse_nn.kv_cache import CacheFullError, KVCache, PagedKVCache
from gossamer.sparse_nn.losses import consistency_loss, importance_loss, load_balance_loss, load_loss, router_z_loss
from gossamer.sparse_nn.moe import MoE
from gossamer.sparse_nn.multi_query_attention import MultiQueryAttention, matched_d_ff, mean_pool_heads
from gossamer.sparse_nn.route_plan import RoutePlan, hash_plan
from gossamer.sparse_nn.routers import (
    BalancedAssignmentRouter,
    ExpertChoiceRouter,
    SinkhornRouter,
    TopKRouter,
    WeightedHashRouter,
)
from gossamer.sparse_nn.routing import HashRouter, RandomRouter, Router, Routing
from gossamer.sparse_nn.top_k_gate import Gating, top_k_gate
from gossamer.sparse_nn.transformer import SparseTransformer
from gossamer.sparse_nn.transformer_config import SparseTransformerConfig

__all__ = [
    # hash tables
    "random_table", "balanced_table", "clustered_table", "dispersed_table", "multi_hash_table", "count_tokens",
    "save_table", "load_table", "LoadBalance", "load_balance",
    # contextual hashes
    "token_hash", "previous_token_hash", "bigram_hash", "position_hash", "oracle_future_hash",
    "ContextualHashRouter",
    # the route plan
    "RoutePlan", "hash_plan", "hash_gate", "top_k_gate", "Gating",
    # rows to experts and back
    "dispatch", "combine", "expert_mlp",
    # attention over a cache
    "decode_attention", "merge_attention", "KVCache", "PagedKVCache", "CacheFullError",
    "MultiQueryAttention", "mean_pool_heads", "matched_d_ff",
    # routers, their losses, and the layer
    "Router", "Routing", "HashRouter", "WeightedHashRouter", "TopKRouter", "ExpertChoiceRouter",
    "BalancedAssignmentRouter", "SinkhornRouter", "RandomRouter", "importance_loss", "load_balance_loss", "load_loss",
    "router_z_loss", "consistency_loss", "MoE",
    # the language model
    "SparseTransformer", "SparseTransformerConfig",
]  # fmt: skip
