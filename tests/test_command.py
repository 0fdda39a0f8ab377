"""The gossamer command as a user types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gossamer
from gossamer import command
from gossamer.graph import CSR


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from gossamer.command import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)


def test_doctor_reports_this_installation() -> None:
    done = run("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert gossamer.__version__ in done.stdout
    assert torch.__version__ in done.stdout
    assert gossamer.instruction_set() in done.stdout
    assert "operators agree with torch" in done.stdout
    assert done.stdout.endswith("all is well\n")


def test_doctor_finds_a_wrong_operator(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from gossamer import graph

    right = graph.aggregate
    monkeypatch.setattr(graph, "aggregate", lambda *arguments: 2 * right(*arguments))
    assert command.main(["doctor"]) == 1
    assert "FAIL  self-check         aggregate, gradients of aggregate differ" in capsys.readouterr().out


def test_doctor_reports_an_operator_that_raises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gossamer import sparse_nn

    monkeypatch.setattr(sparse_nn, "decode_attention", None)
    assert command.main(["doctor"]) == 1
    assert "FAIL  self-check         TypeError" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["nurse"]], ids=["none", "unknown"])
def test_wrong_use_says_what_there_is(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "doctor" in done.stderr + done.stdout or "COMMAND" in done.stderr


def test_convert(tmp_path: Path) -> None:
    (tmp_path / "edges.csv").write_text("a,b\n0,1\n1,2\n")
    done = run("convert", str(tmp_path / "edges.csv"), str(tmp_path / "graph"))
    assert done.returncode == 0, done.stderr
    assert CSR.open(tmp_path / "graph").num_edges == 2
    assert run("convert", "--help").stdout.startswith("usage: gossamer convert")
    done = run("convert", str(tmp_path / "missing.csv"), str(tmp_path / "graph"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "missing.csv" in done.stderr
    assert "convert" in run("--help").stdout


def test_bench_lists_every_operator() -> None:
    done = run("bench", "--list")
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert {"aggregate", "decode_attention", "neighbor_sample"} <= set(names)
    assert len(names) == len(set(names))


def test_bench_measures_an_operator(tmp_path: Path) -> None:
    done = run("bench", "hash_plan", "--csv", str(tmp_path / "points.csv"))
    assert done.returncode == 0, done.stderr
    comment, header, *points = (tmp_path / "points.csv").read_text().splitlines()
    assert gossamer.instruction_set() in comment
    assert header.startswith("operator,axis,size,threads,seconds")
    assert [point.split(",")[2] for point in points] == ["64", "512", "4096", "32768"]


def test_bench_refuses_an_unknown_operator() -> None:
    done = run("bench", "wormhole")
    assert done.returncode == 2
    assert "no sweep of wormhole" in done.stderr
