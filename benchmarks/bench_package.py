"""The package as a whole: what importing it costs, and how much of it the tests run."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import harness

ROOT = Path(__file__).resolve().parent.parent
CAPABILITY = "Package"
PARTS = "gossamer.graph, gossamer.sparse_nn, gossamer.distributed"
REPEATS = 7
COVERAGE = """
[run]
source = {folders}
data_file = {data_file}
parallel = true
patch = subprocess
concurrency = multiprocessing, thread
sigterm = true

[report]
exclude_also = if TYPE_CHECKING:
"""


def cpu_seconds(code: str) -> float:
    """CPU time of a Python process that runs this and ends; modules are compiled once, as in any installation."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tempfile.gettempdir(), env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def beyond_torch(modules: str) -> harness.Figure:
    """CPU seconds that importing these adds to torch's own."""
    pairs = [(cpu_seconds("import torch"), cpu_seconds(f"import torch, {modules}")) for _ in range(REPEATS + 1)][1:]
    torch_alone = statistics.median(alone for alone, _ in pairs)
    return harness.Figure(
        statistics.median(both - alone for alone, both in pairs),
        f"torch alone {torch_alone:.2f} s; median of {REPEATS}",
    )


@harness.goal(CAPABILITY, "import gossamer beyond torch's own, CPU time", at_most=0.3, unit="s")
def import_seconds() -> harness.Figure:
    return beyond_torch("gossamer")


@harness.goal(CAPABILITY, "import of gossamer's three parts beyond torch's own, CPU time", at_most=0.3, unit="s")
def import_parts_seconds() -> harness.Figure:
    """Beside the code of the parts: torch looks up the source of every operator registered, and the garbage collector
    goes once through all of torch's objects; the two take about half."""
    return beyond_torch(PARTS)


@harness.goal(CAPABILITY, "lines of Python that the tests run", at_least=90, unit="%", slow=True)
def python_lines() -> harness.Figure:
    """The whole test suite, with the processes that it starts."""
    if importlib.util.find_spec("coverage") is None:
        raise harness.NotHere("coverage is not installed (7.10 or newer)")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        settings = Path(folder, "coveragerc")
        folders = [ROOT / name for name in ("src/gossamer", "graph", "sparse_nn", "distributed")]
        settings.write_text(COVERAGE.format(folders=", ".join(map(str, folders)), data_file=Path(folder, "data")))
        coverage = [sys.executable, "-m", "coverage"]
        tests = [*coverage, "run", "--rcfile", str(settings), "-m", "pytest", "-n", str(os.cpu_count()), "--dist"]
        done = subprocess.run([*tests, "loadgroup"], cwd=ROOT)
        for step in (["combine", "--quiet"], ["json", "--quiet", "-o", str(report)]):
            subprocess.run([*coverage, *step, "--rcfile", str(settings)], cwd=ROOT, check=True)
        found = json.loads(report.read_text())
    worst = sorted(found["files"].items(), key=lambda item: item[1]["summary"]["percent_covered"])[:5]
    least = ", ".join(f"{Path(name).name} {entry['summary']['percent_covered']:.0f} %" for name, entry in worst)
    suffix = "" if done.returncode == 0 else f"; tests ended with exit code {done.returncode}"
    return harness.Figure(found["totals"]["percent_covered"], f"least: {least}{suffix}")


if __name__ == "__main__":
    harness.main()
