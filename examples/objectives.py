"""What a task asks for: the loss that is trained, and the metric that is reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Classification", "MultiLabel", "Objective", "Regression", "WeightedClassification"]


class Objective(ABC):
    """Losses are sums, so that the parts of a batch on several workers add up to the mean over the whole batch.

    Attributes:
        metric: name of what ``score`` computes.
        higher: whether more of it is better.
    """

    metric: str
    higher = True

    @abstractmethod
    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Sum over the rows."""

    @abstractmethod
    def weight(self, y: Tensor) -> float:
        """What the sum is divided by."""

    @abstractmethod
    def score(self, outputs: Tensor, y: Tensor) -> float:
        """The metric of all outputs of a split."""


class Classification(Objective):
    """One class per row: cross entropy and accuracy."""

    metric = "accuracy"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y, reduction="sum")

    def weight(self, y: Tensor) -> float:
        return len(y)

    def score(self, outputs: Tensor, y: Tensor) -> float:
        return float((outputs.argmax(1) == y).double().mean())


@dataclass(frozen=True, eq=False)
class WeightedClassification(Objective):
    """One class per row, rare ones counting more: weighted cross entropy and macro F1 (PascalVOC-SP, COCO-SP).

    Args:
        class_weight: [num_classes], float.
    """

    class_weight: Tensor
    metric = "macro_f1"

    @classmethod
    def of_labels(cls, labels: Tensor, num_classes: int) -> WeightedClassification:
        """A class of n of N training labels weighs (N - n) / N."""
        return cls(1 - labels.bincount(minlength=num_classes) / len(labels))

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y, weight=self.class_weight.to(outputs), reduction="sum")

    def weight(self, y: Tensor) -> float:
        return float(self.class_weight[y.cpu()].sum())

    def score(self, outputs: Tensor, y: Tensor) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(y.numpy(), outputs.argmax(1).numpy(), average="macro", zero_division=0))


class MultiLabel(Objective):
    """Several yes or no per row: binary cross entropy, and the mean over the columns of the average precision."""

    metric = "average_precision"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, y.to(outputs.dtype), reduction="sum")

    def weight(self, y: Tensor) -> float:
        return y.numel()

    def score(self, outputs: Tensor, y: Tensor) -> float:
        from sklearn.metrics import average_precision_score

        mixed = [c for c in range(y.shape[1]) if 0 < int(y[:, c].sum()) < len(y)]  # a column of one kind has none
        scores = [average_precision_score(y[:, c].numpy(), outputs[:, c].numpy()) for c in mixed]
        return float(torch.tensor(scores, dtype=torch.float64).mean())


class Regression(Objective):
    """Numbers: mean absolute error."""

    metric = "mean_absolute_error"
    higher = False

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.l1_loss(outputs, y, reduction="sum")

    def weight(self, y: Tensor) -> float:
        return y.numel()

    def score(self, outputs: Tensor, y: Tensor) -> float:
        return float((outputs - y).abs().double().mean())
