"""The LiGNN example: its batches and data, and runs under the deepspeed launcher."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

import train_recsys

from recsys_batches import cut_slices, item_neighborhood, make_loader, num_edges
from recsys_data import generate, make_task, read_movielens
from recsys_model import auc, inputs_of
from recsys_trainer import PlainEngine, Sizes, Trainer

pytest.importorskip("deepspeed")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPT = EXAMPLES / "train_recsys.py"


@pytest.fixture(scope="module")
def task():
    return make_task(generate(60, 80, 4000), num_similar=5)


def loader(task, split="train", slice_size=4, **options):
    slices = cut_slices(task, task.examples(split), slice_size)
    options = {"batch_size": 16, "max_events": 6, "seed": 0, "training": split == "train"} | options
    return make_loader(task, slices, [3, 2], **options)


def test_every_training_event_is_in_one_slice_of_its_member(task):
    slices = cut_slices(task, task.examples("train"), 4)
    table = slices.example
    assert table[table >= 0].sort().values.equal(task.examples("train"))
    for row, member, before in zip(table.tolist(), slices.member.tolist(), slices.before.tolist()):
        events = [e for e in row if e >= 0]
        assert events == sorted(events)
        assert {int(task.member[e]) for e in events} == {member}
        assert before == int(task.time[events[0]]) - 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_nothing_of_a_batch_is_later_than_its_examples(split, task):
    time_of = torch.zeros(task.graph.num_edges, dtype=torch.int64)
    time_of[task.graph.edge_ids] = task.graph.time
    slices = cut_slices(task, task.examples(split), 4)
    seen = 0
    for batch in loader(task, split):
        before = slices.before[batch.seed_index]
        out = batch.subgraph
        assert (time_of[out.edge] <= before[out.batch[out.col]]).all()
        found = batch.features
        place = torch.arange(6)[None]
        assert (found["event"] >= 0).equal(place < found["num_events"][:, None])
        assert (found["age"] >= 0).all()
        assert (before[found["row"]] < task.time[found["example"]]).all()
        assert found["positive"].equal(task.item[found["example"]])
        items = item_neighborhood(batch)
        half = len(found["positive"])
        assert items.node[:half].equal(found["positive"])
        assert items.num_sampled_nodes[0] == 2 * half
        seen += num_edges(batch)
    assert seen > 0


def test_batches_are_the_same_with_producers(task):
    with loader(task) as here, loader(task, num_workers=2) as there:
        for a, b in zip(here, there):
            assert a.features.keys() == b.features.keys()
            assert all(a.features[name].equal(b.features[name]) for name in a.features)


def test_densification_looks_at_training_events_only(task):
    plain = make_task(generate(60, 80, 4000))
    new = task.graph.num_edges - plain.graph.num_edges
    assert new > 0
    assert new % 5 == 0
    added = task.graph.edge_ids >= plain.graph.num_edges
    assert (task.graph.time[added] == task.time.min()).all()
    assert (task.graph._rows[added] >= task.num_members).all()


def test_auc_matches_the_pairs():
    g = torch.Generator().manual_seed(0)
    positive, negative = torch.randint(9, (40,), generator=g).float(), torch.randint(8, (30,), generator=g).float()
    difference = positive[:, None] - negative
    expected = float((difference > 0).float().mean() + 0.5 * (difference == 0).float().mean())
    assert auc(positive, negative) == pytest.approx(expected)


def test_training_learns_without_a_launcher(task):
    sizes = Sizes(batch_examples=64, max_events=6, num_future=2)
    model, ids = sizes.build(task, 0)
    trainer = Trainer(task, sizes, PlainEngine(model, 0.01), ids, num_batches=2)
    before = trainer.evaluate(trainer.loader("val", 3, 1))[0]
    reports = [trainer.epoch(trainer.loader("train", 3, 4)) for _ in range(4)]
    assert reports[-1].loss < reports[0].loss - 0.02
    assert trainer.evaluate(trainer.loader("val", 3, 1))[0] > max(before, 0.5) + 0.03
    inputs = inputs_of(next(iter(trainer.loader("val", 3, 1))), task, ids)
    assert (inputs.events[inputs.batch.features["event"] < 0] == 0).all()


def write_ratings(folder, separator, header=""):
    lines = [f"{1 + i % 37}{separator}{10 + i % 53}{separator}{i % 5}{separator}{881_000_000 + i}" for i in range(1200)]
    path = folder / ("ratings.csv" if separator == "," else "u.data")
    path.write_text(header + "\n".join(reversed(lines)) + "\n")
    return path


@pytest.mark.parametrize(("separator", "header"), [("\t", ""), (" ", ""), (",", "userId,movieId,rating,timestamp\n")])
def test_movielens_files(separator, header, tmp_path):
    items = tmp_path / ("movies.csv" if header else "u.item")
    if header:
        items.write_text("movieId,title,genres\n" + "".join(f'{i},"A, B",Drama|War\n' for i in range(10, 63)))
    else:
        items.write_text("".join(f"{i}|T||01|u|{'|'.join(['1'] + ['0'] * 18)}\n" for i in range(10, 63)))
    data = read_movielens(str(write_ratings(tmp_path, separator, header)), str(items))
    assert (data.num_members, len(data.content)) == (37, 53)
    assert data.time.equal(torch.arange(881_000_000, 881_001_200))
    assert data.member[:3].tolist() == [0, 1, 2]
    assert data.content.sum(1).tolist() == [2.0 if header else 1.0] * 53


def run(folder, *arguments, timeout=300):
    """Exit code, output and errors of one finished call."""
    command = [sys.executable, str(SCRIPT), "--runs", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Arguments of a small run."""
    path = tmp_path_factory.mktemp("config") / "config.json"
    config = json.loads((EXAMPLES / "recsys.json").read_text()) | {"train_micro_batch_size_per_gpu": 32}
    path.write_text(json.dumps(config))
    sizes = ["--hidden", "8", "--dim", "8", "--history", "6", "--future", "2"]
    return ["--events", "2000", "--config", str(path), "--table-batches", "2", *sizes]


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "time")} for line in lines]


@pytest.mark.launch
def test_a_run_is_measured_and_goes_on_after_a_signal_with_the_same_numbers(small, tmp_path):
    whole = run(tmp_path / "whole", *small, "--epochs", "3")
    assert whole.returncode == 0, whole.stderr
    (folder,) = (tmp_path / "whole").iterdir()
    lines = metrics(folder)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert 1300 < lines[0]["num_examples"] <= 1400  # the training events, in whole rounds of both workers
    assert 0 <= lines[-1]["val_auc"] <= 1
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    savings = json.loads((folder / "results.json").read_text())["savings"]
    assert list(savings) == [
        "none", "grouping and slicing", "shared-memory queue", "local gradient aggregation", "adaptive fan-out", "all"
    ]  # fmt: skip
    assert savings["grouping and slicing"]["queries"] < 0.6 * savings["none"]["queries"]
    assert savings["local gradient aggregation"]["num_bytes"] < 0.7 * savings["none"]["num_bytes"]
    assert "| grouping and slicing |" in whole.stdout
    assert sorted(os.listdir(folder / "checkpoints")) == ["epoch_000002", "epoch_000003"]

    epochs = stopped_by_a_signal(small, tmp_path)
    again = run(tmp_path, "--resume", "--epochs", str(max(epochs, 3)))
    assert again.returncode == 0, again.stderr
    assert metrics(tmp_path / "run")[:3] == lines


def stopped_by_a_signal(small, tmp_path):
    """The epochs of a run that SIGTERM stopped; it has saved them and left cleanly."""
    command = [sys.executable, str(SCRIPT), "--runs", str(tmp_path), "--name", "run", *small, "--epochs", "100000"]
    with open(tmp_path / "log.txt", "w") as log:
        job = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 200
    path = tmp_path / "run" / "metrics.jsonl"
    while not (path.exists() and path.read_text().count("\n") >= 2):
        assert job.poll() is None, (tmp_path / "log.txt").read_text()
        assert time.monotonic() < deadline, "the job did not get going"
        time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=100) == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"].startswith("interrupted")
    newest = max(os.listdir(tmp_path / "run" / "checkpoints"))
    epochs = int(newest.removeprefix("epoch_"))
    assert epochs == len(metrics(tmp_path / "run"))
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
    return epochs


BAD = [
    pytest.param(["--ratings", "nowhere/u.data"], "nowhere/u.data", id="missing file"),
    pytest.param(["--items", "u.item"], "items must come with ratings", id="items alone"),
    pytest.param(["--slice", "0"], "slice must be at least 1, got 0", id="slice"),
    pytest.param(["--fanout", "9", "3"], "final must be at least start = 9, got 3", id="fan-outs"),
    pytest.param(["--events", "1000", "--workers", "3"], "a batch of validation, got 0 batches", id="few events"),
    pytest.param(["--config", os.devnull], "config must be JSON", id="configuration"),
    pytest.param(["--dim", "7"], "dim must be even and a multiple of num_heads = 2, got 7", id="model"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_said_before_anything_is_written(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--runs", str(tmp_path), *arguments])
    assert train_recsys.main() == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "u.data").write_text("1\t2\tthree\tfour\n" * 3)
    with pytest.raises(ValueError, match=r"read_movielens: ratings must be user, item, rating, time, got .*u\.data"):
        read_movielens(str(tmp_path / "u.data"))
    for line in ("no id,title,Drama", "17", ""):
        (tmp_path / "movies.csv").write_text(f"movieId,title,genres\n1,title,Drama\n{line}\n")
        with pytest.raises(ValueError, match=r"items must be id, title, genres, got .* in .*movies\.csv:3"):
            read_movielens(str(write_ratings(tmp_path, ",", "u,i,r,t\n")), str(tmp_path / "movies.csv"))
