"""The temporal model: mask, encoder and losses against loops in float64, and that nothing looks ahead."""

import math

import pytest
import torch

from gossamer.graph import (
    CSR,
    SampledSAGE,
    TemporalEncoder,
    TemporalSAGE,
    event_sequences,
    long_term_loss,
    neighbor_sample,
    prefix_causal_mask,
)

import reference

DOUBLE = torch.float64


def make_encoder(num_blocks=2, max_events=6):
    torch.manual_seed(0)
    return TemporalEncoder(8, 5, max_events, num_blocks=num_blocks, num_heads=2).double()


def make_input(num_rows=4, num_prefix=3, length=5, seed=1):
    g = torch.Generator().manual_seed(seed)
    prefix = torch.randn(num_rows, num_prefix, 8, generator=g, dtype=DOUBLE)
    events = torch.randn(num_rows, length, 5, generator=g, dtype=DOUBLE)
    return prefix, events, torch.tensor([5, 0, 3, 1])[:num_rows], torch.rand(num_rows, length, generator=g) * 1e6


def test_mask():
    mask = prefix_causal_mask(2, 3)
    assert mask.int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert prefix_causal_mask(0, 3).equal(torch.ones(3, 3).tril().bool())


@pytest.mark.parametrize("with_age", [True, False])
def test_encoder_matches_the_loops(with_age):
    encoder = make_encoder()
    prefix, events, num_events, age = make_input()
    age = age if with_age else None
    expected = reference.temporal_encoder(encoder, prefix, events, num_events, age)
    out = encoder(prefix, events, num_events, age)
    for b, n in enumerate(num_events.tolist()):  # what stands behind the last event is not read by anyone
        torch.testing.assert_close(out[b, : 3 + n], expected[b, : 3 + n])


def changed(encoder, inputs, which, place):
    """Largest change of every token when one input row changes."""
    before = encoder(*inputs)
    inputs = [t.clone() for t in inputs]
    inputs[which][:, place] += 1.0
    return (encoder(*inputs) - before).abs().amax(dim=(0, 2))


def test_no_event_is_seen_earlier_and_the_prefix_by_all():
    encoder, inputs = make_encoder(), make_input()
    inputs = (*inputs[:2], torch.full((4,), 5), inputs[3])
    for place in range(5):
        change = changed(encoder, inputs, 1, place)
        assert (change[: 3 + place] == 0).all()
        assert (change[3 + place :] > 0).all()
    assert (changed(encoder, inputs, 0, 1) > 0).all()


def test_what_stands_behind_the_events_has_no_influence():
    torch.manual_seed(0)
    model = TemporalSAGE(4, 8, 6, 2, event_channels=5, max_events=5).double()
    graph = CSR.from_edge_index(torch.tensor([[4, 5, 6, 0], [0, 1, 2, 3]]), 7)
    x = torch.randn(7, 4, dtype=DOUBLE)
    _, events, num_events, age = make_input()
    garbage = torch.arange(5)[None] >= num_events[:, None]
    first = model(graph, x, events, num_events, age)
    second = model(graph, x, events.masked_fill(garbage[..., None], 9.0), num_events, age.masked_fill(garbage, 7.0))
    assert first.embedding.equal(second.embedding)
    assert first.states.shape == (4, 4 + 5, 6)


def test_sage_tokens_and_trimmed_hops():
    """On a sampled subgraph every layer runs on fewer hops, and the seeds get the same values."""
    g = torch.Generator().manual_seed(0)
    graph = CSR.from_edge_index(torch.randint(200, (2, 4000), generator=g), 200)
    out = neighbor_sample(graph, torch.arange(20), [4, 3, 2], seed=3)
    x = torch.randn(len(out.node), 4, generator=g, dtype=DOUBLE)
    sage = SampledSAGE(4, 8, 6, 3).double()
    torch.testing.assert_close(sage(out, x), sage(out.to_csr(), x, 20))
    assert sage(out.to_csr(), x).shape == (len(out.node), 6)
    assert torch.equal(out.to_csr().to_edge_index(), torch.stack([out.row, out.col]))
    assert [out.to_csr(k).num_edges for k in range(4)] == [sum(out.num_sampled_edges[:k]) for k in range(4)]
    with pytest.raises(ValueError, match=r"SampledSubgraph.to_csr: num_hops must be at least 0, got -1"):
        out.to_csr(-1)


def test_gradients():
    encoder = make_encoder(num_blocks=1, max_events=3)
    prefix, events, num_events, age = make_input(num_rows=2, num_prefix=2, length=3)
    num_events = num_events.clamp(max=3)
    inputs = (prefix.requires_grad_(), events.requires_grad_())
    assert torch.autograd.gradcheck(lambda p, e: encoder(p, e, num_events, age), inputs)
    predicted = torch.randn(3, 4, dtype=DOUBLE, requires_grad=True)
    future = torch.randn(3, 2, 4, dtype=DOUBLE, requires_grad=True)
    valid = torch.tensor([[True, True], [False, True], [False, False]])
    assert torch.autograd.gradcheck(lambda p, f: long_term_loss(p, f, valid), (predicted, future))


VALID = {
    "all": torch.ones(5, 3, dtype=torch.bool),
    "some": torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]).bool(),
    "none": torch.zeros(5, 3, dtype=torch.bool),
}


@pytest.mark.parametrize("name", VALID)
def test_long_term_loss_matches_the_loops(name):
    g = torch.Generator().manual_seed(0)
    predicted, future = (torch.randn(*shape, generator=g, dtype=DOUBLE) for shape in ((5, 4), (5, 3, 4)))
    expected = reference.long_term_loss(predicted, future, VALID[name])
    torch.testing.assert_close(long_term_loss(predicted, future, VALID[name]), expected)
    if name == "all":
        torch.testing.assert_close(long_term_loss(predicted, future), expected)


def test_event_sequences_match_the_loops():
    g = torch.Generator().manual_seed(0)
    index, time = torch.randint(30, (2, 900), generator=g), torch.randint(50, (900,), generator=g)
    seeds, seed_time = torch.randint(30, (40,), generator=g), torch.randint(-5, 60, (40,), generator=g)
    graph = CSR.from_edge_index(index, 30, time=time)
    found = event_sequences(graph, seeds, seed_time, 7)
    again = event_sequences(CSR(graph.rowptr, graph.col, num_nodes=30, time=graph.time), seeds, seed_time, 7)
    assert all(a.equal(b) for a, b in zip(found, again))
    for row, (seed, until) in enumerate(zip(seeds.tolist(), seed_time.tolist())):
        events = [(int(time[e]), int(index[0, e])) for e in range(900) if index[1, e] == seed and time[e] <= until]
        latest = sorted(events, key=lambda event: event[0])[-7:]
        count = int(found.num_events[row])
        assert count == len(latest)
        assert found.time[row].tolist() == [when for when, _ in latest] + [0] * (7 - count)
        # Which of several events of one time is dropped at the far end is the sampler's choice.
        sure = [node for when, node in latest if when > latest[0][0]]
        assert found.node[row, count - len(sure) : count].tolist() == sure
        assert found.node[row, count:].tolist() == [-1] * (7 - count)


def test_no_seeds_and_no_events():
    graph = CSR.from_edge_index(torch.tensor([[0], [1]]), 2, time=torch.tensor([5]))
    none = torch.zeros(0, dtype=torch.int64)
    assert event_sequences(graph, none, none, 3).node.shape == (0, 3)
    assert event_sequences(graph, torch.tensor([0, 1]), torch.tensor([9, 4]), 3).num_events.tolist() == [0, 0]
    out = make_encoder()(*make_input(1, 3, 0)[:2], torch.tensor([0]))
    assert out.shape == (1, 3, 8)
    assert math.isfinite(float(out.detach().sum()))


EVENTS, COUNTS = torch.zeros(4, 5, 5, dtype=DOUBLE), torch.zeros(4, dtype=torch.int64)
WRONG = [
    pytest.param(lambda: TemporalEncoder(7, 5, 6), "dim must be even and a multiple of num_heads = 2, got 7", id="dim"),
    pytest.param(lambda: TemporalEncoder(8, 5, 0), "max_events must be at least 1, got 0", id="max_events"),
    pytest.param(
        lambda: make_encoder(max_events=4)(make_input()[0], EVENTS, COUNTS),
        r"events must be \[4, at most 4, channels\], got \[4, 5, 5\]",
        id="long",
    ),
    pytest.param(
        lambda: make_encoder()(make_input()[0], EVENTS, COUNTS + 6), r"num_events must be in \[0, 5\]", id="counts"
    ),
    pytest.param(
        lambda: make_encoder()(make_input()[0], EVENTS, COUNTS[1:]), r"num_events must be \[4\] integers", id="rows"
    ),
    pytest.param(lambda: make_encoder()(make_input()[0], EVENTS, COUNTS, EVENTS[:, 1:, 0]), "age must be", id="ages"),
    pytest.param(lambda: prefix_causal_mask(-1, 2), "num_prefix must be at least 0, got -1", id="mask"),
    pytest.param(lambda: long_term_loss(EVENTS[0], EVENTS), r"future must be \[B, N2, dim\]", id="loss"),
    pytest.param(
        lambda: long_term_loss(EVENTS[:, 0], EVENTS, EVENTS[..., 0]), r"valid must be .* of bool, got", id="valid"
    ),
    pytest.param(
        lambda: TemporalSAGE(1, 1, 2, event_channels=1, max_events=1, num_tokens=0), "num_tokens must", id="tokens"
    ),
    pytest.param(lambda: SampledSAGE(1, 1, 2, 0), "num_layers must be at least 1, got 0", id="layers"),
    pytest.param(
        lambda: event_sequences(CSR.from_edge_index(torch.zeros(2, 1, dtype=torch.int64)), COUNTS, COUNTS, 2),
        "event_sequences: graph must have edge times, got None",
        id="times",
    ),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
