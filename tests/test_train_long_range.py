"""The RingTransfer example: the task as it is defined, and DRew learns it."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

import train_long_range


def test_task_is_ring_transfer():
    labels = torch.tensor([3, 0])
    x = train_long_range.ring_features(6, labels).view(2, 6, 5)
    assert x[:, 0].tolist() == [[0] * 5] * 2
    assert x[:, 3].tolist() == [[0, 0, 0, 1, 0], [1, 0, 0, 0, 0]]
    assert (x[:, [1, 2, 4, 5]] == 1).all()
    graph = train_long_range.rings(6, 2)
    assert [sorted(graph.col[graph.rowptr[i] : graph.rowptr[i + 1]].tolist()) for i in (0, 5, 6, 11)] == [
        [1, 5], [0, 4], [7, 11], [6, 10],
    ]  # fmt: skip
    counts = [labels.bincount().tolist() for labels in train_long_range.RingTransfer(6, 3).labels.values()]
    assert counts == [[320] * 5, [40] * 5, [40] * 5]


def test_models_have_equal_parameters():
    sizes = []
    for arguments in (["--model", "gcn"], ["--model", "drew"], ["--model", "spn"]):
        model = train_long_range.build(train_long_range.parse(["--size", "20", *arguments]))
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert sizes[1:] == pytest.approx([sizes[0]] * 2, rel=0.03)


def test_drew_learns_small_rings(tmp_path):
    arguments = ["--size", "6", "--epochs", "4", "--output", str(tmp_path / "metrics.jsonl")]
    metrics = train_long_range.main(arguments)
    assert metrics["test"] == 1.0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]


def test_odd_rings_are_refused(capsys):
    with pytest.raises(SystemExit):
        train_long_range.parse(["--size", "7"])
    assert "--size must be even and at least 4, got 7" in capsys.readouterr().err
