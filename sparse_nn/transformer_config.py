"""What a SparseTransformer is made of, as a value that is checked once and goes to and from JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from gossamer.sparse_nn._checks import require
from gossamer.sparse_nn.expert_mlp import ACTIVATIONS
from gossamer.sparse_nn.hashes import CONTEXTS

__all__ = ["SparseTransformerConfig"]

NAME = "SparseTransformerConfig"
ROUTERS = ("hash", "weighted_hash", "top_k")
HASHES = ("token", *CONTEXTS)


@dataclass(frozen=True)
class SparseTransformerConfig:
    """Sizes and choices of a decoder-only language model.

    Attributes:
        vocab_size: number of token ids.
        d_model: width of a token; even number of dimensions per head for rotary positions.
        num_layers: blocks of attention and feed-forward.
        num_heads: query heads.
        num_kv_heads: key/value heads; 1 is multi-query attention, num_heads is multi-head.
        head_dim: per head; d_model / num_heads by default.
        d_ff: inner width of a dense feed-forward layer, and of one expert.
        max_len: positions of the learned table, and the context that training and generation are meant for.
        positions: rotary or learned.
        activation: relu, gelu or swiglu.
        dropout: on embeddings and on what each half of a block adds, in [0, 1).
        expert_layers: blocks with experts, in [0, num_layers); all others are dense.
        num_experts: experts of each such block (per segment for MultiHash).
        top_k: experts per token; the columns of the hash table.
        router: hash (fixed by the token id, gates 1), weighted_hash (fixed experts, learned gates) or top_k (learned).
        hash: what is hashed: token, previous_token, bigram, position, or oracle_future (leaks the label).
        num_hashes: N of MultiHash: segments of d_ff / N, each with a hash of its own.
        num_shared_experts: experts that see every token.
        capacity_factor: of the top_k router in training; in evaluation no token is dropped. None never drops.
        balance_weight: of the load balance loss of the top_k router.
        bos_id: token that stands before the first, for hashes that look back.
        recompute: keep only the input of each block and compute it again in the backward pass; under torch.compile the
            compiler decides what is kept.
        seed: of the hash table that is drawn where none is given.
    """

    vocab_size: int
    d_model: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 1
    head_dim: int | None = None
    d_ff: int = 512
    max_len: int = 256
    positions: str = "rotary"
    activation: str = "gelu"
    dropout: float = 0.0
    expert_layers: tuple[int, ...] = ()
    num_experts: int = 16
    top_k: int = 1
    router: str = "hash"
    hash: str = "token"
    num_hashes: int = 1
    num_shared_experts: int = 0
    capacity_factor: float | None = None
    balance_weight: float = 0.0
    bos_id: int = 0
    recompute: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "expert_layers", tuple(self.expert_layers))
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff", "max_len",
                     "num_experts", "top_k", "num_hashes"):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{NAME}: {name} must be an integer, got {value!r}")
            require(value >= 1, NAME, name, "at least 1", value)
        self._check_choices()
        self._check_experts()

    def _check_choices(self) -> None:
        for name, allowed in (("positions", ("rotary", "learned")), ("activation", ACTIVATIONS), ("router", ROUTERS),
                              ("hash", HASHES)):  # fmt: skip
            value = getattr(self, name)
            require(value in allowed, NAME, name, f"one of {', '.join(allowed)}", repr(value))
        whole = self.head_dim is not None or self.d_model % self.num_heads == 0
        require(whole, NAME, "num_heads", f"a divisor of d_model ({self.d_model}) where head_dim is not given",
                self.num_heads)  # fmt: skip
        require(self.num_heads % self.num_kv_heads == 0, NAME, "num_kv_heads", f"a divisor of {self.num_heads}",
                self.num_kv_heads)  # fmt: skip
        require(0 <= self.dropout < 1, NAME, "dropout", "in [0, 1)", self.dropout)
        require(0 <= self.bos_id < self.vocab_size, NAME, "bos_id", f"in [0, {self.vocab_size})", self.bos_id)

    def _check_experts(self) -> None:
        layers = self.expert_layers
        fits = len(set(layers)) == len(layers) and all(0 <= layer < self.num_layers for layer in layers)
        require(fits, NAME, "expert_layers", f"different layers in [0, {self.num_layers})", layers)
        require(self.top_k <= self.num_experts, NAME, "top_k", f"at most {self.num_experts}", self.top_k)
        require(self.hash == "token" or self.router == "hash", NAME, "hash", f"token with router {self.router}",
                repr(self.hash))  # fmt: skip
        if self.num_hashes > 1:
            plain = self.router == "hash" and self.hash == "token" and self.top_k == 1
            require(plain, NAME, "num_hashes", "1 unless router is hash, hash is token and top_k is 1", self.num_hashes)
            require(self.d_ff % self.num_hashes == 0, NAME, "num_hashes", f"a divisor of {self.d_ff}", self.num_hashes)

    def to_json(self) -> str:
        """All fields, as ``from_json`` reads them."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SparseTransformerConfig:
        """The config that ``to_json`` wrote.

        Raises:
            ValueError: if the text is no JSON object, or names a field that there is not.
        """
        try:
            values: Any = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{NAME}.from_json: text must be JSON, got {error}") from None
        require(isinstance(values, dict), f"{NAME}.from_json", "text", "a JSON object", type(values).__name__)
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        require(not unknown, f"{NAME}.from_json", "text", "of known fields", unknown)
        require("vocab_size" in values, f"{NAME}.from_json", "text", "with a vocab_size", sorted(values))
        return cls(**values)
