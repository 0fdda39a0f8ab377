"""AdaptiveFanout and group_and_slice."""

import pickle

import pytest
import torch

from gossamer.graph import CSR, AdaptiveFanout, group_and_slice, neighbor_sample


def test_fanout_grows_on_plateaus_only():
    policy = AdaptiveFanout(start=2, stride=20, final=50, tolerance=0.01, decay=0.5)
    metrics = [0.5, 0.6, 0.6, 0.61, 0.6105, 0.7, 0.7]
    assert [policy.update(m) for m in metrics] == [2, 2, 22, 22, 42, 42, 50]
    assert policy.tolerance == pytest.approx(0.01 * 0.5**7)


def test_a_pickled_policy_goes_on():
    policy = AdaptiveFanout(2, 3, 9, 0.0, 1.0)
    policy.update(0.5)
    again = pickle.loads(pickle.dumps(policy))
    assert [again.update(0.5), again.update(0.4)] == [policy.update(0.5), policy.update(0.4)] == [5, 8]


WRONG = [
    pytest.param({"start": 0}, "start must be at least 1, got 0", id="start"),
    pytest.param({"start": 2.5}, "start must be an int, got 2.5", id="half a neighbour"),
    pytest.param({"fanout": -4}, r"fanout must be in \[1, 9\], got -4", id="fan-out"),
    pytest.param({"stride": 0}, "stride must be at least 1, got 0", id="stride"),
    pytest.param({"final": 1}, "final must be at least start = 2, got 1", id="final"),
    pytest.param({"tolerance": -1.0}, "tolerance must be at least 0, got -1.0", id="tolerance"),
    pytest.param({"decay": 0.0}, r"decay must be in \(0, 1\], got 0.0", id="decay"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_policies(change, message):
    with pytest.raises(ValueError, match=f"AdaptiveFanout: {message}"):
        AdaptiveFanout(**({"start": 2, "stride": 2, "final": 9, "tolerance": 0.1, "decay": 0.5} | change))


def test_a_metric_must_be_a_number():
    with pytest.raises(ValueError, match="AdaptiveFanout: metric must be a number, got nan"):
        AdaptiveFanout(2, 2, 9, 0.1, 0.5).update(float("nan"))


GROUPS = [
    pytest.param([3, 1, 3, 3, 1, 3, 3], 2, [[1, 4], [0, 2], [3, 5], [6]], id="several slices"),
    pytest.param([5, 5, 5], 5, [[0, 1, 2]], id="one slice"),
    pytest.param([2, 1, 0], 1, [[2], [1], [0]], id="slices of one"),
    pytest.param([], 4, [], id="empty"),
]


@pytest.mark.parametrize(("group_ids", "slice_size", "expected"), GROUPS)
def test_group_and_slice(group_ids, slice_size, expected):
    order, offsets = group_and_slice(torch.tensor(group_ids, dtype=torch.int64), slice_size)
    assert [part.tolist() for part in order.tensor_split(offsets[1:-1])] == (expected or [[]])
    assert len(offsets) == len(expected) + 1


def test_ten_examples_in_slices_of_five_need_a_fifth_of_the_queries():
    members = torch.arange(100).repeat_interleave(10)[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    _, offsets = group_and_slice(members, 5)
    assert len(members) == 5 * (len(offsets) - 1)


def test_samples_of_slices_are_those_of_the_union():
    """The choice at a node does not depend on batch mates: slicing a batch changes nothing."""
    g = torch.Generator().manual_seed(0)
    graph = CSR.from_edge_index(torch.randint(300, (2, 6000), generator=g), 300)
    members = torch.randint(50, (200,), generator=g)
    order, offsets = group_and_slice(members, 4)
    union = neighbor_sample(graph, members.unique(), [5], seed=9)
    of_member = {m: union.edge[union.col == i].tolist() for i, m in enumerate(members.unique().tolist())}
    for part in order.tensor_split(offsets[1:-1]):
        member = members[part[:1]]
        assert neighbor_sample(graph, member, [5], seed=9).edge.tolist() == of_member[int(member)]


def test_wrong_groups():
    with pytest.raises(TypeError, match="group_and_slice: group_ids must be a vector of integers"):
        group_and_slice(torch.rand(3), 2)
    with pytest.raises(ValueError, match="group_and_slice: slice_size must be at least 1, got 0"):
        group_and_slice(torch.arange(3), 0)
