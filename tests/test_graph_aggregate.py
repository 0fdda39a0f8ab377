"""aggregate and gcn_aggregate: values, gradients, instruction sets, threads, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gossamer
from gossamer.graph import CSR, aggregate, gcn_aggregate
from gossamer.graph.aggregate import propagation
from gossamer.graph.order import _stable_order

import reference

REDUCTIONS = ["sum", "mean", "max", "min"]
WIDTHS = [1, 3, 16, 17, 64, 100, 257]  # one, below, equal to and beyond a vector; several blocks; an odd tail
# Relative error of one sum of a few dozen terms.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
INSTRUCTION_SETS = ["scalar", "avx2", "avx512", "avx512_bf16"]


def graph_of_degrees(degrees: list[int], *, weighted: bool = True, wide: bool = False, device: str = "cpu") -> CSR:
    """Row i has degrees[i] in-neighbours drawn at random."""
    generator = torch.Generator().manual_seed(7)
    num_edges = sum(degrees)
    rowptr = torch.tensor([0, *degrees]).cumsum(0)
    col = torch.randint(max(len(degrees), 1), (num_edges,), generator=generator)
    weight = torch.rand(num_edges, generator=generator) + 0.1 if weighted else None
    graph = CSR(rowptr, col if wide else col.int(), num_nodes=len(degrees), weight=weight)
    return graph.to(device)


def features(graph: CSR, num_features: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(graph.num_nodes, num_features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.to(dtype).to(graph.device)


def expected(graph: CSR, x: Tensor, reduce: str, weight: Tensor | None = None) -> Tensor:
    weight = graph.weight if weight is None else weight
    if reduce == "gcn":
        return reference.gcn_aggregate(graph.rowptr, graph.col, weight, x)
    return reference.aggregate(graph.rowptr, graph.col, weight, x, reduce)


def call(graph: CSR, x: Tensor, reduce: str, weight: Tensor | None = None) -> Tensor:
    return (
        gcn_aggregate(graph, x, weight=weight) if reduce == "gcn" else aggregate(graph, x, weight=weight, reduce=reduce)
    )


def assert_near(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


GRAPHS = [
    pytest.param([3, 0, 5, 1], id="empty row inside"),
    pytest.param([0, 4, 2, 0], id="empty rows at both ends"),
    pytest.param([0, 0, 0], id="no edges"),
    pytest.param([5], id="one node that only has self loops"),
    pytest.param([1] * 40 + [300] + [2] * 40, id="a hub"),
]


@pytest.mark.parametrize("reduce", [*REDUCTIONS, "gcn"])
@pytest.mark.parametrize("degrees", GRAPHS)
@pytest.mark.parametrize("weighted", [False, True])
def test_matches_reference(degrees, weighted, reduce, device):
    graph = graph_of_degrees(degrees, weighted=weighted, device=device)
    x = features(graph, 5)
    assert_near(call(graph, x, reduce), expected(graph, x, reduce), x.dtype)


@pytest.mark.parametrize("reduce", [*REDUCTIONS, "gcn"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_features", WIDTHS)
def test_widths_and_types(num_features, dtype, reduce, device):
    graph = graph_of_degrees([3, 0, 1, 20, 7] * 5, wide=num_features % 2 == 0, device=device)
    x = features(graph, num_features, dtype)
    assert_near(call(graph, x, reduce), expected(graph, x, reduce), dtype)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_features", WIDTHS)
def test_instruction_sets_agree(num_features, dtype, isa, monkeypatch):
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    if gossamer.instruction_set() != isa:
        pytest.skip(f"this processor has no {isa}")
    graph = graph_of_degrees([3, 0, 1, 20, 7] * 3)
    for reduce in REDUCTIONS:
        x = features(graph, num_features, dtype).requires_grad_()
        weight = graph.weight.to(torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()
        out = aggregate(graph, x, weight=weight, reduce=reduce)
        grads = torch.autograd.grad(out.square().sum(), (x, weight))
        monkeypatch.setenv("GOSSAMER_ISA", "scalar")
        base = aggregate(graph, x, weight=weight, reduce=reduce)
        base_grads = torch.autograd.grad(base.square().sum(), (x, weight))
        monkeypatch.setenv("GOSSAMER_ISA", isa)
        for got, want in zip((out, *grads), (base, *base_grads)):
            torch.testing.assert_close(got, want, rtol=5 * TOLERANCE[dtype], atol=50 * TOLERANCE[dtype])


@pytest.mark.parametrize("reduce", [*REDUCTIONS, "gcn"])
@pytest.mark.parametrize("owner", ["argument", "graph", "nobody"])
def test_gradients(owner, reduce, device):
    graph = graph_of_degrees([3, 0, 5, 1], weighted=owner == "graph", device=device)
    x = features(graph, 3).requires_grad_()
    if owner != "argument":
        assert torch.autograd.gradcheck(lambda x: call(graph, x, reduce), (x,))
        return
    weight = torch.rand(graph.num_edges, dtype=torch.float64, device=device).add(0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: call(graph, x, reduce, w), (x, weight))


@pytest.mark.parametrize("reduce", ["sum", "mean", "gcn"])
def test_second_gradients(reduce, device):
    graph = graph_of_degrees([2, 0, 3], device=device)
    x = features(graph, 2).requires_grad_()
    weight = torch.rand(graph.num_edges, dtype=torch.float64, device=device).add(0.5).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, w: call(graph, x, reduce, w), (x, weight))


@pytest.mark.parametrize("num_features", [1, 20, 70])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_wide_gradients_match_reference(reduce, num_features, device):
    graph = graph_of_degrees([3, 0, 40, 1] * 5, device=device)
    x = features(graph, num_features, torch.float32).requires_grad_()
    weight = graph.weight.clone().requires_grad_()
    got = torch.autograd.grad(aggregate(graph, x, weight=weight, reduce=reduce).square().sum(), (x, weight))
    want = torch.autograd.grad(expected(graph, x, reduce, weight).square().sum(), (x, weight))
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_a_weight_of_the_graph_can_learn(device):
    graph = graph_of_degrees([3, 0, 5, 1], device=device)
    graph.weight.requires_grad_()
    x = features(graph, 4, torch.float32)
    for reduce in [*REDUCTIONS, "gcn"]:
        (got,) = torch.autograd.grad(call(graph, x, reduce).sum(), graph.weight)
        (want,) = torch.autograd.grad(expected(graph, x, reduce).sum(), graph.weight)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_residual(device):
    graph = graph_of_degrees([3, 0, 5, 1], device=device)
    x, residual = features(graph, 5).requires_grad_(), features(graph, 5).flip(0).requires_grad_()
    got = gcn_aggregate(graph, x, residual=residual, alpha=0.3)
    assert_near(got, 0.7 * expected(graph, x, "gcn") + 0.3 * residual, torch.float64)
    assert torch.autograd.gradcheck(lambda x, r: gcn_aggregate(graph, x, residual=r, alpha=0.3), (x, residual))


def test_rows_of_a_slice_equal_the_whole(device):
    graph = graph_of_degrees([3, 0, 5, 1, 7, 2], device=device)
    x, p = features(graph, 9), propagation(graph, "gcn", dtype=torch.float64)
    whole = gcn_aggregate(graph, x)
    for begin, end in ((0, 2), (2, 5), (5, 6)):
        part = torch.ops.gossamer.aggregate(
            x, graph.rowptr[begin : end + 1], graph.col, p.weight, None, p.row_scale[begin:end], p.col_scale,
            True, begin, None, 0.0, None, None, None,
        )  # fmt: skip
        assert torch.equal(part, whole[begin:end])


@pytest.mark.parametrize("reduce", ["max", "min"])
def test_first_edge_of_a_tie_has_the_gradient(reduce, device):
    graph = CSR(torch.tensor([0, 4, 4, 4]), torch.tensor([2, 0, 1, 0]), num_nodes=3).to(device)
    x = torch.ones(3, 20, device=device, requires_grad=True)
    aggregate(graph, x, reduce=reduce).sum().backward()
    assert x.grad[2].eq(1).all()
    assert x.grad[:2].eq(0).all()


@pytest.mark.parametrize("num_features", [2, 40])
@pytest.mark.parametrize("reduce", ["max", "min"])
def test_nan_and_infinity_come_through(reduce, num_features, device):
    graph = CSR(torch.tensor([0, 3, 5, 5]), torch.tensor([0, 1, 2, 0, 2]), num_nodes=3).to(device)
    x = torch.zeros(3, num_features, device=device)
    x[1], x[2] = float("nan"), float("inf") if reduce == "max" else -float("inf")
    out = aggregate(graph, x, reduce=reduce)
    assert out[0].isnan().all()
    assert out[1].eq(x[2]).all()
    assert out[2].eq(0).all()


@pytest.mark.parametrize("reduce", [*REDUCTIONS, "gcn"])
def test_threads_do_not_change_a_bit(reduce):
    graph = graph_of_degrees([0, 3, 1, 5] * 500 + [4000] + [9] * 400)
    x = features(graph, 40, torch.float32).requires_grad_()
    weight = graph.weight.clone().requires_grad_()

    def run(num_threads: int) -> tuple[Tensor, ...]:
        before = torch.get_num_threads()
        torch.set_num_threads(num_threads)
        try:
            out = call(graph, x, reduce, weight)
            return out, *torch.autograd.grad(out.square().sum(), (x, weight))
        finally:
            torch.set_num_threads(before)

    assert all(torch.equal(a, b) for a, b in zip(run(1), run(4)))


@pytest.mark.parametrize("reduce", [*REDUCTIONS, "gcn"])
def test_arguments_stay_and_any_strides_serve(reduce, device):
    graph = graph_of_degrees([3, 0, 5, 1], device=device)
    x = features(graph, 12).T.contiguous().T
    assert not x.is_contiguous()
    kept = x.clone(), graph.weight.clone(), graph.col.clone()
    assert torch.equal(call(graph, x, reduce), call(graph, x.contiguous(), reduce))
    strided = features(graph, 24)[:, ::2]
    assert torch.equal(call(graph, strided, reduce), call(graph, strided.contiguous(), reduce))
    assert all(torch.equal(a, b) for a, b in zip((x, graph.weight, graph.col), kept))


@pytest.mark.parametrize("reduce", [*REDUCTIONS, "gcn"])
def test_no_nodes_and_no_features(reduce, device):
    empty = CSR(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), num_nodes=0).to(device)
    assert call(empty, torch.zeros(0, 4, device=device), reduce).shape == (0, 4)
    graph = graph_of_degrees([2, 1], device=device)
    x = torch.zeros(2, 0, device=device, requires_grad=True)
    out = call(graph, x, reduce)
    assert out.shape == (2, 0)
    out.sum().backward()


def test_scales_and_transposed_weights_are_made_once():
    graph = graph_of_degrees([3, 0, 5, 1])
    assert propagation(graph, "gcn") is propagation(graph, "gcn")
    assert propagation(graph, "gcn").row_scale.dtype == torch.float32
    assert propagation(graph, "gcn", dtype=torch.float64).row_scale.dtype == torch.float64
    before = aggregate(graph, features(graph, 2))
    graph.weight = 2 * graph.weight
    assert torch.allclose(aggregate(graph, features(graph, 2)), 2 * before)


def test_gcn_equals_the_normalisation_of_pyg():
    gcn_norm = pytest.importorskip("torch_geometric.nn.conv.gcn_conv").gcn_norm
    graph = graph_of_degrees([3, 0, 5, 1] * 3)
    source, target = graph.to_edge_index()
    kept = source != target  # PyG adds no loop where there is one
    edge_index, weight = torch.stack([source, target])[:, kept], graph.weight[kept]
    loop_free = CSR.from_edge_index(edge_index, graph.num_nodes, weight=weight)
    edge_index, norm = gcn_norm(edge_index, weight, graph.num_nodes)
    x = features(graph, 6, torch.float32)
    want = torch.zeros_like(x).index_add(0, edge_index[1], norm[:, None] * x[edge_index[0]])
    torch.testing.assert_close(gcn_aggregate(loop_free, x), want)


def test_keeps_no_features_for_a_fixed_weight():
    graph = graph_of_degrees([3, 0, 5, 1])
    x = features(graph, 4).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        aggregate(graph, x)
    assert all(t.shape != x.shape for t in kept)


def test_operators_hold_their_contract(device):
    graph = graph_of_degrees([3, 0, 5, 1], device=device)
    back, positions = graph.transpose(), graph._transpose_positions
    x, weight = features(graph, 3).requires_grad_(), graph.weight.double().requires_grad_()
    scale, residual = torch.rand(4, dtype=torch.float64, device=device), features(graph, 3).requires_grad_()
    ops = torch.ops.gossamer
    torch.library.opcheck(
        ops.aggregate,
        (
            x,
            graph.rowptr,
            graph.col,
            weight,
            None,
            scale,
            scale,
            True,
            0,
            residual,
            0.5,
            back.rowptr,
            back.col,
            positions,
        ),
    )
    torch.library.opcheck(
        ops.sddmm, (x, residual, graph.rowptr, graph.col, None, scale, scale, 0.5, back.rowptr, back.col, positions)
    )
    torch.library.opcheck(ops.extremum, (x, graph.rowptr, graph.col, weight, False, back.rowptr, back.col, positions))
    grad, arg = features(graph, 3), torch.zeros(4, 3, dtype=torch.int32, device=device)
    torch.library.opcheck(
        ops.extremum_backward, (grad, arg, graph.rowptr, weight.detach(), back.rowptr, back.col, positions)
    )
    torch.library.opcheck(ops.extremum_backward_weight, (grad, arg, grad, graph.rowptr, graph.col))
    torch.library.opcheck(ops.stable_order, (graph.col.cpu(), 4))


@pytest.mark.parametrize("reduce", [*REDUCTIONS, "gcn"])
def test_compiles_whole(reduce):
    graph = graph_of_degrees([3, 0, 5, 1])
    x = features(graph, 4, torch.float32).requires_grad_()
    call(graph, x, reduce)  # what is kept with the graph is made outside
    compiled = torch.compile(lambda x: call(graph, x, reduce) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), call(graph, x, reduce) * 2)
    (got,) = torch.autograd.grad(compiled(x).sum(), x)
    (want,) = torch.autograd.grad(2 * call(graph, x, reduce).sum(), x)
    assert torch.equal(got, want)


NO_TENSOR = "x must be a tensor, got list"
WRONG = [
    pytest.param({"x": [[1.0]]}, TypeError, NO_TENSOR, id="no tensor"),
    pytest.param({"x": torch.ones(3, 2).int()}, TypeError, r"x must be a float32.*got torch.int32", id="integers"),
    pytest.param({"x": torch.ones(4, 2)}, ValueError, r"x must be \[3, F\].*got \[4, 2\]", id="rows"),
    pytest.param({"x": torch.ones(3)}, ValueError, r"x must be \[3, F\].*got \[3\]", id="dimensions"),
    pytest.param({"x": torch.ones(3, 2, device="meta")}, ValueError, "x must be on the device of", id="device"),
    pytest.param({"weight": torch.ones(2)}, ValueError, r"weight must be \[3\].*got \[2\]", id="weight size"),
    pytest.param({"weight": torch.ones(3).int()}, TypeError, r"weight must be.*got torch.int32", id="weight type"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG)
def test_refuses(arguments, error, message):
    graph = CSR(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2]), num_nodes=3)
    arguments = {"x": torch.ones(3, 2), "weight": None} | arguments
    with pytest.raises(error, match=f"^aggregate: {message}"):
        aggregate(graph, **arguments)
    with pytest.raises(error, match=f"^gcn_aggregate: {message}"):
        gcn_aggregate(graph, **arguments)


def test_refuses_reduce_and_residual():
    graph = CSR(torch.tensor([0, 1]), torch.tensor([0]), num_nodes=1)
    x = torch.ones(1, 2)
    with pytest.raises(ValueError, match=r"^aggregate: reduce must be sum, mean, max or min, got 'median'"):
        aggregate(graph, x, reduce="median")
    with pytest.raises(ValueError, match=r"^gcn_aggregate: residual must be given where alpha is not 0"):
        gcn_aggregate(graph, x, alpha=0.5)
    with pytest.raises(ValueError, match=r"^gcn_aggregate: residual must be \[1, 2\] like x, got \[1, 3\]"):
        gcn_aggregate(graph, x, residual=torch.ones(1, 3), alpha=0.5)
    with pytest.raises(TypeError, match=r"^gcn_aggregate: residual must be torch\.float32 like x, got torch\.float64"):
        gcn_aggregate(graph, x, residual=x.double(), alpha=0.5)


def test_operator_refuses_what_does_not_fit():
    x, rowptr, col = torch.ones(3, 2), torch.tensor([0, 1]), torch.tensor([0])
    rest = (None, None, False, 0, None, 0.0, None, None, None)
    with pytest.raises(RuntimeError, match="weight must be contiguous with 1 dimension of at least 1"):
        torch.ops.gossamer.aggregate(x, rowptr, col, torch.ones(0), None, *rest)
    with pytest.raises(RuntimeError, match="col must be int32 or int64"):
        torch.ops.gossamer.aggregate(x, rowptr, col.double(), None, None, *rest)


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("size", "num_keys"), [(0, 0), (0, 3), (1, 1), (1000, 7), (1_500_000, 1000)])
def test_stable_order(size, num_keys, dtype, num_threads):
    keys = torch.randint(max(num_keys, 1), (size,), generator=torch.Generator().manual_seed(0)).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        rowptr, order = _stable_order(keys, num_keys)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(order, keys.sort(stable=True).indices)
    assert rowptr.tolist() == [0, *keys.bincount(minlength=num_keys).cumsum(0).tolist()]


@pytest.mark.parametrize("bad", [-1, 3])
def test_stable_order_refuses_keys_out_of_range(bad):
    with pytest.raises(RuntimeError, match=r"keys must be in \[0, 3\)"):
        _stable_order(torch.tensor([0, bad, 1]), 3)
