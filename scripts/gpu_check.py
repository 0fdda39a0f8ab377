"""Build, test and measure the CUDA kernels on this machine's GPU, and write one summary that can be committed.

Needs what is there: torch with CUDA, numpy, pytest and nvcc; no network. The build goes to build/gpu, so that an
installed Gossamer is not touched. Without a GPU nothing is written and the exit code is 2.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "gpu"
SITE = WORK / "site"
PYTEST = "import sys; del sys.path[0]; import pytest; sys.exit(pytest.main())"  # without the root on the path


@dataclass
class TestResults:
    """Counts of the test cases by outcome, for all cases and for those that ran on the GPU, and what failed."""

    total: dict[str, int] = field(default_factory=dict)
    cuda: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the summary")
    parser.add_argument("--skip-benchmarks", action="store_true", help="build and test only")
    options = parser.parse_args()
    if missing := missing_parts():
        print(f"gpu-check: cannot run here: {'; '.join(missing)}", file=sys.stderr)
        sys.exit(2)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    build()
    tests = run_tests()
    benchmarks, crashed = ("not run", False) if options.skip_benchmarks else run_benchmarks()
    path = write_summary(options.output, card_entries(), tests, benchmarks)
    print(f"gpu-check: {counts(tests.cuda)} on the GPU; summary in {path}")
    sys.exit(bool(tests.failures or crashed or not tests.cuda.get("passed")))


def missing_parts() -> list[str]:
    """What this machine lacks for the check."""
    missing = [f"no {name}" for name in ("torch", "numpy", "pytest") if importlib.util.find_spec(name) is None]
    if "no torch" not in missing:
        import torch

        if torch.version.cuda is None:
            missing.append("this torch is a CPU build")
        elif not torch.cuda.is_available():
            missing.append("torch finds no GPU")
    if not shutil.which("nvcc") and not (os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")):
        missing.append("no nvcc on PATH and no CUDA_HOME")
    return missing


def build() -> None:
    """Compile the package with its CUDA kernels for this card, into a private folder."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation",
         "--upgrade", "--target", str(SITE), str(ROOT)],
        GOSSAMER_CUDA="1", TORCH_CUDA_ARCH_LIST=f"{major}.{minor}", must_pass=True,
    )  # fmt: skip
    check = "import gossamer, sys; sys.exit(not gossamer.cuda_loaded())"
    run([sys.executable, "-c", check], cwd=WORK, must_pass=True)


def run_tests() -> TestResults:
    report = WORK / "tests.xml"
    run([sys.executable, "-c", PYTEST, str(ROOT / "tests"), f"--junitxml={report}", "-p", "no:cacheprovider"])
    return read_report(report)


def read_report(report: Path) -> TestResults:
    """Outcomes from a JUnit report; a case belongs to the GPU if its parameters name cuda."""
    results = TestResults()
    for case in ElementTree.parse(report).iter("testcase"):
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        outcome = {"failure": "failed", "error": "failed", "skipped": "skipped"}.get(
            problem.tag if problem is not None else "", "passed"
        )
        name = case.get("name", "")
        groups = [results.total] + ([results.cuda] if re.search(r"\[.*\bcuda\b", name) else [])
        for group in groups:
            group[outcome] = group.get(outcome, 0) + 1
        if outcome == "failed" and problem is not None:
            message = (problem.get("message") or "").splitlines() or [""]
            results.failures.append(f"{case.get('classname')}::{name}: {message[0]}")
    return results


def run_benchmarks() -> tuple[str, bool]:
    """The goals that need a GPU as Markdown tables, and whether one of them crashed."""
    stem = WORK / "scoreboard"
    scoreboard = str(ROOT / "benchmarks" / "scoreboard.py")
    code = run([sys.executable, scoreboard, "--gpu-only", "--slow", "--output", str(stem)])
    table = stem.with_name("scoreboard.md")
    return (table.read_text().partition("\n")[2].strip() if table.exists() else "no goals", code != 0)


def run(command: list[str], cwd: Path = ROOT, must_pass: bool = False, **environment: str) -> int:
    """Run a command that sees the private build first."""
    search_path = os.pathsep.join(filter(None, [str(SITE), os.environ.get("PYTHONPATH")]))
    code = subprocess.run(command, cwd=cwd, env={**os.environ, "PYTHONPATH": search_path, **environment}).returncode
    if code and must_pass:
        sys.exit(f"gpu-check: failed with exit code {code}: {' '.join(command)}")
    return code


def card_entries() -> dict[str, str]:
    """The card and what it runs with."""
    import numpy
    import torch

    card = torch.cuda.get_device_properties(0)
    return {
        "card": card.name,
        "compute capability": f"{card.major}.{card.minor}",
        "memory": f"{card.total_memory / 2**30:.0f} GiB",
        "driver": first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "toolkit": first_line(["nvcc", "--version"], r"release (\S+),"),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda})",
        "numpy": numpy.__version__,
        "python": sys.version.split()[0],
        "revision": first_line(["git", "describe", "--always", "--dirty", "--exclude=*"]),
        "date": time.strftime("%Y-%m-%d"),
    }


def first_line(command: list[str], pattern: str = r"(.+)") -> str:
    """The first match of the pattern in what a command prints, or unknown."""
    try:
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    except OSError:
        return "unknown"
    match = re.search(pattern, output)
    return match.group(1).strip() if match else "unknown"


def counts(outcomes: dict[str, int]) -> str:
    return ", ".join(f"{outcomes[key]} {key}" for key in ("passed", "failed", "skipped") if key in outcomes) or "none"


def summary(entries: dict[str, str], tests: TestResults, benchmarks: str) -> str:
    """The whole report as Markdown."""
    lines = [f"# GPU check: {entries['card']}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in entries.items()]
    lines += ["", "## Tests", "", f"All cases: {counts(tests.total)}. On the GPU: {counts(tests.cuda)}.", ""]
    lines += [f"- failed: `{failure}`" for failure in tests.failures]
    return "\n".join([*lines, "", "## Benchmarks", "", benchmarks.replace("\n## ", "\n### "), ""])


def write_summary(folder: Path, entries: dict[str, str], tests: TestResults, benchmarks: str) -> Path:
    """Write gpu_<card>.md, whole or not at all."""
    card = re.sub(r"[^a-z0-9]+", "_", entries["card"].lower().removeprefix("nvidia ")).strip("_")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu_{card}.md"
    part = path.with_suffix(".part")
    part.write_text(summary(entries, tests, benchmarks))
    os.replace(part, path)
    return path


if __name__ == "__main__":
    main()
