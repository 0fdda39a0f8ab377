"""The long-range example as a user meets it: through the deepspeed launcher, on one or two workers."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("deepspeed")

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

import train_long_range
from workers import run_workers

from gossamer import distributed
from gossamer.distributed.launcher import free_port

from data_parallel import Trainer
from killed_worker import log_of_a_killed_worker
from long_range_configs import CONFIGS
from long_range_data import load_task
from long_range_models import build_model

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "train_long_range.py"
SMALL = ["--layers", "3", "--width", "8", "--batch-size", "200", "--save-every", "2", "--size", "6"]
SMALL += ["--model", "drew_gin", "--dropout", "0.2", "--schedule", "plateau"]


def command(folder, *arguments):
    return [sys.executable, str(SCRIPT), "--runs", str(folder), *arguments]


def run(folder, *arguments, timeout=280):
    """Exit code, output and errors of one finished call."""
    return subprocess.run(command(folder, *arguments), capture_output=True, text=True, timeout=timeout)


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "time")} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of 6 epochs on two workers."""
    root = tmp_path_factory.mktemp("whole")
    done = run(root, *SMALL, "--epochs", "6")
    assert done.returncode == 0, done.stderr
    (folder,) = root.iterdir()
    return folder


@pytest.mark.launch
def test_a_run_leaves_metrics_plot_configuration_and_checkpoints(whole):
    lines = metrics(whole)
    assert [line["epoch"] for line in lines] == list(range(6))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert set(lines[0]) == {"epoch", "loss", "val_accuracy", "val_loss", "test_accuracy", "test_loss"}
    assert (whole / "plot.png").read_bytes().startswith(b"\x89PNG")
    settings = json.loads((whole / "config.json").read_text())
    assert (settings["model"], settings["lr"], settings["delay"]) == ("drew_gin", 0.01, 1)
    assert json.loads((whole / "status.json").read_text())["state"] == "finished"
    assert sorted(os.listdir(whole / "checkpoints")) == ["epoch_000004", "epoch_000006"]


@pytest.mark.launch
def test_a_killed_worker_ends_the_job_and_resuming_gives_the_numbers_of_an_uninterrupted_run(whole, tmp_path):
    arguments = [*SMALL, "--epochs", "100000", "--name", "run"]
    log_of_a_killed_worker(command(tmp_path, *arguments), tmp_path, epochs=3)
    saved = int(max(os.listdir(tmp_path / "run" / "checkpoints")).removeprefix("epoch_"))
    again = run(tmp_path, "--resume", "--epochs", str(max(saved, 6)))
    assert again.returncode == 0, again.stderr
    assert metrics(tmp_path / "run")[:6] == metrics(whole)


BAD = [
    pytest.param(["--size", "7"], "size must be even and at least 4, got 7", id="odd ring"),
    pytest.param(["--workers", "0"], "workers must be at least 1, got 0", id="no worker"),
    pytest.param(["--workers", "9", "--batch-size", "8"], "workers must be at most 8, got 9", id="more workers"),
    pytest.param(["--lr", "-1"], "optimizer.params must be those of Adam, got", id="negative learning rate"),
    pytest.param(["--width", "0"], "width must be at least 1", id="no width"),
    pytest.param(["--layers", "-1"], "layers must be at least 1, got -1", id="no layers"),
    pytest.param(["--delay", "nan"], "delay must be at least 1, got nan", id="no delay"),
    pytest.param(["--model", "spn", "--max-hops", "0"], "max_hops must be at least 1, got 0", id="no hops"),
    pytest.param(["--resume"], "resume must find a run", id="nothing to resume"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_said_before_anything_is_written(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", command(tmp_path, *arguments)[1:])
    assert train_long_range.main() == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_experiments_are_listed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--list"])
    assert train_long_range.main() == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == set(CONFIGS)


ZERO_STAGES = [0, 1, 2]


def _without_norms(module):
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm1d):
            setattr(module, name, torch.nn.Identity())
        else:
            _without_norms(child)
    return module


def _data_parallel_worker(rank, world, port, folder):
    """Loss, metrics and parameters after two epochs, for every stage of ZeRO."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    torch.set_num_threads(1)
    device = distributed.init_distributed("cpu")
    config = replace(CONFIGS["drew_gcn_ring_transfer"], layers=3, size=6, width=8, batch_size=300)
    task = load_task("ring-transfer", size=6)
    torch.manual_seed(0)
    model = _without_norms(build_model(config, task))
    found = []
    for stage in ZERO_STAGES:
        deepspeed = json.loads(SCRIPT.with_name("long_range.json").read_text())
        deepspeed |= {
            "optimizer": {"type": "SGD", "params": {"lr": 0.1}}, "zero_optimization": {"stage": stage},
        }  # fmt: skip
        trainer = Trainer(copy.deepcopy(model), task, config, deepspeed, seed=0, device=device)
        losses = [trainer.train_epoch()["loss"] for _ in range(2)]
        found.append((losses, trainer.evaluate(), trainer.engine.module.state_dict()))
    torch.save(found, os.path.join(folder, f"{world}-{rank}.pt"))
    distributed.leave_distributed()


@pytest.mark.launch
def test_two_workers_compute_the_gradients_of_one(tmp_path):
    """Without batch norms, which see the part of their worker."""
    for world in (1, 2):
        run_workers(_data_parallel_worker, (world, str(free_port()), str(tmp_path)), num_workers=world)
    expected, *others = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for stage in ZERO_STAGES:
        losses, scores, state = expected[stage]
        assert losses[1] < losses[0]
        for found in others:
            assert found[stage][0] == pytest.approx(losses, rel=1e-5)
            assert found[stage][1] == pytest.approx(scores, rel=1e-5)
            for name, value in found[stage][2].items():
                torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-6)
