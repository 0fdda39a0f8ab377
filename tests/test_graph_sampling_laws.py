"""neighbor_sample: how often each subset of a row is chosen, against exact probabilities."""

import pytest
import torch
from sampling_problem import chi_square_bound, copies

from gossamer.graph import neighbor_sample

import reference


def check_subsets(out, num_copies: int, n: int, expected: dict) -> None:
    chosen = torch.zeros(num_copies, n, dtype=torch.int64)
    chosen[out.node[out.col], out.node[out.row] - num_copies] = 1
    code = (chosen << torch.arange(n)).sum(1)
    counts = torch.bincount(code, minlength=2**n).double()
    probability = torch.zeros(2**n, dtype=torch.float64)
    for subset, p in expected.items():
        probability[sum(1 << i for i in subset)] = p
    assert bool((counts[probability == 0] == 0).all())
    likely = probability * num_copies > 5
    e = probability[likely] * num_copies
    statistic = float(((counts[likely] - e) ** 2 / e).sum())
    assert statistic < chi_square_bound(int(likely.sum()) - 1)


WEIGHTS = [
    pytest.param([1.0, 1.0, 1.0, 1.0, 1.0], id="equal"),
    pytest.param([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], id="linear"),
    pytest.param([1e6, 1.0, 2.0, 3.0, 1.0], id="one takes nearly all: ends in the scan"),
    pytest.param([0.0, 1.0, 0.0, 2.0, 3.0, 0.5], id="zeros"),
]


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_weighted_subsets_have_their_exact_probabilities(weights, disjoint):
    num_copies = 60000
    graph = copies(weights, num_copies)
    out = neighbor_sample(graph, torch.arange(num_copies), [3], seed=3, weighted=True, disjoint=disjoint)
    check_subsets(out, num_copies, len(weights), reference.subset_probabilities(weights, 3))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_uniform_subsets_have_their_exact_probabilities(count):
    num_copies = 60000
    out = neighbor_sample(copies([1.0] * 6, num_copies), torch.arange(num_copies), [count], seed=4)
    check_subsets(out, num_copies, 6, reference.subset_probabilities([1.0] * 6, count))


TIMED = [
    pytest.param({"temporal": "uniform"}, lambda w, rank: 1.0, id="uniform"),
    pytest.param({"temporal": "recency"}, lambda w, rank: rank, id="recency"),
    pytest.param({"temporal": "uniform", "weighted": True}, lambda w, rank: w, id="weighted"),
    pytest.param({"temporal": "recency", "weighted": True}, lambda w, rank: w * rank, id="recency, weighted"),
]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("seed_time", [4, 6], ids=["part of the row", "the whole row"])
@pytest.mark.parametrize(("options", "law"), TIMED)
def test_temporal_subsets_have_their_exact_probabilities(options, law, seed_time, window):
    weights, num_copies = [5.0, 1.0, 2.0, 0.5, 3.0, 1.0, 4.0], 40000
    begin = 0 if window is None else seed_time - window
    law_weights = [
        law(w, t - begin + 1) if begin <= t <= seed_time else 0.0 for t, w in enumerate(weights)
    ]  # time = place in the row
    out = neighbor_sample(
        copies(weights, num_copies), torch.arange(num_copies), [2], seed=8, window=window,
        seed_time=torch.full((num_copies,), seed_time), **options,
    )  # fmt: skip
    check_subsets(out, num_copies, len(weights), reference.subset_probabilities(law_weights, 2))


def test_replacement_draws_in_proportion():
    weights = [5.0, 1.0, 0.0, 2.0]
    num_copies = 20000
    out = neighbor_sample(
        copies(weights, num_copies), torch.arange(num_copies), [5], seed=1, weighted=True, replace=True
    )
    counts = torch.bincount(out.node[out.row] - num_copies, minlength=4)
    assert int(counts.sum()) == 5 * num_copies
    assert counts[2] == 0
    expected = torch.tensor([5.0, 1.0, 2.0], dtype=torch.float64) / 8 * 5 * num_copies
    assert float(((counts[[0, 1, 3]] - expected) ** 2 / expected).sum()) < chi_square_bound(2)
