"""The training example as a user meets it: through the deepspeed launcher, with real worker processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")
pytest.importorskip("sklearn")
pytest.importorskip("pymetis")

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

import train_gnn

from killed_worker import kill_at_moments, workers_of
from recorder import Recorder

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "train_gnn.py"
SMALL = ["--layers", "4", "--hidden", "16", "--evaluate-every", "2", "--save-every", "3"]


def command(folder, *arguments):
    return [sys.executable, str(SCRIPT), "--runs", str(folder), *arguments]


def run(folder, *arguments, timeout=150):
    """Exit code, output and errors of one finished call."""
    return subprocess.run(command(folder, *arguments), capture_output=True, text=True, timeout=timeout)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["loss"] for line in metrics(folder)]


def start(folder, *arguments, until_epoch=2):
    """A running job that has reached an epoch."""
    log = open(folder / "log.txt", "w")  # noqa: SIM115 (the job writes it)
    job = subprocess.Popen(command(folder, *arguments, "--name", "run"), stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    path = folder / "run" / "metrics.jsonl"
    while not (path.exists() and len(path.read_text().splitlines()) > until_epoch):
        assert job.poll() is None, (folder / "log.txt").read_text()
        assert time.monotonic() < deadline, "the job did not get going"
        time.sleep(0.1)
    return job


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of 8 epochs."""
    root = tmp_path_factory.mktemp("whole")
    done = run(root, *SMALL, "--epochs", "8")
    assert done.returncode == 0, done.stderr
    (folder,) = root.iterdir()
    return folder


@pytest.mark.launch
def test_a_run_leaves_metrics_plot_configuration_and_checkpoints(whole):
    lines = metrics(whole)
    assert [line["epoch"] for line in lines] == list(range(8))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert 0 <= lines[-1]["test_accuracy"] <= 1
    assert lines[0]["bytes"]["total"] == 2 * 2 * 1797 * 16 * 4  # GCNII over one boundary
    assert (whole / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((whole / "config.json").read_text())["layers"] == 4
    assert json.loads((whole / "status.json").read_text())["state"] == "finished"
    assert sorted(os.listdir(whole / "checkpoints")) == ["epoch_000006", "epoch_000008"]


@pytest.mark.launch
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves_cleanly(number, whole, tmp_path):
    """... and the run goes on with the numbers of an uninterrupted one."""
    job = start(tmp_path, *SMALL, "--epochs", "100000")
    job.send_signal(number)
    assert job.wait(timeout=120) == 128 + number
    folder = tmp_path / "run"
    assert json.loads((folder / "status.json").read_text())["state"].startswith("interrupted")
    newest = max(os.listdir(folder / "checkpoints"))
    epoch = int(newest.removeprefix("epoch_"))
    assert epoch == len(metrics(folder))
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
    if number == signal.SIGTERM:
        again = run(tmp_path, "--resume", "--epochs", str(max(epoch, 8)))
        assert again.returncode == 0, again.stderr
        assert losses(folder)[:8] == losses(whole)


@pytest.mark.launch
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_ends_the_job_and_is_named(rank, tmp_path):
    job = start(tmp_path, *SMALL, "--epochs", "100000", until_epoch=4)
    workers = workers_of(job)
    assert sorted(workers) == [0, 1]
    workers[rank].kill()
    assert job.wait(timeout=120) != 0
    assert not any(process.is_running() for process in workers.values())
    log = (tmp_path / "log.txt").read_text()
    assert f"lost the connection to worker {rank} (stage {rank})" in log
    assert f"worker {rank} was the first to end" in log
    assert "Traceback" not in log


@pytest.mark.launch
def test_a_run_killed_as_it_starts_between_epochs_and_as_it_saves_goes_on(whole, tmp_path):
    moments = ("between epochs", "checkpoint", "start")
    kills = kill_at_moments(command(tmp_path, *SMALL, "--name", "run"), tmp_path, moments, num_workers=2, seed=1)
    for kill in kills:
        assert kill.named, kill.log
        assert "Traceback" not in kill.log
    epoch = int(max(name for name in os.listdir(tmp_path / "run" / "checkpoints") if name[0] != ".")[-6:])
    again = run(tmp_path, "--resume", "--epochs", str(epoch + 2))
    assert again.returncode == 0, again.stderr
    assert losses(tmp_path / "run")[:8] == losses(whole)


BAD = [
    pytest.param(["--dataset", "nowhere.npz"], "nowhere.npz", id="missing file"),
    pytest.param(["--workers", "0"], "workers must be at least 1, got 0", id="no worker"),
    pytest.param(["--layers", "1", "--workers", "40"], "num_stages must be between 1 and", id="more stages"),
    pytest.param(["--chunks", "3", "--workers", "4"], "num_chunks must be 1 or at least", id="few chunks"),
    pytest.param(["--config", "missing.json"], "missing.json", id="missing configuration"),
    pytest.param(["--config", os.devnull], "config must be JSON", id="empty configuration"),
    pytest.param(["--lr", "-1"], "optimizer.params must be those of Adam, got", id="negative learning rate"),
    pytest.param(["--resume"], "resume must find a run", id="nothing to resume"),
    pytest.param(["--save-every", "0"], "save_every must be at least 1, got 0", id="never save"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_said_before_anything_is_written(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", command(tmp_path, *arguments)[1:])
    assert train_gnn.main() == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.launch
def test_a_port_in_use_is_said(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run(tmp_path, *SMALL, "--port", str(port))
    assert done.returncode == 2
    assert f"port must be free, got {port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_a_killed_run_left_half_written_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0, "loss": 2.0}\n{"epoch": 1, "lo')
    recorder = Recorder(tmp_path, first_epoch=1)
    recorder.add(epoch=1, loss=1.0)
    assert [line["loss"] for line in recorder.read()] == [2.0, 1.0]
