"""Text for language models: documents, byte-pair encoding, and the windows of an epoch."""

import pytest
import torch

from gossamer.sparse_nn import text

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def documents():
    return text.python_documents()


@pytest.fixture(scope="module")
def tokenizer(documents):
    return text.train_tokenizer(documents[:20], 400)


def test_python_ships_enough_english(documents):
    assert sum(map(len, documents)) > 100_000
    assert documents == text.python_documents()
    assert any("with" in document for document in documents)


def test_split_is_by_document(documents):
    training, validation = text.split_documents(documents, seed=3)
    assert sorted(training + validation) == sorted(documents)
    assert len(validation) == round(0.1 * len(documents))
    assert (training, validation) == text.split_documents(documents, seed=3)
    assert validation != text.split_documents(documents, seed=4)[1]
    assert text.split_documents(["a", "b"], seed=0, validation=0.9)[0]
    with pytest.raises(ValueError, match="split_documents: documents must be at least 2, got 1"):
        text.split_documents(["a"], seed=0)


def test_every_text_is_encoded_and_decoded(tokenizer):
    samples = ["Lists are mutable.", "naïve 日本 \N{SNOWMAN}\n\ttab", ""]
    ids = text.encode(tokenizer, samples)
    ends = (ids == 0).nonzero().flatten().tolist()
    assert len(ends) == 3
    pieces = [ids[start:end].tolist() for start, end in zip([0, *(end + 1 for end in ends)], ends)]
    assert [tokenizer.decode(piece) for piece in pieces] == samples
    assert tokenizer.get_vocab_size() == 400
    with pytest.raises(ValueError, match="vocab_size must be at least 257, got 256"):
        text.train_tokenizer(samples, 256)


def test_windows_in_order_cover_the_stream():
    tokens = torch.arange(100)
    pieces = text.windows(tokens, 9)
    assert torch.equal(pieces[:, :-1].flatten(), tokens[:99])
    assert torch.equal(pieces[:, 1:].flatten(), tokens[1:])


def test_windows_are_drawn_anew_every_epoch():
    tokens = torch.arange(1000)
    first, again, next_epoch, other = (
        text.windows(tokens, 10, seed=seed, epoch=epoch) for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]
    )
    assert torch.equal(first, again)
    for pieces in (first, next_epoch, other):
        starts = pieces[:, 0].sort().values
        assert (starts.diff() == 10).all()
        assert (pieces.diff(dim=1) == 1).all()
        assert pieces[:, -1].max() < 1000
        assert len(pieces) >= 98
    assert not torch.equal(first[:90], next_epoch[:90])
    assert not torch.equal(first[:90], other[:90])


@pytest.mark.parametrize("extra", [1, 2, 5])
def test_shortest_streams(extra):
    for epoch in range(4):
        assert len(text.windows(torch.arange(10 + extra), 10, seed=0, epoch=epoch)) == 1


def test_bad_windows():
    for tokens, length, message in [
        (torch.arange(10), 10, "tokens must be more than 10"),
        (torch.arange(10), 0, "length must be at least 1, got 0"),
        (torch.zeros(3, 9).long(), 2, "tokens must be more than 2"),
    ]:
        with pytest.raises(ValueError, match=f"windows: {message}"):
            text.windows(tokens, length)
    with pytest.raises(TypeError, match="tokens must be int32 or int64"):
        text.windows(torch.rand(9), 2)


def test_a_file_is_cut_at_empty_lines(tmp_path):
    paragraphs = [f"paragraph {i} " + "word " * 100 for i in range(30)]
    path = tmp_path / "some.txt"
    path.write_text("\n\n".join(paragraphs))
    documents = text.file_documents(path)
    assert "".join(documents).split("\n\n")[:-1] == paragraphs
    assert all(len(document) >= 2000 for document in documents[:-1])
    assert len(documents) > 3


def test_modules_that_are_not_python_have_no_docstrings(tmp_path):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text('"""Module."""\n\ndef f():\n    """Function."""\n')
    bad.write_text("def (:")
    assert text._docstrings(good) == "Module.\n\nFunction."
    assert text._docstrings(bad) == ""
