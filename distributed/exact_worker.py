"""One worker in the exact mode: chunks pause at every aggregation, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor

from gossamer.distributed.exact_chunks import Cut, ExactGraph, ExactView
from gossamer.distributed.suspended import Suspended
from gossamer.distributed.worker import Seed, Worker, floating
from gossamer.graph import GraphSequential
from gossamer.graph.drew_stack import frozen_statistics
from gossamer.graph.layers import State

__all__ = ["ExactWorker"]


@dataclass
class _Passed:
    """A layer that one chunk went through; the graph of autograd begins at its inputs.

    Layers are cut apart, and not only stages: so gradients are added up in the same order for any number of stages.
    """

    number: int
    inputs: State
    random_state: Tensor | None
    outputs: State = ()
    cuts: list[Cut] = field(default_factory=list)


@dataclass
class _Run:
    """One chunk in one epoch."""

    calls_left: int
    passed: list[_Passed] = field(default_factory=list)
    forward: Suspended[State] | None = None
    backward: Iterator[State] | None = None


class ExactWorker(Worker):
    """One stage; ``forward`` and ``backward`` run a chunk to its next aggregation, or to the end.

    Args:
        num_aggregations: of the stage.
        arguments, options: of Worker, with an ExactGraph.
    """

    chunked: ExactGraph

    def __init__(self, num_aggregations: int, *arguments: Any, **options: Any) -> None:
        self._runs: dict[int, _Run] = {}
        self._num_pieces = 1 + num_aggregations
        self._totals: dict[Tensor, Tensor] = {}
        super().__init__(*arguments, **options)
        self._layers = [GraphSequential(layer) for layer in self.backend.module._modules.values() if layer is not None]

    def begin_epoch(self, order: list[int]) -> None:
        super().begin_epoch(order)
        for run in self._runs.values():  # what an interrupted epoch has left
            if run.forward is not None:
                run.forward.close()
        self._runs, self._totals = {}, {}

    def forward(self, micro_batch: int, inputs: State | None) -> State:
        """Run one chunk to its next aggregation; the last call returns the state to send on."""
        run = self._runs.get(micro_batch)
        if run is None:
            state = self.first_state(micro_batch, inputs)
            run = self._runs[micro_batch] = _Run(self._num_pieces)
            passed = run.passed
            run.forward = Suspended(lambda pause: self._run_layers(micro_batch, passed, state, pause))
        assert run.forward is not None
        outputs = run.forward.resume()
        run.calls_left -= 1
        if run.calls_left > 0:
            return ()
        if not run.forward.done:
            raise ValueError(
                f"train_epoch: layers must aggregate as often as on a graph without rows ({self._num_pieces - 1} times "
                "in this stage), got one more"
            )
        run.calls_left, run.forward = self._num_pieces, None
        return () if self._is_last else outputs or ()

    def backward(self, micro_batch: int, gradients: State | None) -> State:
        """Go back to the next aggregation; the last call returns the input gradients, nothing on the first stage."""
        run = self._runs[micro_batch]
        if run.backward is None:
            run.backward = self._go_back(micro_batch, run.passed, gradients)
        found = next(run.backward)
        run.calls_left -= 1
        if run.calls_left == 0:
            del self._runs[micro_batch]
        return found if self.incoming else ()

    def update(self) -> None:
        if self._totals:
            self.backend.backward(Seed.apply(tuple(self._totals.values()), *self._totals))
        super().update()

    def _run_layers(self, micro_batch: int, passed: list[_Passed], state: State, pause: Callable[[], None]) -> State:
        recompute, sites = self.chunked.recompute, count()
        for number in range(len(self._layers)):
            layer = _Passed(number, state, torch.get_rng_state() if recompute else None)
            passed.append(layer)
            with torch.set_grad_enabled(not recompute):
                view = ExactView(self.chunked, self._order[micro_batch], pause, sites, cuts=layer.cuts)
                outputs = self._outputs(micro_batch, layer, view, count=True)
            if not recompute:
                layer.outputs = outputs
            state = tuple(t.detach().requires_grad_(t.is_floating_point()) for t in outputs)
        return state

    def _outputs(self, micro_batch: int, layer: _Passed, view: ExactView, *, count: bool) -> State:
        """What a layer makes of its inputs, at the end of the model the loss; ``count`` as in ``_measure``."""
        result = self._layers[layer.number](view, *layer.inputs)
        if self._is_last and layer.number == len(self._layers) - 1:
            return (self._measure(micro_batch, result[0] if isinstance(result, tuple) else result, count=count),)
        return result if isinstance(result, tuple) else (result,)

    def _go_back(self, micro_batch: int, passed: list[_Passed], gradients: State | None) -> Iterator[State]:
        """Pause at every aggregation; then the input gradients for ever."""
        while passed:
            layer = passed.pop()
            if self.chunked.recompute:
                self._repeat(micro_batch, layer)
            flow = _Flow(layer, [p for p in self._layers[layer.number].parameters() if p.requires_grad])
            outputs = floating(layer.outputs)
            flow.push(zip(outputs, gradients or [torch.ones_like(outputs[0])]))
            for cut in reversed(layer.cuts):
                cut.give(flow.gradient(cut.out))
                yield ()
                flow.push(cut.take())
            gradients = tuple(_or_zeros(flow.gradient(t), t) for t in layer.inputs if t.requires_grad)
            self._collect(flow)
        while True:
            yield gradients or ()

    def _repeat(self, micro_batch: int, layer: _Passed) -> None:
        """Run a layer again, with the graph of autograd, from its inputs and the outputs of its aggregations."""
        assert layer.random_state is not None
        past, layer.cuts = iter(layer.cuts), []
        again = frozen_statistics([self._layers[layer.number]])
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), again:
            torch.set_rng_state(layer.random_state)
            view = ExactView(self.chunked, self._order[micro_batch], _go_on, count(), past, cuts=layer.cuts)
            layer.outputs = self._outputs(micro_batch, layer, view, count=False)

    def _collect(self, flow: _Flow) -> None:
        """Sum parameter gradients over the chunks, in their order."""
        for parameter in flow.parameters:
            gradient = flow.gradient(parameter)
            if gradient is not None:
                total = self._totals.get(parameter)
                self._totals[parameter] = gradient if total is None else total + gradient


class _Flow:
    """Gradients of the leaves of one layer, added up."""

    def __init__(self, layer: _Passed, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        leaves = [*(cut.out for cut in layer.cuts), *floating(layer.inputs), *parameters]
        self._leaves = [t for t in leaves if t.requires_grad]
        self._found: dict[Tensor, Tensor] = {}

    def gradient(self, leaf: Tensor) -> Tensor | None:
        return self._found.get(leaf)

    def push(self, pairs: Iterator[tuple[Tensor, Tensor]] | list[tuple[Tensor, Tensor]]) -> None:
        """Take gradients of some tensors back to the leaves."""
        pairs = [(t, gradient) for t, gradient in pairs if t.requires_grad]
        if not pairs:
            return
        outputs, gradients = zip(*pairs)
        found = torch.autograd.grad(outputs, self._leaves, gradients, retain_graph=True, allow_unused=True)
        for leaf, gradient in zip(self._leaves, found):
            if gradient is not None:
                before = self._found.get(leaf)
                self._found[leaf] = gradient if before is None else before + gradient


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _go_on() -> None:
    """Nothing to wait for."""
