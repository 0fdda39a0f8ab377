"""Text for language models: what ships with Python, or a file; byte-pair encoding; windows of tokens by epoch."""

from __future__ import annotations

import ast
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gossamer.sparse_nn._checks import require, require_ids
from gossamer.sparse_nn._random import random_below, random_uniform

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "END", "encode", "file_documents", "python_documents", "split_documents", "train_tokenizer", "windows",
]  # fmt: skip

END = "<|end|>"  # behind every document, and token 0
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"}
LEAST_CHARACTERS = 2000


def python_documents(*, docstrings: bool = False) -> list[str]:
    """The English that comes with every Python: its language reference by topic (about 0.5 MB).

    Args:
        docstrings: also the docstrings of the standard library, one document per module (about 1.6 MB more).
    """
    from pydoc_data.topics import topics

    documents = [topics[name] for name in sorted(topics)]
    return documents + list(_module_documents()) if docstrings else documents


def file_documents(path: str | os.PathLike) -> list[str]:
    """The text of a file, cut at empty lines into documents of at least 2000 characters each."""
    documents, current = [], ""
    for paragraph in Path(path).read_text(encoding="utf-8").split("\n\n"):
        current += paragraph + "\n\n"
        if len(current) >= LEAST_CHARACTERS:
            documents.append(current)
            current = ""
    if current.strip():
        documents.append(current)
    return documents


def split_documents(documents: Sequence[str], *, seed: int, validation: float = 0.1) -> tuple[list[str], list[str]]:
    """Training and validation documents: each of the two keeps the order, and has at least one.

    Raises:
        ValueError: if there are fewer than two documents.
    """
    require(len(documents) >= 2, "split_documents", "documents", "at least 2", len(documents))
    require(0 < validation < 1, "split_documents", "validation", "in (0, 1)", validation)
    held_out = max(1, min(len(documents) - 1, round(validation * len(documents))))
    order = random_uniform(len(documents), seed=seed).argsort().tolist()
    chosen = set(order[:held_out])
    return (
        [text for i, text in enumerate(documents) if i not in chosen],
        [text for i, text in enumerate(documents) if i in chosen],
    )


def train_tokenizer(documents: Sequence[str], vocab_size: int) -> Tokenizer:
    """Byte-level byte-pair encoding of the tokenizers package; every text can be encoded.

    Raises:
        ValueError: if vocab_size is below 257, the bytes and the end token.

    Source: Sennrich et al. 2016, Neural Machine Translation of Rare Words with Subword Units.
    """
    require(vocab_size >= 257, "train_tokenizer", "vocab_size", "at least 257", vocab_size)
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> Tensor:
    """[num_tokens], int64: the documents one after the other, each with the end token behind it."""
    end = tokenizer.token_to_id(END)
    if end is None:
        raise ValueError(f"encode: tokenizer must have the token {END}, as train_tokenizer makes it, got none")
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(list(documents), add_special_tokens=False):
        ids += encoding.ids
        ids.append(end)
    return torch.tensor(ids, dtype=torch.int64)


def windows(tokens: Tensor, length: int, *, seed: int | None = None, epoch: int = 0) -> Tensor:
    """[num_windows, length + 1]: pieces of a token stream, each overlapping the next by one token.

    Position t of a window is predicted from the positions before. With a seed the pieces start at a random offset and
    come in random order, anew each epoch; without one they start at token 0, in order.

    Args:
        tokens: [num_tokens], integer, at least length + 1.
        length: predictions per window, at least 1.
        seed: equal (seed, epoch) give equal windows.
        epoch: number of the pass.
    """
    require_ids(tokens, "windows", "tokens")
    require(length >= 1, "windows", "length", "at least 1", length)
    require(tokens.dim() == 1 and len(tokens) > length, "windows", "tokens", f"more than {length}", tuple(tokens.shape))
    if seed is None:
        return tokens.unfold(0, length + 1, length)
    most = min(length, len(tokens) - length)
    start = int(random_below(most, 1, seed=seed, stream=2 * epoch))
    pieces = tokens[start:].unfold(0, length + 1, length)
    return pieces[random_uniform(len(pieces), seed=seed, stream=2 * epoch + 1).argsort()]


def _module_documents() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if SKIPPED.isdisjoint(path.relative_to(root).parts):
            found = _docstrings(path)
            if found:
                yield found


def _docstrings(path: Path) -> str:
    """All docstrings of a module; none of a file that is not valid Python, such as the templates of lib2to3."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(text for text in found if text)
