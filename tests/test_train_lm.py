"""The language model's training and generation as a user meets them, with real worker processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("deepspeed")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

import generate
import train_lm

from gossamer.sparse_nn import SparseTransformer

from killed_worker import log_of_a_killed_worker

EXAMPLES = Path(train_lm.__file__).parent
SMALL = ["--width", "32", "--layers", "2", "--context", "32", "--vocab-size", "400", "--expert-layers", "0", "1",
         "--experts", "4"]  # fmt: skip


def run(script, *arguments, timeout=200):
    """Exit code, output and errors of one finished call."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A text of its own: sentences that a model can learn."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [f"The number of line {i} is {'even' if i % 2 == 0 else 'odd'}." for i in range(900)]
    path.write_text("\n\n".join(lines))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus):
    """A finished run of 3 epochs."""
    root = tmp_path_factory.mktemp("whole")
    done = run("train_lm.py", "--runs", root, "--text", corpus, *SMALL, "--epochs", 3)
    assert done.returncode == 0, done.stderr
    (folder,) = root.iterdir()
    assert "best validation at epoch 2: val_perplexity" in done.stdout
    return folder


@pytest.mark.launch
def test_a_run_leaves_everything(whole):
    assert whole.name == "lm-text-hash"
    names = {path.name for path in whole.iterdir()}
    assert {
        "config.json",
        "metrics.jsonl",
        "plot.png",
        "status.json",
        "tokenizer.json",
        "checkpoints",
        "model",
    } == names
    lines = metrics(whole)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[2]["loss"] < 0.8 * lines[0]["loss"]
    assert lines[2]["val_loss"] < 0.8 * lines[0]["val_loss"]
    assert all(line["tokens_per_second"] > 0 for line in lines)
    assert json.loads((whole / "status.json").read_text())["state"] == "finished"
    model = SparseTransformer.load(whole / "model")
    assert model.config.expert_layers == (0, 1)
    assert model(torch.zeros(1, 3).long()).isfinite().all()


@pytest.mark.launch
def test_a_killed_worker_ends_the_job_and_resuming_gives_the_losses_of_an_uninterrupted_run(tmp_path, corpus, whole):
    arguments = ["--runs", str(tmp_path), "--text", str(corpus), *SMALL, "--epochs", "1000", "--name", "run"]
    log_of_a_killed_worker([sys.executable, str(EXAMPLES / "train_lm.py"), *arguments], tmp_path, epochs=2)
    saved = int(max(os.listdir(tmp_path / "run" / "checkpoints")).removeprefix("epoch_"))
    again = run("train_lm.py", "--runs", tmp_path, "--resume", "--epochs", max(saved, 3))
    assert again.returncode == 0, again.stderr
    for name in ("loss", "val_loss"):
        assert [line[name] for line in metrics(tmp_path / "run")[:3]] == [line[name] for line in metrics(whole)]


@pytest.mark.launch
def test_generates_with_the_saved_model(whole):
    one = run("generate.py", "--runs", whole.parent, "--prompt", "The number of", "--greedy", "--max-new-tokens", 20)
    assert one.returncode == 0, one.stderr
    assert f"model: {whole / 'model'}" in one.stdout
    assert "The number of" in one.stdout
    assert "tokens per second" in one.stdout
    continuation = one.stdout.split("The number of", 1)[1].split("\n\n")[0]
    both = run("generate.py", "--model", whole / "model", "--prompt", "The number of", "--prompt", "odd", "--greedy",
               "--max-new-tokens", 20)  # fmt: skip
    assert f"--- The number of{continuation}" in both.stdout
    assert "--- odd" in both.stdout


@pytest.mark.launch
def test_generates_with_a_tiny_model_trained_on_the_spot(tmp_path):
    done = run("generate.py", "--runs", tmp_path, "--max-new-tokens", 30)
    assert done.returncode == 0, done.stderr
    assert "training a tiny one" in done.stdout
    assert "The statement" in done.stdout
    assert list(tmp_path.iterdir()) == []


BAD = [
    pytest.param(train_lm, ["--text", "nowhere.txt"], "nowhere.txt", id="missing text"),
    pytest.param(train_lm, ["--workers", "0"], "workers must be at least 1, got 0", id="no worker"),
    pytest.param(train_lm, ["--batch", "0"], "train_micro_batch_size_per_gpu must be at least 1", id="batch"),
    pytest.param(train_lm, ["--context", "9999999"], "text must fill a batch", id="context"),
    pytest.param(train_lm, ["--vocab-size", "9"], "vocab_size must be at least 257, got 9", id="vocabulary"),
    pytest.param(train_lm, ["--expert-layers", "4"], "expert_layers must be different layers in", id="layer"),
    pytest.param(train_lm, ["--lr", "-1"], "optimizer.params must be those of AdamW, got", id="negative rate"),
    pytest.param(train_lm, ["--config", "missing.json"], "missing.json", id="missing configuration"),
    pytest.param(train_lm, ["--resume"], "resume must find a run", id="nothing to resume"),
    pytest.param(generate, ["--model", "nowhere"], "model must be a folder with config.json", id="no model"),
]


@pytest.mark.parametrize(("script", "arguments", "message"), BAD)
def test_bad_input_is_said_before_anything_is_written(script, arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script.__file__, "--runs", str(tmp_path), *arguments])
    assert script.main() == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
