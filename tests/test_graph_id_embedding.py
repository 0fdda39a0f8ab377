"""ID embeddings and their optimizer against loops; sparse and dense gradients give the same training."""

import copy
import pickle

import pytest
import torch

from gossamer.graph import IDEmbedding, RowwiseAdagrad

NODES = torch.tensor([[3, -1, 0], [3, 5, 3]])


def test_rows_beside_features():
    embedding = IDEmbedding(6, 4)
    x = torch.randn(2, 3, 2)
    out = embedding(NODES, x)
    assert out.shape == (2, 3, 6)
    for i in range(2):
        for j in range(3):
            node = int(NODES[i, j])
            row = embedding.table[node] if node >= 0 else torch.zeros(4)
            assert torch.equal(out[i, j], torch.cat([row, x[i, j]]))
    assert torch.equal(embedding(NODES), out[..., :4])
    assert embedding(torch.empty(0, dtype=torch.int64)).shape == (0, 4)
    assert embedding(torch.tensor([-1])).tolist() == [[0.0] * 4]


@pytest.mark.parametrize("nodes", [NODES, NODES.clamp(min=0)])
def test_gradient_is_sparse_and_that_of_the_dense_table(nodes):
    embedding = IDEmbedding(6, 4).double()
    weight = torch.randn(2, 3, 4, dtype=torch.float64)
    (embedding(nodes) * weight).sum().backward()
    gradient = embedding.table.grad
    assert gradient.is_sparse
    assert set(gradient.coalesce().indices()[0].tolist()) == set(nodes[nodes >= 0].tolist())
    expected = torch.zeros(6, 4, dtype=torch.float64)
    for i in range(2):
        for j in range(3):
            if nodes[i, j] >= 0:
                expected[nodes[i, j]] += weight[i, j]
    torch.testing.assert_close(gradient.to_dense(), expected)


def test_gradcheck():
    embedding = IDEmbedding(6, 4, sparse=False).double()

    def forward(table, x):
        return torch.func.functional_call(embedding, {"table": table}, (NODES, x))

    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(forward, (embedding.table.detach().requires_grad_(), x))


def train(embedding, optimizer, steps=4):
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        nodes = torch.randint(6, (9,), generator=g)
        (embedding(nodes) - torch.randn(9, 4, generator=g)).square().sum().backward()
        optimizer.step()
    return embedding.table.detach()


def test_row_by_row():
    """Against the formula, one row and one number at a time, in float64."""
    torch.manual_seed(0)
    embedding = IDEmbedding(6, 4)
    table = embedding.table.detach().double().clone()
    state = [0.25] * 6
    g = torch.Generator().manual_seed(0)
    for _ in range(4):
        nodes, target = torch.randint(6, (9,), generator=g), torch.randn(9, 4, generator=g).double()
        gradient = {}
        for place, node in enumerate(nodes.tolist()):
            gradient[node] = gradient.get(node, 0) + 2 * (table[node] - target[place])
        for node, row in gradient.items():
            state[node] += float((row**2).mean())
            table[node] -= 0.1 * row / (state[node] ** 0.5 + 1e-8)
    found = train(embedding, RowwiseAdagrad(embedding.parameters(), lr=0.1, initial=0.25))
    torch.testing.assert_close(found.double(), table, rtol=1e-5, atol=1e-6)


def test_sparse_and_dense_gradients_train_alike():
    torch.manual_seed(0)
    sparse = IDEmbedding(6, 4)
    dense = copy.deepcopy(sparse)
    dense.sparse = False
    tables = [train(e, RowwiseAdagrad(e.parameters(), lr=0.1)) for e in (sparse, dense)]
    torch.testing.assert_close(*tables, rtol=1e-5, atol=1e-6)


def test_rows_that_were_not_read_stay_and_the_state_is_one_number_per_row():
    embedding = IDEmbedding(1000, 64)
    before = embedding.table.detach().clone()
    optimizer = RowwiseAdagrad(embedding.parameters())
    embedding(torch.tensor([7, 8])).sum().backward()
    optimizer.step()
    assert (embedding.table.detach() != before).any(1).nonzero().flatten().tolist() == [7, 8]
    assert optimizer.state[embedding.table]["sum"].numel() == 1000


def test_a_restored_optimizer_goes_on():
    torch.manual_seed(0)
    whole = IDEmbedding(6, 4)
    parts = copy.deepcopy(whole)
    first, second = RowwiseAdagrad(whole.parameters()), RowwiseAdagrad(parts.parameters())
    train(whole, first)
    train(parts, second)
    again = RowwiseAdagrad(parts.parameters())
    again.load_state_dict(pickle.loads(pickle.dumps(second.state_dict())))
    assert torch.equal(train(whole, first), train(parts, again))


def test_threads_do_not_change_bits():
    tables = []
    before = torch.get_num_threads()
    for threads in (1, 4):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        embedding = IDEmbedding(500, 16)
        optimizer = RowwiseAdagrad(embedding.parameters())
        embedding(torch.randint(500, (20_000,))).square().sum().backward()
        optimizer.step()
        tables.append(embedding.table.detach())
    torch.set_num_threads(before)
    assert torch.equal(*tables)


def test_a_vector_has_one_number_per_element_and_closures_run():
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    p.grad = torch.tensor([3.0, 0.0])
    assert RowwiseAdagrad([p], lr=0.5, eps=1e-8).step(lambda: 7.0) == 7.0
    assert p.tolist() == [0.5, 2.0]


WRONG = [
    pytest.param(lambda: IDEmbedding(0, 4), ValueError, "IDEmbedding: num_nodes must be at least 1, got 0", id="rows"),
    pytest.param(lambda: IDEmbedding(4, 0), ValueError, "IDEmbedding: dim must be at least 1, got 0", id="dim"),
    pytest.param(
        lambda: IDEmbedding(4, 2)(torch.tensor([4])), ValueError, r"node must be in \[-1, 4\), got 4 to 4", id="node"
    ),
    pytest.param(lambda: IDEmbedding(4, 2)(torch.rand(1)), TypeError, "node must be int64 or int32, got", id="floats"),
    pytest.param(lambda: IDEmbedding(4, 2)([1]), TypeError, "node must be int64 or int32, got list", id="list"),
    pytest.param(lambda: IDEmbedding(4, 2, std=-1.0), ValueError, "std must be at least 0, got -1.0", id="std"),
    pytest.param(
        lambda: IDEmbedding(4, 2)(NODES.clamp(max=3), torch.rand(2, 2)), ValueError, "x must have the shape", id="x"
    ),
    pytest.param(lambda: RowwiseAdagrad([], lr=-1), ValueError, "lr must be at least 0, got -1", id="lr"),
    pytest.param(lambda: RowwiseAdagrad([], eps=0), ValueError, "eps must be above 0, got 0", id="eps"),
]


@pytest.mark.parametrize(("call", "kind", "message"), WRONG)
def test_wrong_arguments(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
