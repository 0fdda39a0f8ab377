"""Continue text with a language model: the one that train_lm.py left in runs/, or a tiny one trained on the spot.

    python examples/generate.py --prompt "A function is"
    python examples/generate.py --prompt "The with statement" --prompt "Lists are" --temperature 0.7
    python examples/generate.py --model runs/NAME/model --greedy

One prompt is streamed to the terminal; several go together through one cache and are shown when they are done. The
model is given, or that of the newest run under --runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gossamer.sparse_nn import SparseTransformer, SparseTransformerConfig, balanced_table, text

PROMPT = "The statement"
TINY_STEPS, TINY_BATCH = 300, 16


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", action="append", help=f"may be repeated (default: {PROMPT!r})")
    parser.add_argument("--model", type=Path, default=None, help="folder that train_lm.py left as runs/NAME/model")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where to look for the newest run with a model")
    parser.add_argument("--max-new-tokens", type=int, default=120)
    parser.add_argument("--greedy", action="store_true", help="always the most probable token")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    try:
        return generate(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def generate(arguments: argparse.Namespace) -> int:
    """Load or train a model, and continue the prompts."""
    folder = arguments.model or newest_model(arguments.runs)
    if folder is None:
        print(f"no run with a model under {arguments.runs}/: training a tiny one (make train-lm trains a better one)")
        model, tokenizer = tiny_model()
    else:
        model, tokenizer = load(folder)
        print(f"model: {folder}")
    prompts = arguments.prompt or [PROMPT]
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    stream = Stream(tokenizer, prompts[0]) if len(prompts) == 1 else None
    begin = time.perf_counter()
    found = model.generate(
        ids,
        arguments.max_new_tokens,
        temperature=0.0 if arguments.greedy else arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        eos_id=tokenizer.token_to_id(text.END),
        on_token=stream.add if stream else None,
    )
    seconds = time.perf_counter() - begin
    if stream:
        print()
    else:
        for prompt, tokens in zip(prompts, found):
            print(f"--- {prompt}{tokenizer.decode(tokens.tolist())}")
    count = sum(map(len, found))
    print(f"\n{count} tokens in {seconds:.2f} s: {count / seconds:.0f} tokens per second", flush=True)
    return 0


class Stream:
    """Prints the text of one prompt as its tokens come; a token may end inside a character."""

    def __init__(self, tokenizer: Any, prompt: str) -> None:
        self._tokenizer, self._tokens, self._shown = tokenizer, [], ""
        print(prompt, end="", flush=True)

    def add(self, row: int, token: int) -> None:
        self._tokens.append(token)
        whole = self._tokenizer.decode(self._tokens)
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):
            print(whole[len(self._shown) :], end="", flush=True)
            self._shown = whole


def newest_model(runs: Path) -> Path | None:
    """Folder of the model that was saved last."""
    found = sorted(runs.glob("*/model/model.safetensors"), key=os.path.getmtime)
    return found[-1].parent if found else None


def load(folder: Path) -> tuple[SparseTransformer, Any]:
    """A model and its tokenizer."""
    import tokenizers

    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).exists():
            raise ValueError(f"generate: model must be a folder with {name}, got {folder}")
    return SparseTransformer.load(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids behind an end token, which stands before every document of the training text but the first."""
    return [tokenizer.token_to_id(text.END), *tokenizer.encode(prompt, add_special_tokens=False).ids]


def tiny_model() -> tuple[SparseTransformer, Any]:
    """One layer of 8 experts, trained for some seconds on the language reference of Python."""
    from tqdm import tqdm

    documents = text.python_documents()
    tokenizer = text.train_tokenizer(documents, 512)
    tokens = text.encode(tokenizer, documents)
    torch.manual_seed(0)
    config = SparseTransformerConfig(vocab_size=tokenizer.get_vocab_size(), d_model=64, num_layers=2, num_heads=4,
                                     d_ff=128, max_len=64, num_experts=8, expert_layers=(1,))  # fmt: skip
    table = balanced_table(tokens.bincount(minlength=config.vocab_size), 8, seed=0)
    model = SparseTransformer(config, table=table)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = text.windows(tokens, config.max_len, seed=0).split(TINY_BATCH)
    for step in (bar := tqdm(range(TINY_STEPS), unit="step")):
        batch = batches[step % len(batches)]
        loss = model(batch[:, :-1], batch[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model, tokenizer


if __name__ == "__main__":
    sys.exit(main())
