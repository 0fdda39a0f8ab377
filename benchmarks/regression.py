"""The gate against lost speed: every operator at one size, held against what was recorded for this instruction set.

    make gate                                    fails if an operator lost its speed
    python benchmarks/regression.py --record     writes benchmarks/results/regression.csv anew for this machine's set

An operator has lost its speed if its share of the floor and its ratio to the plain way in torch (of those that were
recorded) are all below 40 % of the record, three times in a row. Absolute times are never compared, and a record of
another instruction set says nothing. A disturbed machine moves figures by a third (60 % kept was seen). What goes below
are losses of a kind: products that fall back to scalar code, a sort where there was none, a copy of a whole graph;
what memory bounds keeps most of its speed without vectors (65 to 100 % was seen), and passes.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import gossamer

import harness
from sweep import Point, Sweep, all_sweeps, measure

RECORD = Path(__file__).resolve().parent / "results" / "regression.csv"
SECONDS, TRIES, LEAST = 0.6, 3, 0.4


@dataclass(frozen=True)
class Standing:
    """Where an operator stands: figures that do not depend on how fast the machine is; None where there is none."""

    isa: str
    operator: str
    size: int
    floor_share: float
    stock_ratio: float | None

    @classmethod
    def of(cls, point: Point) -> Standing:
        return cls(gossamer.instruction_set(), point.operator, point.size, point.floor_share, point.stock_ratio)

    def kept(self, record: Standing) -> float:
        """The larger of the parts of the recorded figures that are still there."""
        parts = [self.floor_share / record.floor_share]
        if self.stock_ratio is not None and record.stock_ratio is not None:
            parts.append(self.stock_ratio / record.stock_ratio)
        return max(parts)


def stand(sweep: Sweep) -> Standing:
    """Measure an operator at its second size: past what a call costs, and quick."""
    return Standing.of(measure(sweep, sweep.sizes[1], 1, SECONDS))


def read_record() -> list[Standing]:
    with RECORD.open(newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [
            Standing(
                row["isa"], row["operator"], int(row["size"]), float(row["floor_share"]),
                float(row["stock_ratio"]) if row["stock_ratio"] else None,
            )
            for row in rows
        ]  # fmt: skip


def write_record(standings: Sequence[Standing]) -> None:
    """Those of this instruction set take the place of earlier ones; other sets keep theirs."""
    others = [s for s in (read_record() if RECORD.exists() else []) if s.isa != gossamer.instruction_set()]
    harness.save_csv([*others, *standings], RECORD)


def lost(sweeps: Sequence[Sweep], record: dict[str, Standing]) -> Iterator[str]:
    """Names of the operators that kept too little of their record in every try; prints each try."""
    for sweep in sweeps:
        if sweep.operator not in record or record[sweep.operator].size != sweep.sizes[1]:
            print(f"{sweep.operator:<26} {sweep.axis} {sweep.sizes[1]}: no record: --record makes one", flush=True)
            yield sweep.operator
        elif not any(kept(sweep, record[sweep.operator]) for _ in range(TRIES)):
            yield sweep.operator


def kept(sweep: Sweep, record: Standing) -> bool:
    now = stand(sweep)
    part = now.kept(record)
    share = f"{now.floor_share:.1%} of the floor (recorded {record.floor_share:.1%})"
    ratio = "" if now.stock_ratio is None else f", {now.stock_ratio:.2f}x stock (recorded {record.stock_ratio:.2f}x)"
    print(f"{now.operator:<26} {part:6.0%} kept: {share}{ratio}", flush=True)
    return part >= LEAST


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the record of this instruction set anew")
    options = parser.parse_args()
    print(harness.environment_line(), flush=True)
    if options.record:
        write_record([stand(sweep) for sweep in all_sweeps()])
        return
    record = {s.operator: s for s in read_record() if s.isa == gossamer.instruction_set()}
    if not record:
        print(f"nothing recorded for {gossamer.instruction_set()}: nothing to compare with")
        return
    if names := list(lost(all_sweeps(), record)):
        sys.exit(f"below {LEAST:.0%} of the recorded speed, or unrecorded: {', '.join(names)}")


if __name__ == "__main__":
    main()
