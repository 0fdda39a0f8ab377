"""RingTransfer: carry a class half way around a ring, at equal parameters for every model.

    python examples/train_long_range.py                            # DRew with delay 1 on rings of 10 nodes
    python examples/train_long_range.py --size 30 --model gcn
    python examples/train_long_range.py --size 30 --model drew --delay inf

Node n/2 holds one of 5 classes as a one-hot vector, node 0 zeros, all others ones; the class is read at node 0 after
n/2 layers. One process; metrics are left as JSON lines in --output.

Source: Gutteridge et al. 2023, DRew: Dynamically Rewired Message Passing with Delay, section 5.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from ring_transfer import NUM_CLASSES, build_model, ring_features, rings
from torch import Tensor, nn

from gossamer.graph import CSR, k_hop

SPLITS = {"train": 1600, "validation": 200, "test": 200}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=10, help="nodes of a ring, even")
    parser.add_argument("--model", choices=["gcn", "spn", "drew"], default="drew")
    parser.add_argument("--delay", type=float, default=1, help="nu of DRew; inf for none")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None, help="file for the metrics (default: none)")
    options = parser.parse_args(arguments)
    if options.size < 4 or options.size % 2:
        parser.error(f"--size must be even and at least 4, got {options.size}")
    return options


class RingTransfer:
    """The task for one size of ring: balanced labels, and the shells of a batch, computed once per batch size."""

    def __init__(self, size: int, num_hops: int) -> None:
        self.size, self.num_hops = size, num_hops
        self.labels = {name: torch.arange(count) * NUM_CLASSES // count for name, count in SPLITS.items()}
        self._shells: dict[int, list[CSR]] = {}

    def logits(self, model: nn.Module, labels: Tensor) -> Tensor:
        if len(labels) not in self._shells:
            self._shells[len(labels)] = k_hop(rings(self.size, len(labels)), self.num_hops)
        return model(ring_features(self.size, labels), self._shells[len(labels)])[:: self.size]

    @torch.no_grad()
    def accuracy(self, model: nn.Module, split: str, batch_size: int) -> float:
        model.eval()
        batches = self.labels[split].split(batch_size)
        return sum(int((self.logits(model, b).argmax(1) == b).sum()) for b in batches) / SPLITS[split]


def build(options: argparse.Namespace) -> nn.Module:
    """Widths give every model the parameters of the GCN of width 256."""
    return build_model(f"drew-{options.delay}" if options.model == "drew" else options.model, options.size)


def train_epoch(task: RingTransfer, model: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int) -> float:
    """Mean loss over the training rings, in a new order."""
    model.train()
    labels, total = task.labels["train"], 0.0
    for batch in labels[torch.randperm(len(labels))].split(batch_size):
        optimizer.zero_grad()
        loss = F.cross_entropy(task.logits(model, batch), batch)
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(batch)
    return total / len(labels)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    options = parse(arguments)
    torch.manual_seed(options.seed)
    model = build(options)
    task = RingTransfer(options.size, model.num_hops)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{options.model}, rings of {options.size}: {len(model.convs)} layers, {num_parameters} parameters")
    metrics: dict[str, float] = {}
    for epoch in range(1, options.epochs + 1):
        start = time.perf_counter()
        loss = train_epoch(task, model, optimizer, options.batch_size)
        schedule.step()
        accuracy = {name: task.accuracy(model, name, options.batch_size) for name in ("validation", "test")}
        metrics = {"epoch": epoch, "loss": loss, **accuracy, "seconds": time.perf_counter() - start}
        print(" ".join(f"{name} {value:.4g}" for name, value in metrics.items()), flush=True)
        if options.output:
            with options.output.open("a") as file:
                file.write(json.dumps(metrics) + "\n")
    return metrics


if __name__ == "__main__":
    main()
