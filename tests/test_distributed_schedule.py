"""Schedules without processes: invariants, closed forms and the simulator."""

from dataclasses import replace

import pytest

from gossamer.distributed import gnnpipe, gpipe, naive, one_f_one_b, simulate
from gossamer.distributed.schedule import Action, Costs, Kind, Schedule, check_schedule

ALL = [
    pytest.param(naive, 1, id="naive"),
    pytest.param(gpipe, None, id="gpipe"),
    pytest.param(one_f_one_b, None, id="1f1b"),
    pytest.param(gnnpipe, None, id="gnnpipe"),
]


def make(kind, only, num_stages, num_micro_batches, split):
    if only:
        return kind(num_stages, split_backward=split)
    return kind(num_stages, num_micro_batches, split_backward=split)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("kind", "only"), ALL)
@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
@pytest.mark.parametrize("num_micro_batches", [1, 2, 4, 11])
def test_every_schedule_is_complete_and_free_of_deadlock(kind, only, num_stages, num_micro_batches, split):
    check_schedule(make(kind, only, num_stages, num_micro_batches, split))


@pytest.mark.parametrize(("kind", "only"), ALL)
def test_sends_match_receives_in_order(kind, only):
    stages = make(kind, only, 4, 6, False).stages
    pairs = [(s, s + 1, Kind.SEND_ACTIVATION, Kind.RECEIVE_ACTIVATION) for s in range(3)]
    pairs += [(s + 1, s, Kind.SEND_GRADIENT, Kind.RECEIVE_GRADIENT) for s in range(3)]
    for sender, receiver, send, receive in pairs:
        sent = [a.micro_batches for a in stages[sender] if a.kind is send]
        assert sent == [a.micro_batches for a in stages[receiver] if a.kind is receive]


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_table_of_2bp_with_unit_costs(n):
    """Time and bubble of the four schedules, without and with the split."""
    table = {
        naive(n): (3 * n, (n - 1) / n),
        naive(n, split_backward=True): (2 * n + 1, 2 * (n - 1) / (2 * n + 1)),
        gpipe(n, n): (3 * (2 * n - 1), (n - 1) / (2 * n - 1)),
        gpipe(n, n, split_backward=True): (5 * n - 2, 2 * (n - 1) / (5 * n - 2)),
        one_f_one_b(n, n): (3 * (2 * n - 1), (n - 1) / (2 * n - 1)),
        one_f_one_b(n, n, split_backward=True): (4 * n - 1, (n - 1) / (4 * n - 1)),
        one_f_one_b(n, 2 * n): (3 * (3 * n - 1), (n - 1) / (3 * n - 1)),
        one_f_one_b(n, 2 * n, split_backward=True): (7 * n - 1, (n - 1) / (7 * n - 1)),
    }
    for schedule, (time, bubble) in table.items():
        timeline = simulate(schedule, Costs())
        assert (timeline.makespan, timeline.bubble) == (time, pytest.approx(bubble)), schedule.name


@pytest.mark.parametrize(("num_stages", "num_chunks"), [(2, 8), (4, 16), (8, 32)])
def test_gnnpipe_bubble(num_stages, num_chunks):
    timeline = simulate(gnnpipe(num_stages, num_chunks), Costs())
    assert timeline.bubble == pytest.approx((num_stages - 1) / (num_chunks + num_stages - 1))


def test_gnnpipe_runs_backwards_in_reverse_order():
    actions = gnnpipe(3, 5).stages[1]
    order = {kind: [a.micro_batches[0] for a in actions if a.kind is kind] for kind in (Kind.FORWARD, Kind.BACKWARD)}
    assert order[Kind.BACKWARD] == order[Kind.FORWARD][::-1]


def test_costs_per_stage_and_transfer_count():
    timeline = simulate(gpipe(2, 1), Costs(forward=(1.0, 2.0), backward_input=0.5, backward_weight=0.5, transfer=0.25))
    assert timeline.makespan == 1.0 + 0.25 + 2.0 + 1.0 + 0.25 + 1.0
    assert timeline.busy == (2.0, 3.0)


def test_messages_of_one_border_wait_for_each_other():
    costs = Costs(forward=1.0, backward_input=0.5, backward_weight=0.5, transfer=(0.25, 0.0), occupancy=(3.0, 0.0))
    events = [e for e in simulate(gpipe(3, 2), costs).events if e.action.kind is Kind.FORWARD]
    starts = {(e.stage, e.action.micro_batches[0]): e.start for e in events}
    assert [starts[0, m] for m in (0, 1)] == [0.0, 1.0]
    assert [starts[1, m] for m in (0, 1)] == [1.0 + 3.0 + 0.25, 1.0 + 2 * 3.0 + 0.25]
    assert [starts[2, m] for m in (0, 1)] == [starts[1, m] + 1.0 for m in (0, 1)]


def test_a_receive_without_its_send_is_found():
    good = gpipe(2, 1)
    first = tuple(a for a in good.stages[0] if a.kind is not Kind.SEND_ACTIVATION)
    with pytest.raises(ValueError, match="must not deadlock"):
        check_schedule(replace(good, stages=(first, good.stages[1])))


def test_a_missing_backward_is_found():
    only_forward = Schedule("bad", 1, 1, False, ((Action(Kind.FORWARD, (0,)), Action(Kind.STEP)),))
    with pytest.raises(ValueError, match="every micro-batch once"):
        check_schedule(only_forward)


@pytest.mark.parametrize(("call", "name"), [(lambda: gpipe(0, 1), "num_stages"), (lambda: gnnpipe(2, 0), "num_micro")])
def test_counts_must_be_positive(call, name):
    with pytest.raises(ValueError, match=f"{name}.* must be at least 1, got 0"):
        call()
