"""gated_sum against its oracle: values, gradients, extremes, threads, instruction sets, wrong inputs."""

import pytest
import torch

from gossamer.graph import CSR, gated_sum

import reference

EPS = 1e-6
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def graph_of(num_nodes, num_edges, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(0, max(num_nodes, 1), (2, num_edges), generator=generator)
    return CSR.from_edge_index(edges, num_nodes).to(device)


def inputs(num_nodes, width, dtype=torch.float64, device="cpu", scale=1.0):
    torch.manual_seed(1)
    return [(scale * torch.randn(num_nodes, width)).to(dtype).to(device).requires_grad_() for _ in range(3)]


CASES = [
    pytest.param(40, 200, 16, id="whole registers"),
    pytest.param(40, 200, 13, id="narrow"),
    pytest.param(300, 900, 67, id="registers and a rest"),
    pytest.param(7, 0, 5, id="no edges"),
    pytest.param(1, 3, 1, id="self loops of one node, one feature"),
    pytest.param(5, 400, 4, id="many equal edges"),
    pytest.param(9000, 60_000, 3, id="several ranges of rows"),
]


@pytest.mark.parametrize(("num_nodes", "num_edges", "width"), CASES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_matches_the_oracle(num_nodes, num_edges, width, dtype, device):
    graph, given = graph_of(num_nodes, num_edges, device), inputs(num_nodes, width, dtype, device)
    out = gated_sum(graph, *given)
    doubles = [t.detach().double().cpu().requires_grad_() for t in given]
    expected = reference.gated_sum(graph.rowptr.cpu(), graph.col.cpu(), *doubles, EPS)
    assert out.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out.double().cpu(), expected, rtol=tolerance, atol=tolerance)
    direction = torch.randn(out.shape).to(dtype)
    ours = torch.autograd.grad((out * direction.to(device)).sum(), given)
    theirs = torch.autograd.grad((expected * direction.double()).sum(), doubles)
    for a, b in zip(ours, theirs):
        assert (a.double().cpu() - b).norm() <= 4 * tolerance * b.norm() + tolerance


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_every_instruction_set(isa, monkeypatch):
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    graph, given = graph_of(60, 300), inputs(60, 21, torch.float32)
    expected = reference.gated_sum(graph.rowptr, graph.col, *given, EPS)
    out = gated_sum(graph, *given)
    torch.testing.assert_close(out.double(), expected, rtol=2e-5, atol=2e-5)
    ours, theirs = (torch.autograd.grad(o.double().square().sum(), given) for o in (out, expected))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_same_bits_for_any_number_of_threads():
    graph, given, results = graph_of(20_000, 90_000), inputs(20_000, 20, torch.float32), []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        out = gated_sum(graph, *given)
        results.append([out, *torch.autograd.grad(out.square().sum(), given)])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


@pytest.mark.parametrize("scale", [0.0, 50.0, 1e4])
def test_gates_that_are_open_or_shut(scale):
    graph, given = graph_of(40, 200), inputs(40, 9, torch.float32, scale=scale)
    expected = reference.gated_sum(graph.rowptr, graph.col, *given, EPS)
    out = gated_sum(graph, *given)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4 * (1 + scale))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), given))


def test_gradcheck():
    graph, given = graph_of(6, 15), inputs(6, 3)
    assert torch.autograd.gradcheck(lambda *tensors: gated_sum(graph, *tensors), given)


def test_opcheck():
    graph, given = graph_of(20, 60), inputs(20, 6)
    back = graph.transpose()
    ids = (graph.rowptr, graph.col)
    torch.library.opcheck(
        torch.ops.gossamer.gated_sum.default, (*given, *ids, EPS, back.rowptr, back.col),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )  # fmt: skip
    plain = [t.detach() for t in given]
    results = torch.ops.gossamer.gated_sum(*plain, *ids, EPS)
    torch.library.opcheck(
        torch.ops.gossamer.gated_sum_backward.default,
        (torch.ones_like(results[0]), *results, *plain, *ids, back.rowptr, back.col),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_compiles_whole():
    graph, given = graph_of(20, 60), inputs(20, 6)
    expected = gated_sum(graph, *given) * 2
    compiled = torch.compile(lambda *t: gated_sum(graph, *t) * 2, fullgraph=True, backend="aot_eager")
    out = compiled(*given)
    assert torch.equal(out, expected)
    ours, theirs = (torch.autograd.grad(o.sum(), given) for o in (out, expected))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


GRAPH, X = graph_of(4, 6), torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "graph must be a CSR, got Tensor", lambda: gated_sum(X, X, X, X)),
        (TypeError, "query must be a floating point .*, got torch.int64", lambda: gated_sum(GRAPH, X.long(), X, X)),
        (TypeError, "value must be .* of query, got torch.float64", lambda: gated_sum(GRAPH, X, X, X.double())),
        (ValueError, r"query must be \[4, F\] .*, got \[3, 2\]", lambda: gated_sum(GRAPH, X[1:], X, X)),
        (ValueError, r"key must be \[4, F\] .*, got \[4, 1\]", lambda: gated_sum(GRAPH, X, X[:, 1:], X)),
        (ValueError, "eps must be above 0, got 0", lambda: gated_sum(GRAPH, X, X, X, eps=0)),
    ],
)  # fmt: skip
def test_wrong_inputs(error, message, call):
    with pytest.raises(error, match=f"gated_sum: {message}"):
        call()
