"""What the experiments with language models share: text, one training run, and the command line."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gossamer.sparse_nn import SparseTransformer, SparseTransformerConfig, text

from reproduction import Runs

__all__ = ["Data", "load_data", "run_seeds", "train"]

VOCAB_SIZE, CONTEXT, BATCH = 1024, 64, 16
WARM_UP, CLIP = 50, 1.0


@dataclass(frozen=True)
class Data:
    """Token streams [num_tokens] of training and validation documents, and how often each token is in training."""

    train: Tensor
    validation: Tensor
    token_counts: Tensor


@cache
def load_data() -> Data:
    """The language reference of Python and the docstrings of its standard library, in 1024 byte-pair tokens."""
    train, validation = text.split_documents(text.python_documents(docstrings=True), seed=0)
    tokenizer = text.train_tokenizer(train, VOCAB_SIZE)
    tokens = text.encode(tokenizer, train)
    return Data(tokens, text.encode(tokenizer, validation), tokens.bincount(minlength=VOCAB_SIZE))


def train(
    config: SparseTransformerConfig, *, seed: int, num_steps: int, rate: float = 3e-3, table: Tensor | None = None
) -> tuple[SparseTransformer, float, float]:
    """Train with AdamW, a warm-up and a cosine; returns the model, its validation loss in nats, and the seconds.

    The seed draws weights and order of the windows; equal seeds see equal windows whatever the model.
    """
    torch.manual_seed(seed)
    begin, data = time.process_time(), load_data()
    model = SparseTransformer(config, table=table)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, num_steps))
    for step, batch in enumerate(_batches(data.train, seed, num_steps)):
        loss = model(batch[:, :-1], batch[:, 1:])
        assert loss.isfinite(), f"step {step}"
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    return model, evaluate(model, data.validation), time.process_time() - begin


@torch.no_grad()
def evaluate(model: SparseTransformer, tokens: Tensor) -> float:
    """Mean cross entropy in nats over a token stream, cut into windows."""
    model.eval()
    pieces = text.windows(tokens, CONTEXT)
    losses = [model(batch[:, :-1], batch[:, 1:]).item() * len(batch) for batch in pieces.split(4 * BATCH)]
    return sum(losses) / len(pieces)


def run_seeds(
    description: str | None,
    runs: Runs,
    seeds: Sequence[int],
    models: Sequence[str],
    measure: Callable[[int, Sequence[str]], Iterator[dict[str, Any]]],
    report: Callable[[list[dict[str, Any]]], None],
) -> None:
    """The command line of an experiment: make the runs that are not kept yet, and write the page when all are there.

    Args:
        description: what --help says.
        runs: where runs are kept, as {"model", "seed", ...}.
        seeds: of the whole experiment; --seeds chooses some.
        models: names of the runs of each seed.
        measure: (seed, models that are done) gives the other runs of a seed.
        report: writes page and plot.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(seeds), choices=seeds)
    parser.add_argument("--page", action="store_true", help="write the page from the runs that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in [] if options.page else options.seeds:
        for run in measure(seed, [run["model"] for run in runs.read() if run["seed"] == seed]):
            runs.add(run)
            print(run, flush=True)
    found = runs.read()
    if {(run["model"], run["seed"]) for run in found} == {(model, seed) for model in models for seed in seeds}:
        report(found)


def _rate(step: int, num_steps: int) -> float:
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, num_steps - WARM_UP)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def _batches(tokens: Tensor, seed: int, num_steps: int) -> list[Tensor]:
    """Batches [BATCH, CONTEXT + 1] of as many epochs as it takes."""
    batches: list[Tensor] = []
    epoch = 0
    while len(batches) < num_steps:
        pieces = text.windows(tokens, CONTEXT, seed=seed, epoch=epoch)
        batches += pieces[: len(pieces) // BATCH * BATCH].split(BATCH)
        epoch += 1
    return batches[:num_steps]
