"""What a task asks for: the loss that is trained, and the metric that is reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from contacts import Pairs

__all__ = ["Classification", "ContactPrediction", "MultiLabel", "Objective", "Regression", "WeightedClassification"]


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


class ContactPrediction(Objective):
    """Whether two nodes are in contact, by the product of their rows: binary cross entropy and mean reciprocal rank.

    The rank of a contact (i, j) is that of j among all nodes of its graph by their product with i. Nothing is filtered,
    as in the published numbers of the benchmark: i itself and its other contacts are ranked too. Equals share their
    places. The mean is over the contacts of a graph, then over the graphs; one without contacts counts 0.
    """

    metric = "mean_reciprocal_rank"

    def loss(self, outputs: Tensor, y: Pairs) -> Tensor:
        products = (outputs[y.ends[0]] * outputs[y.ends[1]]).sum(1)
        return F.binary_cross_entropy_with_logits(products, y.labels.to(outputs.dtype), reduction="sum")

    def weight(self, y: Pairs) -> float:
        return len(y.labels)

    def score(self, outputs: Tensor, y: Pairs) -> float:
        head, tail = y.ends[:, y.labels > 0]
        ends = y.sizes.cumsum(0)
        graph = torch.bucketize(head, ends, right=True)
        begin = ends - y.sizes
        places = [
            _places(outputs, part_head, part_tail - begin[part], begin[part], y.sizes[part])
            for part_head, part_tail, part in zip(head.split(4096), tail.split(4096), graph.split(4096))
        ]
        found = torch.zeros(len(ends), dtype=torch.float64)
        found.index_add_(0, graph, 1 / torch.cat([*places, found[:0]]))
        return float((found / graph.bincount(minlength=len(ends)).clamp(min=1)).mean())


def _places(outputs: Tensor, head: Tensor, tail: Tensor, begin: Tensor, sizes: Tensor) -> Tensor:
    """[P]: the place of node ``tail`` of a graph among its nodes [begin, begin + sizes), by their product with head."""
    node = torch.arange(int(sizes.max()))
    inside = node < sizes[:, None]
    rows = outputs[torch.where(inside, begin[:, None] + node, 0)]  # [P, most nodes, width]
    products = torch.einsum("pw,pnw->pn", outputs[head], rows).masked_fill(~inside, -torch.inf)
    own = products.gather(1, tail[:, None])
    return 1 + (products > own).sum(1) + ((products == own).sum(1) - 1).double() / 2
