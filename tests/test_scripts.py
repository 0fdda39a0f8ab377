"""The frame around the library: benchmark harness, scoreboard and GPU check, without their measurements."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import os, time
import harness

@harness.goal("First", "held", at_least=2.0, at_most=4.0)
def held(): return harness.Figure(3.0, "a | detail")

@harness.goal("First", "short", at_most=1.0, unit="s")
def short(): return harness.Figure(1.5)

@harness.goal("Second", "not a number is short", at_least=1.0)
def nan(): return harness.Figure(float("nan"))

@harness.goal("Second", "recorded", unit="GB/s")
def recorded(): return harness.Figure(12345.0)

@harness.goal("Second", "raises")
def raises(): raise ValueError("broken")

@harness.goal("Second", "ends its process")
def dies(): os._exit(7)

@harness.goal("Second", "hangs")
def hangs(): time.sleep(600)

@harness.goal("Second", "a peer is missing")
def missing():
    raise harness.NotHere("no peer")

@harness.goal("Second", "takes minutes", slow=True)
def slow(): return harness.Figure(1.0)

if __name__ == "__main__":
    harness.main()
"""


@pytest.fixture
def benchmarks(tmp_path: Path) -> Path:
    """A folder of benchmarks with one script."""
    for name in ("harness.py", "timing.py", "environment.py", "scoreboard.py"):
        shutil.copy(ROOT / "benchmarks" / name, tmp_path)
    (tmp_path / "bench_example.py").write_text(SCRIPT)
    return tmp_path


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=120)


def test_scoreboard_shows_every_goal(benchmarks: Path) -> None:
    (benchmarks / "bench_broken.py").write_text("import a_module_that_is_not_there")
    done = run(benchmarks / "scoreboard.py", "--timeout", "3", "--output", str(benchmarks / "out" / "board"))
    assert done.returncode == 1, done.stderr
    table = (benchmarks / "out" / "board.md").read_text()
    for line in (
        "| held (`held`) | >= 2x and <= 4x | 3x | held | a \\| detail |",
        "| short (`short`) | <= 1 s | 1.5 s | short |  |",
        "| not a number is short (`nan`) | >= 1x | nan | short |  |",
        "| recorded (`recorded`) |  | 12,345 GB/s | measured |  |",
        "| raises (`raises`) |  | - | failed | ValueError: broken |",
        "| ends its process (`dies`) |  | - | failed | exit code 7: nothing printed |",
        "| hangs (`hangs`) |  | - | failed | no result after 3 s |",
        "| a peer is missing (`missing`) |  | - | not run here | no peer |",
        "| takes minutes (`slow`) |  | - | not run here | slow: use --slow |",
    ):
        assert line in table.splitlines()
    assert "the script does not start (`bench_broken`)" in table
    assert "1 held, 2 short, 1 measured, 2 not run here, 4 failed" in table
    assert len((benchmarks / "out" / "board.csv").read_text().splitlines()) == 2 + 10


def test_scoreboard_of_chosen_goals(benchmarks: Path) -> None:
    """Chosen goals are only shown: a part does not replace the whole table."""
    done = run(benchmarks / "scoreboard.py", "held", "recorded")
    assert done.returncode == 0, done.stderr
    assert "1 held, 1 measured" in done.stdout
    assert not (benchmarks / "results").exists()


def test_scoreboard_without_time(benchmarks: Path) -> None:
    done = run(benchmarks / "scoreboard.py", "--minutes", "0", "--output", str(benchmarks / "board"))
    assert done.returncode == 0, done.stderr
    table = (benchmarks / "board.md").read_text()
    assert "| hangs (`hangs`) |  | - | not run here | no time left: --minutes 0 |" in table.splitlines()
    assert "9 not run here." in table


def test_one_script_alone(benchmarks: Path) -> None:
    done = run(benchmarks / "bench_example.py", "held", "--csv", str(benchmarks / "rows.csv"))
    assert done.returncode == 0, done.stderr
    assert "held  " in done.stdout
    assert f"torch {torch.__version__}" in done.stdout
    assert (benchmarks / "rows.csv").read_text().splitlines()[2].startswith("First,held,held,")
    assert run(benchmarks / "bench_example.py", "raises").returncode == 1
    assert "no goal matches absent" in run(benchmarks / "bench_example.py", "absent").stderr


def test_compare_pairs_the_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import timing

    calls: list[str] = []
    times = timing.compare({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=6)
    assert len(times["a"].samples) == len(times["b"].samples) == 6
    assert times["a"].minimum <= times["a"].median <= times["a"].maximum
    assert (
        timing.Comparison({"peer": timing.Timing([4.0, 6.0, 90.0]), "ours": timing.Timing([2.0, 2.0, 3.0])}).ratio(
            "peer", "ours"
        )
        == 3.0
    )
    assert calls[:6] == ["a"] * 3 + ["b"] * 3  # two to warm up and one to size the samples, each


def test_gpu_check_without_a_gpu_writes_nothing(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "gpu-check: cannot run here: " in done.stderr
    assert not list(tmp_path.iterdir())


REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_values[cpu]"/>
<testcase classname="tests.test_a" name="test_values[cuda]"/>
<testcase classname="tests.test_a" name="test_values[8-cuda-float32]"><failure message="bad&#10;more"/></testcase>
<testcase classname="tests.test_a" name="test_cuda_setting[1]"><skipped message="why"/></testcase>
</testsuite></testsuites>"""


def test_gpu_check_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu_check

    (tmp_path / "tests.xml").write_text(REPORT)
    tests = gpu_check.read_report(tmp_path / "tests.xml")
    assert tests.total == {"passed": 2, "failed": 1, "skipped": 1}
    assert tests.cuda == {"passed": 1, "failed": 1}
    entries = {"card": "NVIDIA Some Card (80 GB)", "driver": "1.2"}
    path = gpu_check.write_summary(tmp_path / "results", entries, tests, "Measured today.\n\n## Aggregation\n")
    assert path.name == "gpu_some_card_80_gb.md"
    text = path.read_text()
    assert "| driver | 1.2 |" in text
    assert "On the GPU: 1 passed, 1 failed." in text
    assert "- failed: `tests.test_a::test_values[8-cuda-float32]: bad`" in text
    assert "### Aggregation" in text
    assert list((tmp_path / "results").iterdir()) == [path]
