"""What the layers of a graph network are trained for when each has a loss of its own (ForwardGNN).

An objective says on which graphs and features (``View``) a layer runs and what its loss is; it is the same for all
layers, and hands the outputs of one layer on as the inputs of the next.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.csr import CSR

__all__ = ["ForwardForward", "LocalObjective", "SingleForward", "View"]


class View(NamedTuple):
    """What a layer is run on: a graph and the features of its nodes."""

    graph: Any
    x: Tensor


class LocalObjective(ABC):
    """What every layer is trained for.

    Args:
        graph: the edges.
        x: [num_nodes, num_features], floating point.
        labels: [num_nodes], int64, in [0, num_classes); only those of training nodes are read.
        train_mask: [num_nodes], bool, with at least one node.
        num_classes: at least 2.

    Raises:
        TypeError, ValueError: if one of them has another type, shape or range.
    """

    train_views: list[View]  # of the first layer
    test_views: list[View]

    @typed
    def __init__(self, graph: CSR, x: Tensor, labels: Tensor, train_mask: Tensor, num_classes: int) -> None:
        name, num_nodes = type(self).__name__, graph.num_nodes
        if train_mask.dtype != torch.bool or labels.dtype != torch.int64:
            raise TypeError(
                f"{name}: labels and train_mask must be int64 and bool, got {labels.dtype} and {train_mask.dtype}"
            )
        if x.dim() != 2 or len(x) != num_nodes or labels.shape != (num_nodes,) or train_mask.shape != (num_nodes,):
            raise ValueError(
                f"{name}: x, labels and train_mask must have one row for each of the {num_nodes} nodes, "
                f"got {[list(t.shape) for t in (x, labels, train_mask)]}"
            )
        if num_classes < 2:
            raise ValueError(f"{name}: num_classes must be at least 2, got {num_classes}")
        self.num_nodes, self.num_classes = num_nodes, num_classes
        self.train_nodes = train_mask.nonzero()[:, 0]
        self.train_labels = labels[self.train_nodes]
        if (
            len(self.train_nodes) == 0
            or not 0 <= int(self.train_labels.min()) <= int(self.train_labels.max()) < num_classes
        ):
            raise ValueError(f"{name}: labels must be in [0, {num_classes}) on at least one training node")

    @property
    def in_channels(self) -> int:
        """Width of the features of the first layer."""
        return self.train_views[0].x.shape[1]

    @abstractmethod
    def loss(self, outputs: Sequence[Tensor]) -> Tensor:
        """The loss of one layer, from its outputs on the training views."""

    @abstractmethod
    def scores(self, outputs: Sequence[Tensor]) -> Tensor:
        """[num_nodes, num_classes], the vote of one layer, from its outputs on the test views; layers are summed."""

    def next_train_views(self, views: Sequence[View], outputs: Sequence[Tensor]) -> list[View]:
        """Inputs of the next layer."""
        return [View(view.graph, out.detach()) for view, out in zip(views, outputs)]

    def next_test_views(self, views: Sequence[View], outputs: Sequence[Tensor]) -> list[View]:
        """Inputs of the next layer for a prediction."""
        return [View(view.graph, out.detach()) for view, out in zip(views, outputs)]


class SingleForward(LocalObjective):
    """One pass over a graph with a node per class, linked both ways to the training nodes of that class.

    A layer's logits are the products of its node rows with its class rows over the temperature, its loss their
    cross-entropy on the training nodes; layers vote with their softmax.

    Args:
        graph, x, labels, train_mask, num_classes: as in LocalObjective.
        temperature: above 0.
        class_edges: ``both`` ways, or ``to_class``: then class nodes see training nodes, and no label reaches a node.
            Both ways help where neighbours share a label, but a training node can then tell its label from its class
            node, and other nodes cannot.
        seed: of the class nodes' features, drawn from N(0, 1).

    Source: Park et al. 2024, Forward Learning of Graph Neural Networks, section 3.3.
    """

    @typed
    def __init__(
        self,
        graph: CSR,
        x: Tensor,
        labels: Tensor,
        train_mask: Tensor,
        num_classes: int,
        *,
        temperature: float = 1.0,
        class_edges: Literal["both", "to_class"] = "both",
        seed: int = 0,
    ) -> None:
        super().__init__(graph, x, labels, train_mask, num_classes)
        if not temperature > 0:
            raise ValueError(f"SingleForward: temperature must be above 0, got {temperature}")
        if class_edges not in ("both", "to_class"):
            raise ValueError(f"SingleForward: class_edges must be both or to_class, got {class_edges!r}")
        self.temperature = temperature
        both = class_edges == "both"
        augmented = with_class_nodes(graph, self.train_nodes, self.train_labels, num_classes, both_ways=both)
        self.train_views = self.test_views = [View(augmented, with_class_features(x, num_classes, seed))]

    @property
    def label_state(self) -> Tensor:
        """[num_nodes + num_classes, num_classes]: one-hot on training and class nodes, uniform on the others."""
        x = self.train_views[0].x
        state = x.new_full((len(x), self.num_classes), 1 / self.num_classes)
        state[self.train_nodes] = F.one_hot(self.train_labels, self.num_classes).to(x.dtype)
        state[self.num_nodes :] = torch.eye(self.num_classes).to(x)
        return state

    def logits(self, h: Tensor) -> Tensor:
        """[num_nodes, num_classes] of one layer's output or state."""
        return h[: self.num_nodes] @ h[self.num_nodes :].T / self.temperature

    def loss(self, outputs: Sequence[Tensor]) -> Tensor:
        h = outputs[0]
        logits = h[self.train_nodes] @ h[self.num_nodes :].T / self.temperature
        return F.cross_entropy(logits, self.train_labels)

    def scores(self, outputs: Sequence[Tensor]) -> Tensor:
        return self.logits(outputs[0]).softmax(1)


class ForwardForward(LocalObjective):
    """A positive pass with true labels against negative passes with wrong ones, compared by goodness sum(h^2).

    Labels reach the layers appended to the features (one-hot for labelled nodes, uniform for the others), or as links
    to a node per class. Wrong label number k of a training node is (label + k) mod num_classes. The loss is
    softplus(theta - goodness) on positive and softplus(goodness - theta) on negative passes, the latter averaged. For
    a prediction every class in turn is given to all unlabelled nodes: num_classes passes.

    Args:
        graph, x, labels, train_mask, num_classes: as in LocalObjective.
        labels_as: ``features`` or ``class_nodes``.
        threshold: theta.
        seed: of the class nodes' features, drawn from N(0, 1).

    Source: Park et al. 2024, Forward Learning of Graph Neural Networks, section 3.2.
    """

    @typed
    def __init__(
        self,
        graph: CSR,
        x: Tensor,
        labels: Tensor,
        train_mask: Tensor,
        num_classes: int,
        *,
        labels_as: Literal["features", "class_nodes"] = "features",
        threshold: float = 2.0,
        seed: int = 0,
    ) -> None:
        super().__init__(graph, x, labels, train_mask, num_classes)
        if labels_as not in ("features", "class_nodes"):
            raise ValueError(f"ForwardForward: labels_as must be features or class_nodes, got {labels_as!r}")
        self.labels_as, self.threshold = labels_as, threshold
        wrong = [(self.train_labels + k) % num_classes for k in range(num_classes)]
        others = (~train_mask).nonzero()[:, 0]
        nodes = torch.cat([self.train_nodes, others])
        tried = [torch.cat([self.train_labels, torch.full_like(others, c)]) for c in range(num_classes)]
        if labels_as == "class_nodes":
            x = with_class_features(x, num_classes, seed)

        def view(nodes: Tensor, labels: Tensor) -> View:
            if labels_as == "class_nodes":
                return View(with_class_nodes(graph, nodes, labels, num_classes), x)
            appended = x.new_full((graph.num_nodes, num_classes), 1 / num_classes)
            appended[nodes] = F.one_hot(labels, num_classes).to(x.dtype)
            return View(graph, torch.cat([x, appended], 1))

        self.train_views = [view(self.train_nodes, labels) for labels in wrong]
        self.test_views = [view(nodes, labels) for labels in tried]

    def loss(self, outputs: Sequence[Tensor]) -> Tensor:
        margins = [h[self.train_nodes].square().sum(1) - self.threshold for h in outputs]
        negative = torch.stack([F.softplus(margin).mean() for margin in margins[1:]]).mean()
        return F.softplus(-margins[0]).mean() + negative

    def scores(self, outputs: Sequence[Tensor]) -> Tensor:
        return torch.stack([h[: self.num_nodes].square().mean(1) - self.threshold for h in outputs], 1)

    def next_train_views(self, views: Sequence[View], outputs: Sequence[Tensor]) -> list[View]:
        if self.labels_as == "features":
            return super().next_train_views(views, outputs)
        return [View(view.graph, outputs[0].detach()) for view in views]  # negatives differ in their edges alone


def with_class_nodes(graph: CSR, nodes: Tensor, labels: Tensor, num_classes: int, *, both_ways: bool = True) -> CSR:
    """The graph and num_classes nodes behind its own, each linked (both ways) to the given nodes of its class."""
    classes = labels + graph.num_nodes
    edges = [graph.to_edge_index(), torch.stack([nodes, classes])]
    if both_ways:
        edges.append(torch.stack([classes, nodes]))
    return CSR.from_edge_index(torch.cat(edges, 1), graph.num_nodes + num_classes)


def with_class_features(x: Tensor, num_classes: int, seed: int) -> Tensor:
    """x and num_classes rows behind it, drawn from N(0, 1)."""
    drawn = torch.randn(num_classes, x.shape[1], generator=torch.Generator().manual_seed(seed))
    return torch.cat([x, drawn.to(x)])
