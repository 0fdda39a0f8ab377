"""The operators drew_gcn and drew_gcn_backward against the oracle: values, gradients, edges, threads, wrong inputs."""

import pytest
import torch

from gossamer.graph import CSR

import reference

EPS = 1e-5


def shell(num_nodes, num_edges, dtype=torch.int32):
    edges = torch.randint(0, num_nodes, (2, num_edges)).unique(dim=1) if num_edges else torch.empty(2, 0).long()
    graph = CSR.from_edge_index(edges, num_nodes)
    return CSR(graph.rowptr, graph.col.to(dtype), num_nodes=num_nodes)


def problem(num_nodes, width, sizes, hops, num_layers=None, *, dtype=torch.int32, training=True, hop_weights=True):
    """What the operator and the oracle take. hops: (layer, shell, state), sizes: edges of the shells."""
    torch.manual_seed(0)
    shells = [shell(num_nodes, size, dtype) for size in sizes]
    num_hops, num_layers = len(hops), num_layers or max((hop[0] for hop in hops), default=0) + 1
    double = {"dtype": torch.float64}
    x, weight = torch.randn(num_nodes, width, **double), torch.randn(num_hops, width, width, **double)
    gamma, beta = 1 + torch.rand(num_hops, width, **double), torch.randn(num_hops, width, **double)
    hop_weight = torch.rand(num_hops, **double) if hop_weights else None
    statistics = (
        (None, None) if training else (torch.randn(num_hops, width, **double), torch.rand(num_hops, width, **double))
    )
    learned = [t.requires_grad_() for t in (x, weight, gamma, beta, *([hop_weight] if hop_weights else []))]
    return shells, hops, num_layers, learned, statistics


def arguments(
    shells,
    hops,
    num_layers,
    learned,
    statistics,
    *,
    l2_norm=True,
    self_loops=True,
    keep_messages=True,
    dtype=None,
    device="cpu",
):
    x, weight, gamma, beta, *hop_weight = [t.to(dtype or t.dtype) for t in learned]
    mean, var = [None if t is None else t.to(dtype or t.dtype) for t in statistics]
    back = [graph.transpose() for graph in shells]
    scales = [graph.in_degree().add(1).to(x.dtype).rsqrt() for graph in shells]
    given = [
        x, [g.rowptr for g in shells], [g.col for g in shells], scales, *([hop[i] for hop in hops] for i in range(3)),
        num_layers, weight, gamma, beta, hop_weight[0] if hop_weight else None, mean, var, EPS, l2_norm, self_loops,
        keep_messages,
        [g.rowptr for g in back], [g.col for g in back],
    ]  # fmt: skip
    return [on(value, device) for value in given]


def on(value, device):
    """A tensor or a list of them on a device, anything else as it is."""
    if isinstance(value, list):
        return [on(each, device) for each in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value


def oracle(shells, hops, num_layers, learned, statistics, *, l2_norm=True, self_loops=True):
    x, weight, gamma, beta, *hop_weight = learned
    dense = []
    for graph in shells:
        dense.append(torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64))
        dense[-1][graph._rows, graph.col.long()] = 1
    weights = hop_weight[0] if hop_weight else None
    return reference.drew_gcn(
        x, dense, hops, num_layers, weight, gamma, beta, weights, *statistics, EPS, l2_norm, self_loops
    )  # fmt: skip


DELAYED = [(0, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 2), (2, 1, 1), (2, 2, 0)]
CASES = [
    pytest.param({"num_nodes": 50, "width": 8, "sizes": (90, 200, 30), "hops": DELAYED}, id="delayed"),
    pytest.param({"num_nodes": 50, "width": 7, "sizes": (90, 200, 30), "hops": DELAYED, "training": False}, id="eval"),
    pytest.param({"num_nodes": 900, "width": 33, "sizes": (2000, 5000, 10), "hops": DELAYED}, id="several chunks"),
    pytest.param({"num_nodes": 30, "width": 4, "sizes": (60, 0), "hops": [(0, 0, 0), (0, 1, 0)]}, id="empty shell"),
    pytest.param({"num_nodes": 30, "width": 4, "sizes": (60,), "hops": [(1, 0, 0)]}, id="a layer without hops"),
    pytest.param({"num_nodes": 30, "width": 4, "sizes": (), "hops": [], "num_layers": 2}, id="no hop at all"),
    pytest.param({"num_nodes": 2, "width": 1, "sizes": (4,), "hops": [(0, 0, 0)]}, id="two nodes, one feature"),
    pytest.param({"num_nodes": 1, "width": 3, "sizes": (1,), "hops": [(0, 0, 0)], "training": False}, id="one node"),
    pytest.param(
        {"num_nodes": 40, "width": 5, "sizes": (99,), "hops": [(0, 0, 0)] * 3, "dtype": torch.int64}, id="int64"
    ),
    pytest.param(
        {"num_nodes": 40, "width": 5, "sizes": (99,), "hops": [(0, 0, 0)], "hop_weights": False}, id="unweighed"
    ),
]


@pytest.mark.parametrize("keep_messages", [True, False])
@pytest.mark.parametrize("l2_norm", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_matches_the_oracle(case, l2_norm, keep_messages, device):
    given = problem(**case)
    out = torch.ops.gossamer.drew_gcn(*arguments(*given, l2_norm=l2_norm, keep_messages=keep_messages, device=device))[
        0
    ].cpu()
    expected = oracle(*given, l2_norm=l2_norm)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    direction = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad((o * direction).sum(), given[3], allow_unused=True) for o in (out, expected))
    for a, b, of in zip(ours, theirs, given[3], strict=True):
        expected_grad = torch.zeros_like(of) if b is None else b
        torch.testing.assert_close(torch.zeros_like(of) if a is None else a, expected_grad, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("self_loops", [True, False])
@pytest.mark.parametrize("need_grad_x", [True, False])
def test_hops_without_a_shell(self_loops, need_grad_x, device):
    given = problem(900, 16, (2000, 5000), [(0, -1, 0), (0, 0, 0), (1, -1, 1), (1, 1, 0)])
    given[3][0].requires_grad_(need_grad_x)
    learned = given[3][not need_grad_x :]
    out = torch.ops.gossamer.drew_gcn(*arguments(*given, self_loops=self_loops, device=device))[0].cpu()
    expected = oracle(*given, self_loops=self_loops)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    direction = torch.randn_like(out)
    for a, b in zip(*(torch.autograd.grad((o * direction).sum(), learned) for o in (out, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_float32_is_as_near_as_its_rounding(isa, monkeypatch):
    monkeypatch.setenv("GOSSAMER_ISA", isa)
    given = problem(900, 64, (2000, 5000, 100), DELAYED)
    expected = oracle(*given)
    out = torch.ops.gossamer.drew_gcn(*arguments(*given, dtype=torch.float32))[0]
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.autograd.grad(o.double()[:, :7].sum(), given[3]) for o in (out, expected))
    for a, b in zip(ours, theirs):
        assert (a - b).norm() < 1e-4 * b.norm() + 1e-6


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training):
    shells, hops, num_layers, learned, statistics = problem(6, 3, (9, 12), DELAYED[:3], training=training)

    def call(*learned):
        return torch.ops.gossamer.drew_gcn(*arguments(shells, hops, num_layers, learned, statistics))[0]

    assert torch.autograd.gradcheck(call, learned)


def test_opcheck():
    given = problem(40, 4, (80, 99), DELAYED[:3])
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    for training in (True, False):
        given = problem(40, 4, (80, 99), DELAYED[:3], training=training)
        torch.library.opcheck(torch.ops.gossamer.drew_gcn.default, tuple(arguments(*given)), test_utils=checks)
    plain = [*given[:3], [t.detach() for t in given[3]], given[4]]
    inputs = arguments(*plain)
    results = torch.ops.gossamer.drew_gcn(*inputs)
    _, rowptr, col, scale, layer, hop_shell, state, _, weight, gamma, beta, hop_weight, *_ = inputs
    torch.library.opcheck(
        torch.ops.gossamer.drew_gcn_backward.default,
        (torch.ones_like(results[0]), *results, rowptr, col, scale, layer, hop_shell, state, weight, gamma, beta,
         hop_weight, EPS, False, True, True, *inputs[-2:]),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


def test_no_nodes():
    given = problem(0, 4, (0,), [(0, 0, 0)])
    out = torch.ops.gossamer.drew_gcn(*arguments(*given))[0]
    assert out.shape == (0, 4)
    assert all(not grad.any() for grad in torch.autograd.grad(out.sum(), given[3]))


def test_same_bits_for_any_number_of_threads_and_recomputed():
    given = problem(5000, 20, (9000, 20000, 3), DELAYED)
    results, threads = [], torch.get_num_threads()
    for count, keep_messages in [(1, True), (2, True), (4, True), (1, False), (4, False)]:
        torch.set_num_threads(count)
        out, states, _, *others = torch.ops.gossamer.drew_gcn(
            *arguments(*given, dtype=torch.float32, keep_messages=keep_messages)
        )
        results.append([out, states, *others, *torch.autograd.grad(out.square().sum(), given[3])])
    torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_not_a_number_stays_one():
    given = problem(50, 8, (90,), [(0, 0, 0)])
    with torch.no_grad():
        given[3][0][7, 3] = float("nan")
    assert torch.ops.gossamer.drew_gcn(*arguments(*given))[0][7].isnan().all()


def test_inputs_are_not_changed():
    inputs = arguments(*problem(50, 8, (90, 200, 30), DELAYED))
    flat = [
        t for value in inputs for t in (value if isinstance(value, list) else [value]) if isinstance(t, torch.Tensor)
    ]
    before = [t.clone() for t in flat]
    torch.ops.gossamer.drew_gcn(*inputs)[0].sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(flat, before))


WRONG = [
    pytest.param(0, lambda x: x[0], "x must be contiguous with 2 dimensions", id="x of one dimension"),
    pytest.param(0, lambda x: x.half(), "of the type of x", id="x of another type"),
    pytest.param(1, lambda rowptr: [r[:-1] for r in rowptr], "rowptr must be contiguous int64", id="short rowptr"),
    pytest.param(2, lambda col: [c.short() for c in col], "col must be int32 or int64", id="col of int16"),
    pytest.param(3, lambda scale: scale[:1], "must be of the same length", id="a scale is missing"),
    pytest.param(4, lambda layer: layer[::-1], "layer must ascend", id="layers descend"),
    pytest.param(5, lambda hop_shell: [9, *hop_shell[1:]], r"shell must be in \[-1, 3\), got 9", id="no such shell"),
    pytest.param(6, lambda state: [1, *state[1:]], r"state must be in \[0, layer\], got 1", id="a state of the future"),
    pytest.param(7, lambda num_layers: 0, "num_layers must be at least 1, got 0", id="no layer"),
    pytest.param(8, lambda weight: weight[1:], "weight must be contiguous", id="a weight is missing"),
    pytest.param(9, lambda gamma: gamma[:, 1:], "gamma must be contiguous", id="narrow gamma"),
    pytest.param(12, lambda mean: torch.zeros(6, 8).double(), "mean and var must be given together", id="mean alone"),
]  # fmt: skip


@pytest.mark.parametrize(("position", "change", "message"), WRONG)
def test_wrong_inputs(position, change, message):
    inputs = [
        t.detach() if isinstance(t, torch.Tensor) else t for t in arguments(*problem(50, 8, (90, 200, 30), DELAYED))
    ]
    inputs[position] = change(inputs[position])
    with pytest.raises(RuntimeError, match=f"drew_gcn: .*{message}"):
        torch.ops.gossamer.drew_gcn(*inputs)
