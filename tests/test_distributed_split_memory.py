"""2BP's memory: what waits between p1 and p2 is counted to the byte, and can be less for more work."""

import gc

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gossamer.distributed import bound_waiting, gnnpipe, gpipe, naive, one_f_one_b, peak_bytes, simulate
from gossamer.distributed.schedule import Costs, Kind, check_schedule
from gossamer.distributed.split import SplitBackward, saved_bytes

from live_bytes import LiveBytes

ROWS, WIDTH, DEPTH = 7, 16, 4
TENSOR = ROWS * WIDTH * 4
pytestmark = pytest.mark.usefixtures("one_thread")


class Block(nn.Module):
    """A residual block with tensors that p1 alone needs: a mask, the input of a GELU, attention weights."""

    def __init__(self, recompute=False):
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(WIDTH), nn.Dropout(0.3)
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)
        self.recompute = recompute

    def forward(self, x):
        return checkpoint(self.branch, x, use_reentrant=False) if self.recompute else self.branch(x)

    def branch(self, x):
        y = self.norm(x)
        y = (y @ y.T).softmax(1) @ y
        return x + self.dropout(self.down(nn.functional.gelu(self.up(y))))


def run(blocks, x):
    torch.manual_seed(3)
    outputs = []
    for block in blocks:
        x = block(x)
        outputs.append(x)
    return outputs


def test_a_linear_stack_keeps_inputs_and_gradients_alone():
    """Per linear layer its input and the gradient of its output, nothing for the masks: 2 DEPTH tensors in all."""
    layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.5))]
    x = torch.randn(ROWS, WIDTH)
    output = nn.Sequential(*layers)(x)
    assert saved_bytes([output]) == 3 * DEPTH * TENSOR  # the input, the rectified rows, what dropout multiplies by
    split = SplitBackward([output], [])
    split.input_gradients([torch.ones_like(output)])
    assert split.waiting_bytes == 2 * DEPTH * TENSOR
    split.weight_gradients()
    assert split.waiting_bytes == 0


@pytest.mark.parametrize(("checkpoints", "num_given"), [(False, 1), (True, 2)])
def test_counted_bytes_are_those_that_live(checkpoints, num_given):
    """But for what the caller made: the input and, at a checkpoint, the gradient of the output."""
    blocks = nn.ModuleList(Block() for _ in range(DEPTH))
    x, gradient = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)
    with LiveBytes() as live:
        outputs = run(blocks, x)
        output, marks = outputs[-1], outputs if checkpoints else []
        split = SplitBackward([output], [], checkpoints=marks)
        del outputs, output, marks
        split.input_gradients([gradient])
        gc.collect()
        assert live.now == split.waiting_bytes - num_given * TENSOR
        split.weight_gradients()


@pytest.mark.parametrize("recompute", [False, True])
def test_derivative_checkpoints_change_no_bit(recompute):
    blocks = nn.ModuleList(Block(recompute) for _ in range(DEPTH))
    x, gradient = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(ROWS, WIDTH)
    expected = torch.autograd.grad(run(blocks, x)[-1], [x, *blocks.parameters()], gradient)
    outputs = run(blocks, x)
    split = SplitBackward([outputs[-1]], [x], checkpoints=outputs)
    found = split.input_gradients([gradient])
    weights = split.weight_gradients()
    assert torch.equal(found[0], expected[0])
    for parameter, value in zip(blocks.parameters(), expected[1:]):
        assert torch.equal(weights[parameter], value)


def test_checkpoints_with_recomputation_keep_two_tensors_per_block():
    """The input of a block, which is the output of the one below, and the gradient of its output."""
    blocks = nn.ModuleList(Block(recompute=True) for _ in range(DEPTH))
    x, gradient = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)
    with LiveBytes() as live:
        outputs = run(blocks, x)
        split = SplitBackward([outputs[-1]], [], checkpoints=outputs)
        del outputs
        random_states = live.now - DEPTH * TENSOR  # dropout's, kept by torch.utils.checkpoint
        split.input_gradients([gradient])
        gc.collect()
        assert live.now - random_states == (DEPTH - 1) * TENSOR + (DEPTH - 1) * TENSOR


def test_a_path_around_a_checkpoint_is_not_counted_twice():
    """A skip connection passes the checkpoint: the layer below keeps its own gradient."""
    first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    x, gradient = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)

    def forward():
        hidden = first(x)
        mark = second(torch.tanh(hidden))
        return torch.sin(mark) + hidden, mark

    parameters = [*first.parameters(), *second.parameters()]
    expected = torch.autograd.grad(forward()[0], parameters, gradient)
    output, mark = forward()
    split = SplitBackward([output], [], checkpoints=[mark])
    split.input_gradients([gradient])
    weights = split.weight_gradients()
    assert all(torch.equal(weights[p], value) for p, value in zip(parameters, expected))


def test_what_was_given_free_cannot_be_used():
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    output = torch.tanh(nn.Linear(WIDTH, WIDTH)(x))
    SplitBackward([output], [x]).input_gradients([torch.ones_like(output)])
    with pytest.raises(RuntimeError, match="given free after p1"):
        torch.autograd.grad(output, x, torch.ones_like(output))


# Schedules.

SIZES = ((1, 4), (4, 4), (3, 8))
SCHEDULES = [make(*size, split_backward=True) for make in (gpipe, one_f_one_b, gnnpipe) for size in SIZES]
SCHEDULES.append(naive(3, split_backward=True))


@pytest.mark.parametrize("max_waiting", [1, 2, 3])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.name} {s.num_stages} x {s.num_micro_batches}")
def test_bounded_schedules(schedule, max_waiting):
    """Complete, within the bound, with p2 in the same order; less memory is never faster."""
    bounded = bound_waiting(schedule, max_waiting)
    check_schedule(bounded)
    assert max(peak_bytes(bounded, in_flight=0, waiting=1)) <= max_waiting
    for before, after in zip(schedule.stages, bounded.stages):
        assert _order_of_p2(before) == _order_of_p2(after)
    assert simulate(bounded, Costs()).makespan >= simulate(schedule, Costs()).makespan


def _order_of_p2(actions):
    return [m for a in actions if a.kind is Kind.BACKWARD_WEIGHT for m in a.micro_batches]


def test_peak_bytes_of_1f1b():
    """Stage s holds S - s micro-batches in flight; without a bound the first stages hold back p2 of almost all."""
    fused, split = one_f_one_b(4, 8), one_f_one_b(4, 8, split_backward=True)
    assert peak_bytes(fused, in_flight=3, waiting=0) == (12, 9, 6, 3)
    assert peak_bytes(split, in_flight=3, waiting=2) == tuple(max(_kept(split, s)) for s in range(4))
    assert peak_bytes(bound_waiting(split, 1), in_flight=3, waiting=2)[0] < peak_bytes(split, in_flight=3, waiting=2)[0]


def _kept(schedule, stage):
    """Bytes after every action, from the sets of micro-batches that are somewhere."""
    flying, waiting = set(), set()
    for action in schedule.stages[stage]:
        if action.kind is Kind.FORWARD:
            flying |= set(action.micro_batches)
        elif action.kind is Kind.BACKWARD_INPUT:
            flying -= set(action.micro_batches)
            waiting |= set(action.micro_batches)
        elif action.kind is Kind.BACKWARD_WEIGHT:
            waiting -= set(action.micro_batches)
        yield 3 * len(flying) + 2 * len(waiting)


def test_bad_bounds():
    with pytest.raises(ValueError, match="bound_waiting: max_waiting must be at least 1, got 0"):
        bound_waiting(gpipe(2, 2, split_backward=True), 0)
    with pytest.raises(ValueError, match="bound_waiting: schedule must have a split backward, got gpipe without"):
        bound_waiting(gpipe(2, 2), 1)
