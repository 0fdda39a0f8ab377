"""Text from a language model: prompts of different length at once, one cache, one seed per prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gossamer.sparse_nn._checks import require
from gossamer.sparse_nn._random import random_uniform
from gossamer.sparse_nn.kv_cache import CacheFullError, KVCache

if TYPE_CHECKING:
    from gossamer.sparse_nn.transformer import SparseTransformer

__all__ = ["TransformerCache", "generate", "sample_tokens"]


class TransformerCache:
    """What a model remembers of a batch of sequences: keys and values of every layer, and the tokens.

    Made by ``SparseTransformer.new_cache``.
    """

    def __init__(self, layers: list[KVCache], batch_size: int, max_len: int, device: torch.device) -> None:
        self.layers, self.max_len = layers, max_len
        self.lengths = [0] * batch_size
        self.token_ids = torch.zeros(batch_size, max_len, dtype=torch.int64, device=device)

    def remember(self, input_ids: Tensor) -> Tensor:
        """Write tokens [B, Q] behind the last of every sequence, and give their positions [B, Q]."""
        batch_size, count = input_ids.shape
        require(batch_size == len(self.lengths), "decode", "input_ids", f"[{len(self.lengths)}, Q]",
                tuple(input_ids.shape))  # fmt: skip
        room = self.max_len - max(self.lengths)
        if count > room:
            raise CacheFullError(
                f"decode: input_ids must be of at most {room} more positions (max_len is {self.max_len}), got {count}"
            )
        start = torch.tensor(self.lengths, device=self.token_ids.device)[:, None]
        positions = start + torch.arange(count, device=start.device)
        self.token_ids.scatter_(1, positions, input_ids.long())
        return positions

    def advance(self, counts: Sequence[int]) -> None:
        """Keep the first counts[b] of the positions that were appended last; the rest was padding."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts)]
        for layer in self.layers:
            layer.truncate(self.lengths)


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: see ``generate``."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require(self.temperature >= 0, "generate", "temperature", "at least 0", self.temperature)
        require(self.top_k is None or self.top_k >= 1, "generate", "top_k", "at least 1", self.top_k)
        require(0 < self.top_p <= 1, "generate", "top_p", "in (0, 1]", self.top_p)


def generate(
    model: SparseTransformer,
    prompts: Sequence[Sequence[int] | Tensor],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    eos_id: int | None = None,
    on_token: Callable[[int, int], Any] | None = None,
) -> list[Tensor]:
    """Continue every prompt by up to max_new_tokens tokens, all prompts together.

    Prompts are read in one pass, padded on the right to the longest; padding has no effect. A prompt is continued as it
    would be alone, and draws its tokens from a random stream of its own: equal seeds give equal tokens.

    Args:
        model: in evaluation or training mode, which is restored.
        prompts: token ids, at least one per prompt.
        max_new_tokens: at least 1.
        temperature: divides the logits; 0 takes the most probable token (greedy).
        top_k: draw from the k most probable tokens only.
        top_p: draw from the fewest tokens whose probabilities sum to at least this.
        seed: prompt i draws with seed + i.
        eos_id: a prompt ends with this token, which is kept; None never ends early.
        on_token: called with (prompt, token) as soon as a token is known.

    Returns:
        The new tokens of every prompt, int64.

    Raises:
        ValueError: for an empty prompt or an option out of range, for more positions than a learned table has, and for
            a model that hashes the future.

    Source: Holtzman et al. 2020 (top-p); Fan et al. 2018 (top-k).
    """
    sampling = Sampling(temperature, top_k, top_p)
    device = model.embedding.weight.device
    rows = [_prompt(prompt, device) for prompt in prompts]
    require(max_new_tokens >= 1, "generate", "max_new_tokens", "at least 1", max_new_tokens)
    require(model.config.hash != "oracle_future", "generate", "model", "one that hashes what is known", "oracle_future")
    if not rows:
        return []
    lengths = [len(row) for row in rows]
    most = max(lengths) + max_new_tokens - 1  # the last token is not read
    require(model.config.positions == "rotary" or most <= model.config.max_len, "generate", "max_new_tokens",
            f"at most {model.config.max_len + 1 - max(lengths)} behind the longest prompt", max_new_tokens)  # fmt: skip
    training = model.training
    model.eval()
    try:
        cache = model.new_cache(len(rows), most)
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return _continue(model, cache, padded, lengths, max_new_tokens, sampling, seed, eos_id, on_token)
    finally:
        model.train(training)


def _continue(
    model: SparseTransformer, cache: TransformerCache, tokens: Tensor, lengths: list[int] | None, max_new_tokens: int,
    sampling: Sampling, seed: int, eos_id: int | None, on_token: Callable[[int, int], Any] | None,
) -> list[Tensor]:  # fmt: skip
    """The loop over new tokens; prompts that have ended go on, unheard."""
    found: list[list[int]] = [[] for _ in tokens]
    running = set(range(len(tokens)))
    for step in range(max_new_tokens):
        logits = model.decode(tokens, cache, lengths)
        chosen = sample_tokens(logits, sampling, seed=seed, step=step)
        tokens, lengths = chosen[:, None], None
        for row, token in enumerate(chosen.tolist()):
            if row not in running:
                continue
            found[row].append(token)
            if on_token is not None:
                on_token(row, token)
            if token == eos_id:
                running.remove(row)
        if not running:
            break
    return [torch.tensor(row, dtype=torch.int64) for row in found]


def sample_tokens(logits: Tensor, sampling: Sampling, *, seed: int, step: int) -> Tensor:
    """One token [B] per row of logits [B, vocab_size]; row b draws number ``step`` of the stream of seed + b."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    ranked, order = (logits.double() / sampling.temperature).sort(dim=-1, descending=True, stable=True)
    ranked = ranked[:, : sampling.top_k]
    probabilities = ranked.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # the mass of all more probable tokens
    probabilities = torch.where(before < sampling.top_p, probabilities, 0.0)
    cumulated = probabilities.cumsum(-1)
    draws = torch.stack([random_uniform(1, seed=seed + row, stream=step) for row in range(len(logits))])
    place = torch.searchsorted(cumulated, draws.to(logits.device) * cumulated[:, -1:], right=True)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1
    return order.gather(1, torch.minimum(place, last)).flatten()


def _prompt(prompt: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    row = torch.as_tensor(prompt, device=device)
    good = row.dim() == 1 and len(row) > 0 and row.dtype in (torch.int32, torch.int64)
    require(good, "generate", "prompts", "lists of at least one token id", prompt)
    return row.long()
