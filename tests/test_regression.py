"""The gate against lost speed, with figures given instead of measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import gossamer

import regression
from regression import Standing
from sweep import Sweep

RECORD = Standing(gossamer.instruction_set(), "wormhole", 10, floor_share=0.8, stock_ratio=4.0)
SWEEP = Sweep("wormhole", "N", (1, 10, 100), (), False, lambda size: pytest.fail("measured"))


def lost(monkeypatch: pytest.MonkeyPatch, *standings: Standing) -> list[str]:
    """What the gate says when one try after the other gives these figures."""
    tries = iter(standings)
    monkeypatch.setattr(regression, "stand", lambda sweep: next(tries))
    return list(regression.lost([SWEEP], {"wormhole": RECORD}))


def test_equal_figures_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lost(monkeypatch, RECORD) == []


@pytest.mark.parametrize("still", [{"floor_share": 0.3}, {"stock_ratio": 1.5}], ids=["ratio", "share"])
def test_one_of_the_two_figures_is_enough(monkeypatch: pytest.MonkeyPatch, still: dict[str, float]) -> None:
    assert lost(monkeypatch, replace(RECORD, **still)) == []


def test_both_below_the_least_in_three_tries_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = replace(RECORD, floor_share=0.3, stock_ratio=1.5)
    assert lost(monkeypatch, slow, slow, slow) == ["wormhole"]
    assert lost(monkeypatch, slow, slow, RECORD) == []


def test_an_operator_without_a_record_fails() -> None:
    assert list(regression.lost([SWEEP], {})) == ["wormhole"]
    assert list(regression.lost([SWEEP], {"wormhole": replace(RECORD, size=11)})) == ["wormhole"]


def test_a_record_replaces_only_its_own_instruction_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(regression, "RECORD", tmp_path / "regression.csv")
    foreign = replace(RECORD, isa="another")
    regression.write_record([foreign, RECORD])
    newer = replace(RECORD, floor_share=0.9, stock_ratio=None)
    regression.write_record([newer])
    assert regression.read_record() == [foreign, newer]
