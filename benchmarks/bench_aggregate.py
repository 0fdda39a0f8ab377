"""aggregate against torch.sparse.mm (both of its paths), scipy, and gather + index_add."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gossamer.graph import CSR, aggregate, gcn_aggregate
from gossamer.graph.order import _stable_order

import harness
from cost import aggregate_cost
from graphs import rmat

CAPABILITY = "Aggregation"
DETAIL = "R-MAT, 131072 nodes, 1.7 M edges, weighted"


@lru_cache
def graph() -> CSR:
    """Hubs at random ids: R-MAT alone has them in front, side by side."""
    skewed = rmat(17, 1_700_000)
    order = torch.randperm(skewed.num_nodes, generator=torch.Generator().manual_seed(0))
    mixed = skewed.permute(order)
    weight = torch.rand(mixed.num_edges, generator=torch.Generator().manual_seed(1))
    return CSR(mixed.rowptr, mixed.col, num_nodes=mixed.num_nodes, weight=weight)


@lru_cache
def matrix() -> Tensor:
    g = graph()
    size = (g.num_nodes, g.num_nodes)
    return torch.sparse_csr_tensor(g.rowptr, g.col.long(), g.weight, size, check_invariants=False)


@lru_cache
def features(num_features: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(graph().num_nodes, num_features, generator=torch.Generator().manual_seed(2)).to(dtype)


def against_torch(num_features: int) -> harness.Figure:
    """Against the faster of torch.sparse.mm with and without reduce, after a check that all three agree."""
    x = features(num_features)
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: aggregate(graph(), x),
        "torch.sparse.mm reduce=sum": lambda: torch.sparse.mm(matrix(), x, reduce="sum"),
        "torch.sparse.mm": lambda: torch.sparse.mm(matrix(), x),
    }
    for peer in list(calls.values())[1:]:
        torch.testing.assert_close(calls["ours"](), peer(), rtol=1e-3, atol=1e-3)
    times = harness.compare(calls, repeats=20, max_seconds=25)
    best = min(list(calls)[1:], key=lambda name: times[name].median)
    least = aggregate_cost(graph(), x).bytes / harness.bandwidth()
    detail = f"{DETAIL}; {least / times['ours'].median:.0%} of the byte floor"
    return times.figure(best, "ours", f"{detail}; peer {best}")


def of_bfloat16(num_features: int) -> harness.Figure:
    x, narrow = features(num_features), features(num_features, torch.bfloat16)
    times = harness.compare(
        {"bfloat16": lambda: aggregate(graph(), narrow), "float32": lambda: aggregate(graph(), x)}, max_seconds=20
    )
    return times.figure("float32", "bfloat16", DETAIL)


@harness.goal(CAPABILITY, "SpMM fp32 F=64 against torch.sparse.mm, one thread", at_least=4.0)
def forward_f64() -> harness.Figure:
    return against_torch(64)


@harness.goal(CAPABILITY, "SpMM fp32 F=256 against torch.sparse.mm, one thread", at_least=3.0)
def forward_f256() -> harness.Figure:
    return against_torch(256)


@harness.goal(CAPABILITY, "SpMM bf16 storage against our fp32, F=64", at_least=1.5)
def bfloat16_f64() -> harness.Figure:
    return of_bfloat16(64)


@harness.goal(CAPABILITY, "SpMM bf16 storage against our fp32, F=256", at_least=1.5)
def bfloat16_f256() -> harness.Figure:
    return of_bfloat16(256)


def backward_over_forward(weight: Tensor | None) -> harness.Figure:
    x = features(64).detach().requires_grad_()
    wanted = [x] if weight is None else [x, weight]
    out = aggregate(graph(), x, weight=weight)
    grad = torch.randn_like(out)
    calls = {
        "forward": lambda: aggregate(graph(), x, weight=weight),
        "backward": lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True),
    }
    return harness.compare(calls, max_seconds=20).figure("backward", "forward", DETAIL)


@harness.goal(CAPABILITY, "gradient of x over the forward, F=64", at_most=1.2)
def backward_x() -> harness.Figure:
    return backward_over_forward(None)


@harness.goal(CAPABILITY, "gradients of x and of the edge weights over the forward, F=64")
def backward_x_and_weight() -> harness.Figure:
    return backward_over_forward(graph().weight.clone().requires_grad_())


@harness.goal(CAPABILITY, "gcn_aggregate over aggregate, F=64")
def gcn_over_sum() -> harness.Figure:
    x = features(64)
    calls = {"sum": lambda: aggregate(graph(), x), "gcn": lambda: gcn_aggregate(graph(), x)}
    return harness.compare(calls, max_seconds=15).figure("gcn", "sum", DETAIL)


@harness.goal(CAPABILITY, "max F=64 against torch.sparse.mm reduce=amax")
def maximum_f64() -> harness.Figure:
    x = features(64)
    calls = {
        "ours": lambda: aggregate(graph(), x, reduce="max"),
        "amax": lambda: torch.sparse.mm(matrix(), x, reduce="amax"),
    }
    return harness.compare(calls, max_seconds=20).figure("amax", "ours", DETAIL)


@harness.goal(CAPABILITY, "SpMM fp32 F=64 against scipy")
def scipy_f64() -> harness.Figure:
    try:
        import scipy  # noqa: F401
    except ImportError as missing:
        raise harness.NotHere("needs scipy") from missing
    x, peer = features(64), graph().to_scipy()
    dense = x.numpy()
    calls = {"ours": lambda: aggregate(graph(), x), "scipy": lambda: peer @ dense}
    return harness.compare(calls, repeats=10, max_seconds=20).figure("scipy", "ours", DETAIL)


@harness.goal(CAPABILITY, "SpMM fp32 F=64 against gather and index_add (edge_index style)")
def gather_f64() -> harness.Figure:
    x, g = features(64), graph()
    source, target = g.to_edge_index()

    def peer() -> Tensor:
        return torch.zeros_like(x).index_add_(0, target, x[source] * g.weight[:, None])

    calls = {"ours": lambda: aggregate(g, x), "gather": peer}
    return harness.compare(calls, repeats=5, max_seconds=20).figure("gather", "ours", DETAIL)


@harness.goal(CAPABILITY, "stable order of 1.7 M edges against torch.sort")
def stable_order() -> harness.Figure:
    keys = graph().col
    calls = {"ours": lambda: _stable_order(keys, graph().num_nodes), "sort": lambda: keys.sort(stable=True)}
    return harness.compare(calls, max_seconds=15).figure("sort", "ours", "rowptr included in ours")


@harness.goal(
    CAPABILITY, "peak memory of forward and backward beyond the input, in units of N F", at_most=4.0, unit="N F"
)
def memory_f256() -> harness.Figure:
    """Output, its gradient and the input's gradient make 3; an E x F temporary would add 13."""
    x = features(256).clone().requires_grad_()
    graph().transpose()
    aggregate(graph(), x).sum().backward()  # what is kept with the graph, and the allocator's own pages
    x.grad = None
    before = _reset_peak()
    out = aggregate(graph(), x)
    out.backward(torch.ones_like(out))
    peak = _status("VmHWM") - before
    return harness.Figure(peak / (x.numel() * x.element_size()), f"F=256, {peak / 1e6:.0f} MB; {DETAIL}")


def _reset_peak() -> int:
    """Forget the peak of resident memory; returns what is resident now, in bytes."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError as error:
        raise harness.NotHere(f"peak memory cannot be reset: {error}") from error
    return _status("VmRSS")


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


if __name__ == "__main__":
    harness.main()
