"""2BP for any stack of modules: autograd's backward pass in two parts, without hand-written layers.

The first part (p1) computes the gradient of a stage's inputs and, on its way, the gradient that arrives at every
operation with a parameter of its own. The second part (p2) runs only these operations again, for their parameters
alone, at any later time. Both parts call the kernels of the fused backward pass on the same operands, so the
gradients have its bits.

Source: 2BP (arXiv 2405.18047), sections 3 and 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

__all__ = ["SplitBackward"]


class _Border(NamedTuple):
    """An operation whose parameters wait for p2."""

    edges: list[GradientEdge]  # its outputs
    gradients: list[Tensor]  # of its outputs
    parameters: list[Tensor]


class SplitBackward:
    """The backward pass of one micro-batch, cut in two.

    A parameter that several operations use, or that an operation of ``once`` uses, takes its gradient in p1: its
    p2 would repeat operations on the critical path.

    Args:
        outputs: tensors with a gradient function, all of one forward pass.
        inputs: tensors whose gradients p1 returns; leaves of that pass.
        once: names of gradient functions that must not run twice, because their backward has effects.
    """

    def __init__(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], *, once: Sequence[str] = ()) -> None:
        self._outputs, self._inputs = list(outputs), list(inputs)
        graph = _Graph(self._outputs, {id(t) for t in inputs})
        effects = [node for node in graph.nodes if node.name() in once]
        num_users = Counter(p for parameters in graph.parameters.values() for p in parameters)
        tied = {p for node in effects for p in graph.parameters.get(node, ())}
        tied |= {p for p, count in num_users.items() if count > 1}
        self._early = [p for p in num_users if p in tied]
        self._waiting = {node: [p for p in owned if p not in tied] for node, owned in graph.parameters.items()}
        self._edges = {node: graph.edges[node] for node, parameters in self._waiting.items() if parameters}
        reached = [edge for node in effects for edge in node.next_functions]
        self._forced = [GradientEdge(node, output) for node, output in reached if node is not None]
        self._borders: list[_Border] = []
        self._gradients: dict[Tensor, Tensor] = {}

    @property
    def deferred(self) -> list[Tensor]:
        """The parameters whose gradients p2 computes."""
        return [p for parameters in self._waiting.values() for p in parameters]

    def input_gradients(self, gradients: Sequence[Tensor] | None = None) -> list[Tensor | None]:
        """p1: the gradient of every input (None where nothing depends on it).

        Args:
            gradients: of the outputs; None for one scalar output.
        """
        edges = [edge for edges in self._edges.values() for edge in edges]
        targets: list[Any] = [*self._inputs, *self._early, *edges, *self._forced]
        if not targets:
            return []
        found = torch.autograd.grad(self._outputs, targets, gradients, retain_graph=True, allow_unused=True)
        num_inputs, num_early = len(self._inputs), len(self._early)
        early = zip(self._early, found[num_inputs : num_inputs + num_early])
        self._gradients = {parameter: gradient for parameter, gradient in early if gradient is not None}
        arrived = iter(found[num_inputs + num_early :])
        for node, edges in self._edges.items():
            pairs = [(edge, gradient) for edge in edges if (gradient := next(arrived)) is not None]
            if pairs:
                reached, arriving = [edge for edge, _ in pairs], [gradient for _, gradient in pairs]
                self._borders.append(_Border(reached, arriving, self._waiting[node]))
        self._outputs, self._inputs, self._forced = [], [], []
        return list(found[:num_inputs])

    def weight_gradients(self) -> dict[Tensor, Tensor]:
        """p2: the gradient of every parameter; what was kept for it is given free."""
        found, self._gradients = self._gradients, {}
        while self._borders:
            reached, arrived, parameters = self._borders.pop()
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(reached, parameters, arrived, allow_unused=True)
            ):
                if gradient is not None:
                    found[parameter] = gradient
        return found


_CHAIN = {"TBackward0", "TransposeBackward0", "PermuteBackward0", "ToCopyBackward0", "ViewBackward0"}
_CHAIN |= {"UnsqueezeBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "ExpandBackward0"}


class _Graph:
    """The gradient functions behind ``outputs``: which of them own parameters, and the edges that reach them.

    An operation owns a parameter that it reaches through casts, views and transpositions alone.
    """

    def __init__(self, outputs: Sequence[Tensor], input_ids: set[int]) -> None:
        self.nodes: dict[Node, None] = {}
        self.edges: dict[Node, list[GradientEdge]] = {}
        self.parameters: dict[Node, list[Tensor]] = {}
        waiting = [(t.grad_fn, t.output_nr) for t in outputs if t.grad_fn is not None]
        while waiting:
            node, index = waiting.pop()
            edges = self.edges.setdefault(node, [])
            if all(edge.output_nr != index for edge in edges):
                edges.append(GradientEdge(node, index))
            if node in self.nodes:
                continue
            self.nodes[node] = None
            children = [(child, i, _parameter(child)) for child, i in node.next_functions if child is not None]
            waiting += [(child, i) for child, i, parameter in children if parameter is None]
            owned = [p for _, _, p in children if p is not None and id(p) not in input_ids]
            if owned:
                self.parameters[node] = list({id(p): p for p in owned}.values())


def _parameter(node: Node) -> Tensor | None:
    """The leaf at the end of a chain of views, or None."""
    while not hasattr(node, "variable"):
        children = [child for child, _ in node.next_functions if child is not None]
        if len(children) != 1 or node.name() not in _CHAIN:
            return None
        node = children[0]
    return node.variable
