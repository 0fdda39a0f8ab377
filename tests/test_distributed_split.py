"""2BP: the backward pass in two parts has the bits of the fused one, for any stack of modules."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from workers import run_workers

from gossamer.distributed.channel import Channel
from gossamer.distributed.executor import execute
from gossamer.distributed.grid import Grid
from gossamer.distributed.micro_batches import MicroBatchWorker
from gossamer.distributed.schedule import gpipe, naive, one_f_one_b
from gossamer.distributed.split import SplitBackward
from gossamer.sparse_nn import MoE, MultiQueryAttention, TopKRouter

from pipeline_problem import MODELS, gradients_of_next_epoch, make_engine, make_model, make_problem


class Block(nn.Module):
    """A sparse transformer block: shared-KV attention and routed experts."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = MultiQueryAttention(width, 4)
        self.experts = MoE(width, 2 * width, 4, TopKRouter(width, 4, 2))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.experts(self.norm2(x).flatten(0, 1)).view_as(x)


class Tied(nn.Module):
    """One weight used twice, one of them behind the other, and a normalised weight."""

    def __init__(self, width):
        super().__init__()
        self.shared = nn.Linear(width, width)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(width, width))

    def forward(self, x):
        return self.shared(torch.relu(self.normed(torch.tanh(self.shared(x)))))


def linear_stack(width):
    return nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Dropout(0.2), nn.Linear(3 * width, width))


def encoder(width):
    return nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True, norm_first=True)


STACKS = {"linear": linear_stack, "encoder": encoder, "sparse transformer": Block, "tied": Tied}


@pytest.mark.parametrize("with_input", [True, False])
@pytest.mark.parametrize("name", STACKS)
def test_two_parts_are_the_fused_backward_to_the_bit(name, with_input):
    torch.manual_seed(0)
    module = STACKS[name](16)
    x = torch.randn(3, 5, 16, requires_grad=with_input)
    targets = [*module.parameters(), *([x] if with_input else [])]
    gradient = torch.randn(3, 5, 16)
    torch.manual_seed(1)
    expected = torch.autograd.grad(module(x), targets, gradient, allow_unused=True)
    torch.manual_seed(1)
    split = SplitBackward([module(x)], [x] if with_input else [])
    inputs = split.input_gradients([gradient])
    weights = split.weight_gradients()
    for parameter, value in zip(module.parameters(), expected):
        assert (parameter in weights) == (value is not None)
        assert value is None or torch.equal(weights[parameter], value)
    if with_input:
        assert torch.equal(inputs[0], expected[-1])


def test_p2_is_left_with_every_weight_of_a_linear_stack():
    """p1 computes no parameter gradient: each one waits, and what waits is gone after p2."""
    module = linear_stack(16)
    split = SplitBackward([module(torch.randn(7, 16))], [])
    assert set(split.deferred) == set(module.parameters())
    split.input_gradients([torch.ones(7, 16)])
    assert all(parameter.grad is None for parameter in module.parameters())
    assert len(split.weight_gradients()) == 4
    assert split.weight_gradients() == {}


def test_a_shared_weight_does_not_wait():
    module = Tied(16)
    split = SplitBackward([module(torch.randn(7, 16))], [])
    assert not set(split.deferred) & set(module.shared.parameters())


@pytest.mark.parametrize("num_chunks", [5, 1])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_gnnpipe_with_split_backward_changes_no_bit(name, recompute, num_chunks):
    graph, data = make_problem()
    model = make_model(name, dropout=0.3)
    runs = []
    for split in (False, True):
        engine = make_engine(
            model, graph, data, num_chunks=num_chunks, refresh_period=2, recompute=recompute, split_backward=split
        )
        losses = [engine.train_epoch().loss for _ in range(5)]
        runs.append((losses, gradients_of_next_epoch(engine)[1]))
    (losses, gradients), (split_losses, split_gradients) = runs
    assert losses == split_losses
    assert gradients.keys() == split_gradients.keys()
    assert all(torch.equal(gradients[key], split_gradients[key]) for key in gradients)


# Two processes.

SCHEDULES = {"naive": (naive, 1), "gpipe": (gpipe, 4), "1f1b": (one_f_one_b, 4)}


def run_transformer(rank, world, num_micro_batches, make, split):
    """Gradients of the stage ``rank`` of a transformer of two blocks."""
    torch.manual_seed(0)
    blocks = nn.Sequential(Block(16), Block(16))
    micro_batches = torch.randn(4, 3, 5, 16).chunk(num_micro_batches)
    micro_batches = [m.flatten(0, 1) for m in micro_batches]
    stage = blocks if world == 1 else blocks[rank]
    last = rank == world - 1

    def loss(output, m):
        return F.mse_loss(output, torch.zeros_like(output), reduction="sum")

    like = micro_batches[0]
    worker = MicroBatchWorker(
        stage, (like, like), inputs=micro_batches if rank == 0 else (), loss=loss if last else None
    )
    arguments = (world,) if make is naive else (world, num_micro_batches)
    schedule = make(*arguments, split_backward=split)
    execute(schedule.stages[rank], worker, Channel(Grid(world, 1, rank), torch.device("cpu")))
    prefix = "" if world == 1 else f"{rank}."
    return {prefix + name: p.grad for name, p in stage.named_parameters() if p.grad is not None}


def _worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {
        (name, split): run_transformer(rank, 2, count, make, split)
        for name, (make, count) in SCHEDULES.items()
        for split in (False, True)
    }
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.launch
def test_two_transformer_stages_under_every_schedule(tmp_path):
    """Split equals fused to the bit, and both are the gradients of one process."""
    run_workers(_worker, (str(tmp_path),), num_workers=2)
    stages = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, (make, count) in SCHEDULES.items():
        expected = run_transformer(0, 1, count, make, False)
        for stage in stages:
            fused, split = stage[name, False], stage[name, True]
            assert fused.keys() == split.keys()
            for key in fused:
                assert torch.equal(fused[key], split[key])
        together = stages[0][name, True] | stages[1][name, True]
        assert together.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(together[key], value, rtol=1e-4, atol=1e-5)


def _gnnpipe_worker(rank, world, folder):
    """Losses, and the gradients of the epoch after them, of both kinds of backward pass."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    graph, data = make_problem()
    found = {}
    for split in (False, True):
        section = {"num_chunks": 5, "refresh_period": 2, "split_backward": split, "backend": "torch"}
        engine = make_engine(make_model(dropout=0.3), graph, data, **section)
        found[split] = [engine.train_epoch().loss for _ in range(4)], gradients_of_next_epoch(engine)[1]
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.launch
@pytest.mark.parametrize("world", [2, 3])
def test_gnnpipe_in_several_processes_with_split_backward_changes_no_bit(tmp_path, world):
    run_workers(_gnnpipe_worker, (world, str(tmp_path)), num_workers=world)
    graph, data = make_problem()
    engine = make_engine(make_model(dropout=0.3), graph, data, num_chunks=5, refresh_period=2, split_backward=True)
    expected = [engine.train_epoch().loss for _ in range(4)]
    names = set()
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt")
        (losses, gradients), (split_losses, split_gradients) = found[False], found[True]
        assert losses == split_losses == pytest.approx(expected, rel=1e-5)
        assert gradients.keys() == split_gradients.keys()
        assert all(torch.equal(gradients[key], split_gradients[key]) for key in gradients)
        names |= gradients.keys()
    assert names == {name for name, _ in engine.module.named_parameters()}
