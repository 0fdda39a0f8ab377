"""Small valid calls of gossamer.sparse_nn (see samples.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from gossamer import sparse_nn as s

from sample_tools import FLOATS, Arguments, floats, ids, integer, pick, sample


def tabled(r: Generator) -> Arguments:
    vocab, num_experts = integer(r, 1, 20), integer(r, 2, 6)
    table = s.random_table(vocab, num_experts, integer(r, 1, 2), seed=0)
    return {"table": table, "token_ids": ids(r, vocab, integer(r, 0, 15)), "num_experts": num_experts}


@sample("hash_plan", tabled)
def _(table: Any, token_ids: Any, num_experts: Any) -> Any:
    return s.hash_plan(table, token_ids, num_experts).order


def routed(r: Generator) -> Arguments:
    num_experts = integer(r, 2, 6)
    chosen = torch.rand(integer(r, 0, 12), num_experts, generator=r).argsort(1)[:, : integer(r, 1, 2)].int()
    return {"expert_ids": chosen, "num_experts": num_experts, "capacity": pick(r, None, 1, 3)}


def plan(expert_ids: Any, num_experts: Any, capacity: Any) -> s.RoutePlan:
    return s.RoutePlan.from_expert_ids(expert_ids, num_experts, capacity=capacity)


@sample("RoutePlan", routed)
def _(**arguments: Any) -> Any:
    return plan(**arguments).inverse


def rows_of(r: Generator) -> Arguments:
    made = routed(r)
    return {**made, "x": floats(r, len(made["expert_ids"]), 16, dtype=pick(r, *FLOATS[:3]))}  # float16 on CUDA only


@sample("dispatch", rows_of)
def _(x: Any, **arguments: Any) -> Any:
    return s.dispatch(x, plan(**arguments))


@sample("combine", lambda r: {**rows_of(r), "gates": None})
def _(x: Any, gates: Any, **arguments: Any) -> Any:
    routes = plan(**arguments)
    return s.combine(s.dispatch(x, routes), routes, gates)


def experts_of(r: Generator) -> Arguments:
    made, width, dtype = routed(r), 32, pick(r, torch.float32, torch.bfloat16)
    activation = pick(r, "swiglu", "relu", "gelu")
    inner = 64 if activation == "swiglu" else 32
    return {
        **made, "x": floats(r, len(made["expert_ids"]), width, dtype=dtype), "activation": activation,
        "w_in": floats(r, made["num_experts"], inner, width, dtype=dtype),
        "w_out": floats(r, made["num_experts"], width, 32, dtype=dtype),
        "gates": pick(r, None, torch.rand(made["expert_ids"].shape, generator=r)),
    }  # fmt: skip


@sample("expert_mlp", experts_of)
def _(x: Any, w_in: Any, w_out: Any, gates: Any, activation: Any, **arguments: Any) -> Any:
    return s.expert_mlp(x, plan(**arguments), w_in, w_out, gates=gates, activation=activation)


def gated(r: Generator) -> Arguments:
    made = tabled(r)
    num_experts = made.pop("num_experts")
    return {**made, "x": floats(r, len(made["token_ids"]), 32), "weight": floats(r, num_experts, 32)}


@sample("hash_gate", gated)
def _(x: Any, weight: Any, table: Any, token_ids: Any) -> Any:
    return s.hash_gate(x, weight, table, token_ids)


def logits_of(r: Generator) -> Arguments:
    return {
        "logits": floats(r, integer(r, 0, 9), 8, dtype=pick(r, torch.float32, torch.float64)), "k": integer(r, 1, 4),
        "score": pick(r, "softmax", "sigmoid", "sqrt_softplus"), "normalize": pick(r, False, True),
        "num_groups": pick(r, 1, 2), "top_groups": 1, "capacity": pick(r, None, 1, 2),
        "score_sums": pick(r, False, True),
    }  # fmt: skip


@sample("top_k_gate", logits_of)
def _(logits: Any, k: Any, **options: Any) -> Any:
    return s.top_k_gate(logits, k, **options).gates


def cached(r: Generator) -> Arguments:
    batch, length, kv_heads, dim = integer(r, 1, 3), integer(r, 0, 40), integer(r, 1, 2), pick(r, 16, 24, 32)
    dtype = pick(r, torch.float32, torch.bfloat16, torch.float16)
    return {
        "q": floats(r, batch, integer(r, 1, 3), kv_heads * integer(r, 1, 3), dim, dtype=dtype),
        "k": floats(r, batch, length, kv_heads, dim, dtype=dtype),
        "v": floats(r, batch, length, kv_heads, 16, dtype=dtype), "seq_lens": pick(r, None, ids(r, length + 1, batch)),
        "window": pick(r, None, 5), "softcap": pick(r, None, 20.0),
        "scale": pick(r, None, 0.3), "sinks": None, "return_lse": pick(r, False, True),
    }  # fmt: skip


@sample("decode_attention", cached)
def _(q: Any, k: Any, v: Any, **options: Any) -> Any:
    return s.decode_attention(q, k, v, **options)


def paged(r: Generator) -> Arguments:
    batch, num_blocks, block_size = integer(r, 1, 3), integer(r, 1, 5), pick(r, 4, 8, 16)
    per_sequence = integer(r, 1, 3)
    return {
        "q": floats(r, batch, 1, 4, 16), "k": floats(r, num_blocks, block_size, 2, 16),
        "v": floats(r, num_blocks, block_size, 2, 16),
        "block_table": ids(r, num_blocks, batch, per_sequence, dtype=torch.int32),
        "seq_lens": ids(r, per_sequence * block_size + 1, batch),
    }  # fmt: skip


@sample("decode_attention, paged", paged)
def _(q: Any, k: Any, v: Any, **options: Any) -> Any:
    return s.decode_attention(q, k, v, **options)


@sample("merge_attention", lambda r: {"out": floats(r, 2, 3, 1, 4, 16), "lse": floats(r, 2, 3, 1, 4)})
def _(out: Any, lse: Any) -> Any:
    return s.merge_attention(list(out), list(lse))


@sample(
    "random_table", lambda r: {"vocab_size": integer(r, 1, 30), "num_experts": integer(r, 2, 6), "k": integer(r, 1, 2)}
)
def _(**arguments: Any) -> Any:
    return s.random_table(**arguments, seed=0)


@sample(
    "balanced_table",
    lambda r: {"token_counts": ids(r, 100, integer(r, 1, 30)), "num_experts": integer(r, 2, 6), "k": integer(r, 1, 2)},
)
def _(**arguments: Any) -> Any:
    return s.balanced_table(**arguments, seed=0)


@sample("clustered_table", lambda r: {"embeddings": floats(r, integer(r, 6, 20), 4), "num_experts": integer(r, 2, 5)})
def _(**arguments: Any) -> Any:
    return s.clustered_table(**arguments, seed=0)


@sample(
    "dispersed_table",
    lambda r: {"embeddings": floats(r, 12, 4), "token_counts": ids(r, 50, 12), "num_experts": integer(r, 2, 5)},
)
def _(**arguments: Any) -> Any:
    return s.dispersed_table(**arguments, seed=0)


@sample("load_balance", lambda r: {**tabled(r), "token_ids": ids(r, 1, integer(r, 1, 15))})
def _(**arguments: Any) -> Any:
    return s.load_balance(**arguments)


@sample(
    "bigram_hash",
    lambda r: {
        "token_ids": ids(r, 50, integer(r, 1, 3), integer(r, 1, 9)),
        "num_experts": integer(r, 2, 6),
        "bos_id": 0,
    },
)
def _(**arguments: Any) -> Any:
    return s.bigram_hash(**arguments)
