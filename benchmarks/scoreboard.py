"""Measure every goal of every benchmark now, and write the result as one table.

Each script runs in a process of its own. Nothing is remembered from an earlier run: a row is what was measured, or
says why it was not; a goal that crashes, hangs or takes its process down is a failed row. Exit code 1 if one failed.
With ``--minutes`` the goals that no time is left for are rows that say so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from environment import environment_line
from harness import FAILED, HELD, MEASURED, NOT_HERE, SHORT, Row, format_row, save_csv, save_text

HERE = Path(__file__).resolve().parent
START_TIMEOUT = 300.0  # seconds for a script to import what it needs
VERDICTS = (HELD, SHORT, MEASURED, NOT_HERE, FAILED)


def main() -> None:
    options = parse()
    start = time.perf_counter()
    print(environment_line(), flush=True)
    rows = list(run_all(options))
    if not rows:
        sys.exit(f"no goal matches {' '.join(options.names)}")
    print(f"\n{summary(rows)} in {time.perf_counter() - start:.0f} s")
    if options.output:
        write_results(rows, Path(options.output))
        print(f"written to {options.output}.md and .csv")
    sys.exit(any(row.verdict == FAILED for row in rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only goals whose name, or whose script's name, contains one of these")
    parser.add_argument("--slow", action="store_true", help="also run the goals that take minutes")
    parser.add_argument("--gpu-only", action="store_true", help="only the goals that need a GPU")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one goal, tenfold with --slow")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no goal after that many minutes")
    parser.add_argument("--output", metavar="STEM", help="write STEM.md and STEM.csv (default: results/scoreboard)")
    options = parser.parse_args()
    if options.output is None and not (
        options.names or options.gpu_only
    ):  # a part of the goals does not replace the whole table
        options.output = str(HERE / "results" / "scoreboard")
    return options


def run_all(options: argparse.Namespace) -> Iterator[Row]:
    """Rows of every script, shown as they come."""
    options.deadline = time.monotonic() + 60 * options.minutes
    for script in sorted(HERE.glob("bench_*.py")):
        whole = not options.names or any(name in script.stem for name in options.names)
        for row in run_script(script, [] if whole else options.names, options):
            print(format_row(row), flush=True)
            yield row


def run_script(script: Path, names: Sequence[str], options: argparse.Namespace) -> Iterator[Row]:
    """Rows of one script; when its process dies it loses the goal it was in, and goes on with the next."""
    run = ScriptRun(script, names, options)
    yield from run.rows()
    while run.unfinished and not run.out_of_time:
        lost, *rest = run.unfinished
        yield row_without_figure(script, lost, FAILED, run.last_words())
        if not rest:
            return
        run = ScriptRun(script, [planned["name"] for planned in rest], options)
        yield from run.rows()
    for planned in run.unfinished:
        yield row_without_figure(script, planned, NOT_HERE, f"no time left: --minutes {options.minutes:g}")


class ScriptRun:
    """One process of a benchmark script, which sends its plan and then its rows through a pipe."""

    def __init__(self, script: Path, names: Sequence[str], options: argparse.Namespace) -> None:
        self.script = script
        self.unfinished: list[dict[str, Any]] = [{"name": script.stem}]  # until the plan is there
        self.timeout = options.timeout * (10 if options.slow else 1)
        self.deadline = options.deadline
        self.timed_out = self.out_of_time = False
        self.seen = 0
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the run)
        flags = [flag for flag, wanted in (("--slow", options.slow), ("--gpu-only", options.gpu_only)) if wanted]
        self.arguments = [*names, *flags]

    def rows(self) -> Iterator[Row]:
        read_end, write_end = os.pipe()
        command = [sys.executable, str(self.script), *self.arguments, "--rows-to", str(write_end)]
        self.process = subprocess.Popen(
            command, stdout=self.output, stderr=subprocess.STDOUT, pass_fds=[write_end], start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        os.close(write_end)
        try:
            with os.fdopen(read_end) as pipe:
                yield from self._read(pipe)
        except BaseException:  # an interrupt must not leave the benchmark running
            self._end()
            raise
        finally:
            self.process.wait()

    def _read(self, pipe: TextIO) -> Iterator[Row]:
        limit = START_TIMEOUT
        while True:
            watchdog = threading.Timer(limit, self._end)
            watchdog.start()
            line = pipe.readline()
            watchdog.cancel()
            if not line:
                return
            limit = self.timeout
            message = json.loads(line)
            if "plan" in message:
                self.unfinished = message["plan"]
            else:
                self.unfinished.pop(0)
                self.seen = os.fstat(self.output.fileno()).st_size  # what is printed from here on is of the next goal
                yield Row(**message)
            if time.monotonic() > self.deadline:
                self.out_of_time = True
                return self._kill()

    def _end(self) -> None:
        self.timed_out = True
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with the processes that a goal started

    def last_words(self) -> str:
        if self.timed_out:
            return f"no result after {self.timeout:g} s"
        self.output.seek(self.seen)
        lines = self.output.read().strip().splitlines() or ["nothing printed"]
        return f"exit code {self.process.returncode}: {lines[-1]}"


def row_without_figure(script: Path, planned: dict[str, Any], verdict: str, reason: str) -> Row:
    """The row of a goal whose process died in it (or of a script that did not start), or that was not begun."""
    capability, claim = planned.get("capability", script.stem), planned.get("claim", "the script does not start")
    return Row(capability, planned["name"], claim, planned.get("bar", ""), None, "", verdict, reason, 0.0)


def summary(rows: Sequence[Row]) -> str:
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)


def markdown(rows: Sequence[Row]) -> str:
    """The scoreboard: one table per capability, in the order in which they came."""
    lines = ["# Scoreboard", "", f"Measured {time.strftime('%Y-%m-%d')}: {summary(rows)}.", "", environment_line(), ""]
    for capability in dict.fromkeys(row.capability for row in rows):
        lines += [f"## {capability}", "", "| goal | bar | measured | verdict | how |", "|---|---|---|---|---|"]
        lines += [table_row(row) for row in rows if row.capability == capability]
        lines.append("")
    return "\n".join(lines)


def table_row(row: Row) -> str:
    cells = (f"{row.claim} (`{row.name}`)", row.bar, row.figure(), row.verdict, row.detail)
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def write_results(rows: Sequence[Row], stem: Path) -> None:
    """Write ``stem``.md and ``stem``.csv, each whole or not at all."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    save_text(markdown(rows), stem.with_name(f"{stem.name}.md"))
    save_csv(rows, stem.with_name(f"{stem.name}.csv"))


if __name__ == "__main__":
    main()
