"""Train a small language model with hash layers on real text, with DeepSpeed on local workers.

    python examples/train_lm.py                          # the language reference of Python, two workers
    python examples/train_lm.py --text FILE --epochs 10
    python examples/train_lm.py --resume --epochs 20     # go on with the newest run

The script starts the deepspeed launcher itself. Everything about a run is left in runs/NAME; runs/NAME/model is what
examples/generate.py reads. --resume takes all settings but the number of epochs from there. An epoch is one pass over
the training text; every worker takes its share of each batch.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LambdaLR

from gossamer import distributed
from gossamer.distributed.backend import make_optimizer
from gossamer.distributed.checkpoint import find_checkpoint, write_checkpoint
from gossamer.sparse_nn import SparseTransformer, SparseTransformerConfig, balanced_table, load_balance, text

from job import StopFlag, add_run_options, open_run, read_config, read_settings, run
from recorder import Monitor, write_whole

HERE = Path(__file__).resolve().parent


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("text and model")
    data.add_argument("--text", default=None, help="a text file (default: the language reference that Python ships)")
    data.add_argument("--vocab-size", type=int, default=2048, help="tokens of the byte-pair encoding")
    data.add_argument("--context", type=int, default=128, help="tokens per window")
    data.add_argument("--layers", type=int, default=4)
    data.add_argument("--width", type=int, default=128)
    data.add_argument("--heads", type=int, default=4)
    data.add_argument("--kv-heads", type=int, default=1, help="1 is multi-query attention")
    data.add_argument("--expert-layers", type=int, nargs="*", default=None, help="default: the last layer")
    data.add_argument("--experts", type=int, default=16)
    data.add_argument("--router", choices=["hash", "weighted_hash", "top_k"], default="hash")
    data.add_argument("--dropout", type=float, default=0.1)
    data.add_argument("--recompute", action="store_true", help="recompute layers in the backward pass")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int, default=None, help="in all, resumed ones included (default 6)")
    training.add_argument("--batch", type=int, default=None, help="windows per worker (default: that of --config)")
    training.add_argument("--lr", type=float, default=None, help="learning rate (default: that of --config)")
    training.add_argument("--warmup", type=int, default=50, metavar="STEPS", help="unless --config has a scheduler")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--config", default=str(HERE / "lm.json"), help="DeepSpeed configuration (JSON)")
    training.add_argument("--save-every", type=int, default=1, metavar="EPOCHS")
    add_run_options(parser)
    return parser.parse_args(arguments)


def main() -> int:
    return run(__file__, parse(), prepare, train)


def prepare(arguments: argparse.Namespace) -> Path:
    """Check what can be checked before any worker starts, make or find the run's folder, and train the tokenizer."""
    folder = open_run(
        arguments,
        default_epochs=6,
        complete=complete,
        check=check,
        default_name=lambda new: f"lm-{Path(new.text).stem if new.text else 'python'}-{new.router}",
    )
    if not (folder / "tokenizer.json").exists():
        training, _ = load_text(arguments)
        write_whole(folder / "tokenizer.json", text.train_tokenizer(training, arguments.vocab_size).to_str())
    return folder


def complete(arguments: argparse.Namespace) -> None:
    """Settle what the command line leaves open: the DeepSpeed configuration and the layers with experts."""
    config = read_config(arguments.config)
    if arguments.batch is not None:
        config["train_micro_batch_size_per_gpu"] = arguments.batch
    if arguments.lr is not None:
        config.setdefault("optimizer", {"type": "AdamW"}).setdefault("params", {})["lr"] = arguments.lr
    arguments.configuration = config
    if arguments.expert_layers is None:
        arguments.expert_layers = [arguments.layers - 1]
    if arguments.text is not None:
        arguments.text = str(Path(arguments.text).resolve())


def check(arguments: argparse.Namespace) -> None:
    """Raise ValueError or OSError for a run that could not start."""
    for name in ("workers", "epochs", "save_every", "vocab_size", "context"):
        least = 257 if name == "vocab_size" else 1
        if getattr(arguments, name) < least:
            raise ValueError(f"train_lm: {name} must be at least {least}, got {getattr(arguments, name)}")
    batch = arguments.configuration.get("train_micro_batch_size_per_gpu")
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(f"train_lm: train_micro_batch_size_per_gpu must be at least 1, got {batch!r}")
    characters = min(sum(map(len, documents)) for documents in load_text(arguments))
    if characters < arguments.context * batch * arguments.workers:  # a token is at least one character
        raise ValueError(f"train_lm: text must fill a batch in training and validation, got {characters} characters")
    config = model_config(arguments, arguments.vocab_size)
    make_optimizer(SparseTransformer(config), arguments.configuration)


def load_text(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Documents for training and validation."""
    documents = text.python_documents() if arguments.text is None else text.file_documents(arguments.text)
    return text.split_documents(documents, seed=arguments.seed)


def model_config(arguments: argparse.Namespace, vocab_size: int) -> SparseTransformerConfig:
    return SparseTransformerConfig(
        vocab_size=vocab_size,
        d_model=arguments.width,
        num_layers=arguments.layers,
        num_heads=arguments.heads,
        num_kv_heads=arguments.kv_heads,
        d_ff=4 * arguments.width,
        max_len=arguments.context,
        dropout=arguments.dropout,
        expert_layers=tuple(arguments.expert_layers),
        num_experts=arguments.experts,
        router=arguments.router,
        balance_weight=0.01 if arguments.router == "top_k" else 0.0,
        recompute=arguments.recompute,
        seed=arguments.seed,
    )


def train(arguments: argparse.Namespace) -> int:
    """What every worker runs."""
    import tokenizers

    folder = read_settings(arguments)
    stop = StopFlag()
    device = distributed.init_distributed(arguments.device)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    streams = [text.encode(tokenizer, documents) for documents in load_text(arguments)]
    trainer = Trainer(arguments, tokenizer.get_vocab_size(), streams, device)
    checkpoints = folder / "checkpoints"
    if distributed.find_latest(checkpoints):
        trainer.load(checkpoints)
    monitor = make_monitor(folder, trainer, arguments) if trainer.rank == 0 else None
    stopped = False
    while trainer.epoch < arguments.epochs and not stopped:
        line = trainer.train_epoch(lambda loss: monitor.advance(loss=f"{loss:.3f}") if monitor else None)
        line |= trainer.evaluate()
        if monitor:
            monitor.show(line, speed=f"{line['tokens_per_second']} tokens/s")
        stopped = trainer.any_worker(stop.requested)
        if trainer.epoch == arguments.epochs or stopped or trainer.epoch % arguments.save_every == 0:
            trainer.save(checkpoints)
            if trainer.rank == 0:
                save_model(folder, trainer.model)
    if monitor:
        monitor.finish("interrupted, --resume goes on" if stopped else "finished")
    distributed.leave_distributed()
    return 0


def save_model(folder: Path, model: SparseTransformer) -> None:
    """Leave what generation needs in folder/model: weights, configuration, tokenizer."""
    partial, target = folder / ".model.partial", folder / "model"
    shutil.rmtree(partial, ignore_errors=True)
    model.save(partial)
    shutil.copy(folder / "tokenizer.json", partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def warm_up(num_steps: int) -> Callable[[int], float]:
    """The learning rate as a share of the full one: rising, then constant (a run can go on)."""
    return lambda step: min(1.0, (step + 1) / max(1, num_steps))


class Trainer:
    """The model under DeepSpeed, and the passes over the text; a worker's share is a slice of every batch."""

    def __init__(
        self, arguments: argparse.Namespace, vocab_size: int, streams: list[torch.Tensor], device: torch.device
    ) -> None:
        import deepspeed

        self.streams, self.device, self.seed, self.context = streams, device, arguments.seed, arguments.context
        self.rank, self.num_workers = dist.get_rank(), dist.get_world_size()
        self.batch = arguments.configuration["train_micro_batch_size_per_gpu"]
        self.epoch = 0
        config = model_config(arguments, vocab_size)
        torch.manual_seed(self.seed)
        hashed = config.expert_layers and config.router != "top_k"
        counts = streams[0].bincount(minlength=vocab_size)
        table = balanced_table(counts, config.num_experts, config.top_k, seed=self.seed) if hashed else None
        self.model = SparseTransformer(config, table=table).to(device)
        self.balance = str(load_balance(table, streams[1], config.num_experts)) if table is not None else None
        settings = {key: value for key, value in arguments.configuration.items() if key != "optimizer"}
        optimizer = make_optimizer(self.model, arguments.configuration)
        own = None if "scheduler" in settings else lambda wrapped: LambdaLR(wrapped, warm_up(arguments.warmup))
        warnings.filterwarnings("ignore", "`torch.distributed.all_gather_into_tensor`", FutureWarning)  # in DeepSpeed
        self.engine = deepspeed.initialize(
            model=self.model, optimizer=optimizer, lr_scheduler=own, config=settings
        )[0]  # fmt: skip

    @property
    def batches_per_epoch(self) -> int:
        """The same in every epoch, wherever its windows start."""
        return max(1, (len(self.streams[0]) - self.context) // self.context // (self.batch * self.num_workers))

    def train_epoch(self, progress: Any) -> dict[str, Any]:
        """One pass in an order that follows from the seed and the epoch."""
        begin, total = time.perf_counter(), 0.0
        pieces = text.windows(self.streams[0], self.context, seed=self.seed, epoch=self.epoch)
        self.model.train()
        for step in range(self.batches_per_epoch):
            batch = self._share(pieces, step)
            torch.manual_seed((self.seed + 1) * 2**32 + self.engine.global_steps * self.num_workers + self.rank)
            loss = self.engine(batch[:, :-1], batch[:, 1:])
            self.engine.backward(loss)
            self.engine.step()
            total += loss.item()
            progress(loss.item())
        loss = self._mean(total, self.batches_per_epoch)
        seconds = time.perf_counter() - begin
        tokens = self.batches_per_epoch * self.batch * self.num_workers * self.context
        self.epoch += 1
        return {"epoch": self.epoch - 1, "loss": loss, "perplexity": math.exp(loss), "seconds": round(seconds, 3),
                "tokens_per_second": round(tokens / seconds)}  # fmt: skip

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Cross entropy and perplexity over the validation text; each worker takes every num_workers-th batch."""
        self.model.eval()
        pieces = text.windows(self.streams[1], self.context)
        total, count = 0.0, 0
        for batch in pieces.split(self.batch)[self.rank :: self.num_workers]:
            batch = batch.to(self.device)
            total += self.model(batch[:, :-1], batch[:, 1:]).item() * len(batch)
            count += len(batch)
        loss = self._mean(total, count)
        return {"val_loss": loss, "val_perplexity": math.exp(loss)}

    def any_worker(self, flag: bool) -> bool:
        """True on all workers if the flag is set on one."""
        flags = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(flags)
        return flags.item() > 0

    def save(self, folder: Path) -> None:
        write_checkpoint(
            str(folder), self._description(), lambda path: self.engine.save_checkpoint(path, tag="state"),
            is_first=self.rank == 0, barrier=dist.barrier,
        )  # fmt: skip

    def load(self, folder: Path) -> None:
        path, found = find_checkpoint(str(folder), self._description())
        self.engine.load_checkpoint(path, tag="state")
        self.epoch = found["epoch"]

    def _description(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the run that goes on from it."""
        return {"epoch": self.epoch, "num_workers": self.num_workers, "model": self.model.config.to_json()}

    def _share(self, pieces: torch.Tensor, step: int) -> torch.Tensor:
        first = (step * self.num_workers + self.rank) * self.batch
        return pieces[first : first + self.batch].to(self.device)

    def _mean(self, total: float, count: int) -> float:
        """The mean over the workers, each with a sum of ``count`` values."""
        sums = torch.tensor([total, count], dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return (sums[0] / sums[1]).item()


def make_monitor(folder: Path, trainer: Trainer, arguments: argparse.Namespace) -> Monitor:
    """Worker 0's view of the run."""
    model = trainer.model
    title = (
        f"{Path(arguments.text).name if arguments.text else 'Python language reference'}: "
        f"{arguments.layers} layers, {model.num_parameters() / 1e6:.2f} M parameters, "
        f"{model.num_parameters(active=True) / 1e6:.2f} M per token, {trainer.num_workers} workers"
    )
    monitor = Monitor(
        folder, title, epochs=arguments.epochs, first_epoch=trainer.epoch, metric="perplexity", higher=False,
        steps_per_epoch=trainer.batches_per_epoch,
    )  # fmt: skip
    if trainer.balance:
        print(f"load of the {arguments.experts} experts on the validation text: {trainer.balance}", flush=True)
    return monitor


if __name__ == "__main__":
    sys.exit(main())
