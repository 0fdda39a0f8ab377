"""Generation: greedy against a loop that recomputes everything, ragged prompts against each alone, sampling."""

import pytest
import torch
from test_sparse_nn_transformer import VARIANTS, make

from gossamer.sparse_nn import CacheFullError
from gossamer.sparse_nn.generation import Sampling, sample_tokens

PROMPTS = [[7], [3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1]]


def continued(model, prompt, count):
    """Greedy tokens and the logits they were chosen from, every step from the start."""
    model.eval()
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_is_the_loop_that_recomputes_everything(name):
    model = make(name)
    found = model.generate(PROMPTS, 9)
    assert [row.tolist() for row in found] == [continued(model, prompt, 9) for prompt in PROMPTS]


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_logits_are_those_of_the_whole_sequence(name, device):
    """In pieces of different length, of which part is padding."""
    model = make(name).to(device).eval()
    rows = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(3)).to(device)
    cache = model.new_cache(2, 20)
    at = [0, 0]
    for lengths in ([4, 2], [1, 1], [3, 5], [1, 2]):
        width = max(lengths)
        piece = torch.zeros(2, width, dtype=torch.int64, device=device)
        for b, (start, length) in enumerate(zip(at, lengths)):
            piece[b, :length] = rows[b, start : start + length]
        logits = model.decode(piece, cache, lengths)
        at = [start + length for start, length in zip(at, lengths)]
        for b in range(2):
            torch.testing.assert_close(logits[b], model(rows[b : b + 1, : at[b]])[0, -1], rtol=1e-4, atol=1e-5)
    assert cache.lengths == at


@pytest.mark.parametrize("name", VARIANTS)
def test_ragged_prompts_go_on_as_each_alone(name):
    model = make(name)
    options = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
    together = model.generate(PROMPTS, 12, seed=5, **options)
    for i, prompt in enumerate(PROMPTS):
        (alone,) = model.generate([prompt], 12, seed=5 + i, **options)
        assert torch.equal(together[i], alone)


def test_seeds():
    model = make()
    draw = lambda seed: model.generate([[1, 2]], 20, temperature=1.0, seed=seed)[0].tolist()  # noqa: E731
    assert draw(0) == draw(0)
    assert len({tuple(draw(seed)) for seed in range(5)}) == 5
    state = torch.get_rng_state()
    draw(1)
    assert torch.equal(torch.get_rng_state(), state)


def frequencies(logits, sampling, count=4000):
    rows = logits.expand(count, -1)
    return sample_tokens(rows, sampling, seed=0, step=0).bincount(minlength=len(logits)) / count


def test_samples_follow_the_distribution():
    """Within five standard deviations of a count of 4000."""
    logits = torch.tensor([1.0, 3.0, 0.0, 2.0, -1.0])
    best_two = torch.tensor([-torch.inf, 3.0, -torch.inf, 2.0, -torch.inf]).softmax(0)
    for sampling, wanted in [
        (Sampling(1.0), logits.softmax(0)),
        (Sampling(2.0), (logits / 2).softmax(0)),
        (Sampling(1.0, top_k=2), best_two),
        (Sampling(1.0, top_p=0.8), best_two),
    ]:
        torch.testing.assert_close(frequencies(logits, sampling), wanted, rtol=0, atol=5 * 0.5 / 4000**0.5)


EXTREME = [
    pytest.param(Sampling(0.0), id="greedy"),
    pytest.param(Sampling(1.0, top_k=1), id="best of one"),
    pytest.param(Sampling(1.0, top_p=1e-9), id="least mass"),
    pytest.param(Sampling(1e-6), id="cold"),
]


@pytest.mark.parametrize("sampling", EXTREME)
def test_extreme_options_are_greedy(sampling):
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_tokens(logits, sampling, seed=1, step=2), logits.argmax(-1))


def test_an_impossible_token_is_never_drawn():
    logits = torch.full((500, 4), -torch.inf)
    logits[:, 2] = 0.0
    assert (sample_tokens(logits, Sampling(5.0, top_k=9), seed=0, step=0) == 2).all()


def test_end_token_ends_its_prompt_alone():
    model = make()
    plain = model.generate(PROMPTS, 9)
    eos_id = int(plain[1][3])
    found = model.generate(PROMPTS, 9, eos_id=eos_id)
    for row, whole in zip(found, plain):
        tokens = whole.tolist()
        end = tokens.index(eos_id) + 1 if eos_id in tokens else len(tokens)
        assert row.tolist() == tokens[:end]


def test_tokens_are_told_as_they_come():
    model, told = make(), []
    found = model.generate(PROMPTS, 4, on_token=lambda row, token: told.append((row, token)))
    assert [row for row, _ in told] == [0, 1, 2] * 4
    for i, row in enumerate(found):
        assert [token for prompt, token in told if prompt == i] == row.tolist()


def test_the_mode_of_the_model_is_kept():
    model = make("hash", dropout=0.5)
    assert torch.equal(model.generate([[1]], 5)[0], model.generate([[1]], 5)[0])
    assert model.training
    assert model.generate([], 5) == []


BAD = [
    pytest.param("hash", [[]], {}, "prompts must be lists of at least one token id", id="empty prompt"),
    pytest.param("hash", [torch.ones(2)], {}, "prompts must be lists of at least one", id="no token ids"),
    pytest.param("hash", [[1]], {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0", id="nothing"),
    pytest.param("hash", [[1]], {"temperature": -1}, "temperature must be at least 0, got -1", id="temperature"),
    pytest.param("hash", [[1]], {"top_k": 0}, "top_k must be at least 1, got 0", id="top k"),
    pytest.param("hash", [[1]], {"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0", id="top p"),
    pytest.param("bigram", [[1] * 20], {"max_new_tokens": 6}, "max_new_tokens must be at most 5 behind", id="long"),
]


@pytest.mark.parametrize(("name", "prompts", "options", "message"), BAD)
def test_bad_input(name, prompts, options, message):
    with pytest.raises(ValueError, match=f"generate: {message}"):
        make(name).generate(prompts, **{"max_new_tokens": 3, **options})


def test_the_future_cannot_be_hashed():
    with pytest.raises(ValueError, match="model must be one that hashes what is known, got oracle_future"):
        make("hash", hash="oracle_future").generate([[1]], 3)


def test_cache_errors():
    model = make()
    cache = model.new_cache(1, 4)
    model.decode(torch.tensor([[1, 2, 3]]), cache)
    with pytest.raises(CacheFullError, match="at most 1 more positions"):
        model.decode(torch.tensor([[4, 5]]), cache)
    assert cache.lengths == [3]
    for bad in (torch.tensor([[1], [2]]), torch.tensor([[1]]).float()):
        with pytest.raises((ValueError, TypeError), match="input_ids must be"):
            model.decode(bad, cache)
    for lengths in ([0], [2], [1, 1]):
        with pytest.raises(ValueError, match="decode: lengths must be"):
            model.decode(torch.tensor([[1]]), cache, lengths)
    assert cache.lengths == [3]
