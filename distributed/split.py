"""2BP for any stack of modules: autograd's backward pass in two parts, without hand-written layers.

The first part (p1) computes the gradient of a stage's inputs and, on its way, the gradient that arrives at every
operation with a parameter of its own. The second part (p2) runs only these operations again, for their parameters
alone, at any later time. Both parts call the kernels of the fused backward pass on the same operands, so the
gradients have its bits. Between the parts an operation with a parameter keeps its inputs and the gradient that arrived;
what p1 alone needs (masks, attention weights) is given free as soon as p1 is over.

Derivative checkpointing keeps the gradients that arrive at some chosen tensors instead: p2 starts from them and repeats
p1 as far as the parameters.

Source: 2BP (arXiv 2405.18047), sections 3 and 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

__all__ = ["SplitBackward", "saved_bytes"]


class _Border(NamedTuple):
    """Where p2 starts, and the parameters that wait for it."""

    edges: list[GradientEdge]  # outputs of the operation that owns the parameters, or one checkpoint
    gradients: list[Tensor]  # of these outputs
    parameters: list[Tensor]


class SplitBackward:
    """The backward pass of one micro-batch, cut in two.

    A parameter that several operations use, or that an operation of ``once`` uses, takes its gradient in p1: its
    p2 would repeat operations on the critical path.

    Args:
        outputs: tensors with a gradient function, all of one forward pass.
        inputs: tensors whose gradients p1 returns; leaves of that pass.
        once: names of gradient functions that must not run twice, because their backward has effects.
        checkpoints: tensors of that pass; parameters from which every path leads through one and the same of them
            first wait with its gradient alone. What p1 needs down to them is kept, unless it is recomputed
            (``torch.utils.checkpoint``).
    """

    def __init__(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        *,
        once: Sequence[str] = (),
        checkpoints: Sequence[Tensor] = (),
    ) -> None:
        self._outputs, self._inputs = list(outputs), list(inputs)
        graph = _Graph(self._outputs, {id(t) for t in inputs}, once, checkpoints)
        effects = [node for node in graph.roots if node.name() in once]
        num_users = Counter(p for parameters in graph.parameters.values() for p in parameters)
        tied = {p for node in effects for p in graph.parameters.get(node, ())}
        tied |= {p for p, count in num_users.items() if count > 1}
        self._early = [p for p in num_users if p in tied]
        self._waiting: dict[Node, list[Tensor]] = {}
        for node, owned in graph.parameters.items():
            if waiting := [p for p in owned if p not in tied]:
                self._waiting.setdefault(graph.start_of(node), []).extend(waiting)
        self._edges = {node: graph.checkpoints.get(node, graph.edges[node]) for node in self._waiting}
        self._kept = [
            node for node, roots in graph.roots.items() if node in self._waiting or roots & self._edges.keys()
        ]
        self._done = [node for node in graph.roots if node not in set(self._kept)]
        reached = [edge for node in effects for edge in node.next_functions]
        self._forced = [GradientEdge(node, output) for node, output in reached if node is not None]
        self._borders: list[_Border] = []
        self._gradients: dict[Tensor, Tensor] = {}

    @property
    def deferred(self) -> list[Tensor]:
        """The parameters whose gradients p2 computes."""
        return [p for parameters in self._waiting.values() for p in parameters]

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for p2: saved tensors and gradients, every storage once, parameters not.

        What another holder of saved tensors keeps (``torch.utils.checkpoint``) is not counted.
        """
        saved = [raw.data for node in self._kept for raw in _saved_tensors(node)]
        gradients = [g for border in self._borders for g in border.gradients] + list(self._gradients.values())
        return _num_bytes([*saved, *gradients], [*self.deferred, *self._early])

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
        for node in self._done:
            _give_free(node)
        self._done = []
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
        self._kept = []
        return found


def saved_bytes(outputs: Sequence[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of ``outputs``, counted as in SplitBackward.waiting_bytes."""
    graph = _Graph(outputs, set(), (), ())
    saved = [raw.data for node in graph.roots for raw in _saved_tensors(node)]
    return _num_bytes(saved, [p for parameters in graph.parameters.values() for p in parameters])


def _num_bytes(tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> int:
    own = {p.untyped_storage().data_ptr() for p in parameters}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(num_bytes for pointer, num_bytes in storages.items() if pointer not in own)


_CHAIN = {"TBackward0", "TransposeBackward0", "PermuteBackward0", "ToCopyBackward0", "ViewBackward0"}
_CHAIN |= {"UnsqueezeBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "ExpandBackward0"}


class _Graph:
    """The gradient functions behind ``outputs``: which of them own parameters, and the edges that reach them.

    An operation owns a parameter that it reaches through casts, views and transpositions alone.

    Attributes:
        roots: for every function the checkpoints, or functions of ``once``, that were last on the paths to it from the
            outputs; None where a path had none.
        edges: for every function its outputs that are used.
        parameters: for every function that owns some.
        checkpoints: the edges of the checkpoints, by function.
    """

    def __init__(
        self, outputs: Sequence[Tensor], input_ids: set[int], once: Sequence[str], checkpoints: Sequence[Tensor]
    ) -> None:
        self.roots: dict[Node, set[Node | None]] = {}
        self.edges: dict[Node, list[GradientEdge]] = {}
        self.parameters: dict[Node, list[Tensor]] = {}
        self.checkpoints = {t.grad_fn: [GradientEdge(t.grad_fn, t.output_nr)] for t in checkpoints if t.grad_fn}
        waiting: list[tuple[Node, int, Node | None]]
        waiting = [(t.grad_fn, t.output_nr, None) for t in outputs if t.grad_fn is not None]
        while waiting:
            node, index, root = waiting.pop()
            edges = self.edges.setdefault(node, [])
            if all(edge.output_nr != index for edge in edges):
                edges.append(GradientEdge(node, index))
            if self.checkpoints.get(node) == [GradientEdge(node, index)]:
                root = node
            roots = self.roots.setdefault(node, set())
            if root in roots:
                continue
            roots.add(root)
            root = node if node.name() in once else root
            children = [(child, i, _parameter(child)) for child, i in node.next_functions if child is not None]
            waiting += [(child, i, root) for child, i, parameter in children if parameter is None]
            owned = [p for _, _, p in children if p is not None and id(p) not in input_ids]
            if owned:
                self.parameters[node] = list({id(p): p for p in owned}.values())

    def start_of(self, node: Node) -> Node:
        """The checkpoint from which p2 can run the function, if there is just one; else the function itself."""
        (root, *others) = self.roots[node]
        return root if root in self.checkpoints and not others else node


def _parameter(node: Node) -> Tensor | None:
    """The leaf at the end of a chain of views, or None."""
    while not hasattr(node, "variable"):
        children = [child for child, _ in node.next_functions if child is not None]
        if len(children) != 1 or node.name() not in _CHAIN:
            return None
        node = children[0]
    return node.variable


@cache
def _names_of_saved(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def _saved_tensors(node: Node) -> Iterator[Any]:
    """What a gradient function saved and holds itself."""
    for name in _names_of_saved(type(node)):
        raw = getattr(node, name)
        for saved in raw if isinstance(raw, tuple) else (raw,):
            if saved.unpack_hook is None and isinstance(saved.data, Tensor):
                yield saved


def _give_free(node: Node) -> None:
    for saved in _saved_tensors(node):
        saved.register_hooks(lambda tensor: None, _refuse)


def _refuse(packed: None) -> Tensor:
    raise RuntimeError("SplitBackward: a saved tensor was given free after p1, and the graph was run once more")
