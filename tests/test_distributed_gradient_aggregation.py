"""Local gradient aggregation on two workers against one process with one large batch."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from workers import run_workers

from gossamer.distributed import LocalGradientAggregation
from gossamer.graph import IDEmbedding, RowwiseAdagrad

NUM_WORKERS, NUM_BATCHES, BATCH, STEPS = 2, 3, 5, 2


class Model(nn.Module):
    """A table, a head, a vector that only worker 0 uses, and one that nobody uses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = IDEmbedding(40, 4)
        self.rare = IDEmbedding(10, 4)
        self.head = nn.Linear(4, 1)
        self.own = nn.Parameter(torch.randn(4, dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, nodes, with_rare):
        rows = self.embedding(nodes) + (self.rare(nodes % 10) if with_rare else 0)
        return self.head(rows).squeeze(1) + (rows.double() @ self.own).float()


def batches():
    """[steps, workers, batches per exchange, batch] of nodes; worker 1 never reads the rare table."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(40, (STEPS, NUM_WORKERS, NUM_BATCHES, BATCH), generator=generator)


def loss_of(model, nodes, worker):
    return model(nodes, worker == 0).square().mean()


def updates(model):
    dense = [p for name, p in model.named_parameters() if "table" not in name]
    tables = [model.embedding.table, model.rare.table]
    return torch.optim.SGD(dense, lr=0.1), RowwiseAdagrad(tables, lr=0.1)


def one_process():
    model = Model()
    optimizers = updates(model)
    for step in batches():
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses = [loss_of(model, nodes, worker) for worker in range(NUM_WORKERS) for nodes in step[worker]]
        torch.stack(losses).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    return model.state_dict()


def work(rank, port, out):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=NUM_WORKERS)
    model = Model()
    optimizers = updates(model)
    aggregation = LocalGradientAggregation(model.parameters(), NUM_BATCHES)
    stepped = []
    for step in batches():
        for nodes in step[rank]:
            aggregation.backward(loss_of(model, nodes, rank))
            stepped.append(aggregation.step())
            if stepped[-1]:
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
    torch.save((model.state_dict(), stepped, aggregation.num_exchanges, aggregation.counters.total), f"{out}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.launch
def test_two_workers_train_like_one_large_batch(tmp_path):
    from gossamer.distributed.launcher import free_port

    run_workers(work, (free_port(), str(tmp_path)), num_workers=NUM_WORKERS)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(NUM_WORKERS)]
    expected = one_process()
    for name, value in expected.items():
        torch.testing.assert_close(found[0][0][name], value, rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(found[0][0][name], found[1][0][name]), name  # the same bits on every worker
    for _, stepped, num_exchanges, num_bytes in found:
        assert stepped == [False, False, True] * STEPS
        assert num_exchanges == STEPS
        # Far less than the tables: at most 15 rows of 4 numbers and an id, of each table.
        dense, rows = 4 * 4 + 4 + 4 * 8, 15 * (4 * 4 + 8)
        assert 0 < num_bytes <= STEPS * (5 * 8 + dense + 2 * rows + 5 * 8)


def test_alone_it_accumulates():
    model, other = Model(), Model()
    aggregation = LocalGradientAggregation(model.parameters(), NUM_BATCHES)
    nodes = batches()[0, 0]
    for part in nodes:
        aggregation.backward(loss_of(model, part, 0))
        done = aggregation.step()
    assert done
    assert aggregation.counters.total == 0
    torch.stack([loss_of(other, part, 0) for part in nodes]).mean().backward()
    for (name, p), q in zip(model.named_parameters(), other.parameters()):
        if q.grad is None:
            assert p.grad is None
        else:
            dense = [g.to_dense() if g.is_sparse else g for g in (p.grad, q.grad)]
            torch.testing.assert_close(*dense, msg=name)


def test_wrong_count():
    with pytest.raises(ValueError, match="LocalGradientAggregation: num_batches must be at least 1, got 0"):
        LocalGradientAggregation([], 0)
