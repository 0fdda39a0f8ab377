"""Operators that are a step of others, each by itself, against the plain way in torch or a general tool; one thread."""

from __future__ import annotations

import zlib

import torch
from sampling_data import rmat, weighted

from gossamer.sparse_nn import RoutePlan

import harness
from tokens import zipf_tokens

CAPABILITY = "Steps of operators"
GRAPH = "R-MAT 2^18 nodes, 3.9 M edges"
WIDTH = 64


@harness.goal(
    CAPABILITY, f"alias_table, {GRAPH}: time against one cumsum of the weights in double precision", at_most=20
)
def alias_table() -> harness.Figure:
    """Made once per graph: a few passes over each row, of which the last goes back and forth."""
    graph = weighted(18)
    functions = {
        "alias_table": lambda: torch.ops.gossamer.alias_table(graph.rowptr, graph.weight),
        "cumsum": lambda: graph.weight.cumsum(0, dtype=torch.float64),
    }
    times = harness.compare(functions, max_seconds=20)
    rate = graph.num_edges / times["alias_table"].median / 1e6
    return times.figure("alias_table", "cumsum", f"{rate:.0f} M edges/s")


@harness.goal(
    CAPABILITY, f"cumulative_weights, {GRAPH}: against cumsum in double precision, then row by row", at_least=1
)
def cumulative_weights() -> harness.Figure:
    """Torch sums the whole vector and takes away what stood before each row."""
    graph = weighted(18)

    def plain() -> torch.Tensor:
        total = torch.nn.functional.pad(graph.weight.cumsum(0, dtype=torch.float64), (1, 0))
        return total[1:] - total[graph.rowptr[:-1]].repeat_interleave(graph.in_degree())

    functions = {
        "ours": lambda: torch.ops.gossamer.cumulative_weights(graph.rowptr, graph.weight),
        "torch": plain,
    }
    torch.testing.assert_close(functions["ours"](), plain(), rtol=1e-9, atol=1e-6)
    return harness.compare(functions, max_seconds=20).figure("torch", "ours")


@harness.goal(CAPABILITY, f"compress_rows, {GRAPH}: speed against zlib at level 1", at_least=1)
def compress_rows() -> harness.Figure:
    graph = rmat(18)
    raw = graph.col.numpy().tobytes()
    functions = {
        "ours": lambda: torch.ops.gossamer.compress_rows(graph.rowptr, graph.col),
        "zlib": lambda: zlib.compress(raw, 1),
    }
    ours, theirs = functions["ours"]()[0].numel() / graph.num_edges, len(functions["zlib"]()) / graph.num_edges
    detail = f"ours {ours:.2f} bytes/edge, any column readable alone; zlib {theirs:.2f}"
    return harness.compare(functions, max_seconds=20).figure("zlib", "ours", detail)


@harness.goal(CAPABILITY, "relu_dropout_backward, [65536, 64] fp32, against the masked product of torch", at_least=1)
def relu_dropout_backward() -> harness.Figure:
    torch.manual_seed(0)
    x, grad = torch.randn(65_536, WIDTH), torch.randn(65_536, WIDTH)
    out = torch.ops.gossamer.relu_dropout(x, 0.5, 1, 0, None, 0)
    functions = {
        "ours": lambda: torch.ops.gossamer.relu_dropout_backward(grad, out, 0.5),
        "torch": lambda: torch.where(out > 0, 2 * grad, 0),
    }
    torch.testing.assert_close(functions["ours"](), functions["torch"]())
    floor = 3 * x.numel() * x.element_size() / harness.bandwidth()
    times = harness.compare(functions, max_seconds=20)
    return times.figure("torch", "ours", f"{floor / times['ours'].median:.0%} of the byte floor")


@harness.goal(
    CAPABILITY, "extremum_backward_weight, R-MAT 2^16 nodes, 1 M edges, F=64, against gather and index_add", at_least=1
)
def extremum_backward_weight() -> harness.Figure:
    graph = weighted(16)
    torch.manual_seed(0)
    x, grad = torch.randn(graph.num_nodes, WIDTH), torch.randn(graph.num_nodes, WIDTH)
    arg = torch.ops.gossamer.extremum(x, graph.rowptr, graph.col, graph.weight, False, None, None, None)[1]
    row = torch.nonzero(graph.in_degree()).flatten()  # the others have no edge that attains anything

    def plain() -> torch.Tensor:
        edge = graph.rowptr[row][:, None] + arg[row]
        part = grad[row] * x.gather(0, graph.col.long()[edge])
        return torch.zeros(graph.num_edges).index_add_(0, edge.flatten(), part.flatten())

    functions = {
        "ours": lambda: torch.ops.gossamer.extremum_backward_weight(grad, arg, x, graph.rowptr, graph.col),
        "torch": plain,
    }
    torch.testing.assert_close(functions["ours"](), plain(), rtol=1e-4, atol=1e-4)
    return harness.compare(functions, max_seconds=20).figure("torch", "ours")


@harness.goal(
    CAPABILITY, "combine_backward, T 4096, k 8, d 1024, fp32, against gather and products in torch", at_least=1
)
def combine_backward() -> harness.Figure:
    """Gradients of rows and gates; every row of y belongs to one route."""
    torch.manual_seed(0)
    num_tokens, top_k, width = 4096, 8, 1024
    plan = RoutePlan.from_expert_ids(zipf_tokens(num_tokens * top_k).view(-1, top_k) % 64, 64)
    y, grad, gates = (
        torch.randn(num_tokens * top_k, width),
        torch.randn(num_tokens, width),
        torch.rand(num_tokens, top_k),
    )
    order, token = plan.order.long(), plan.order.long() // top_k

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        rows = grad[token]
        products = torch.zeros(num_tokens * top_k).index_copy_(0, order, (rows * y).sum(1))
        return rows * gates.flatten()[order][:, None], products.view_as(gates)

    functions = {"ours": lambda: torch.ops.gossamer.combine_backward(grad, y, plan.inverse, gates), "torch": plain}
    for ours, theirs in zip(functions["ours"](), plain()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    return harness.compare(functions, max_seconds=20).figure("torch", "ours")


if __name__ == "__main__":
    harness.main()
