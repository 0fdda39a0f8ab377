"""Fixtures and collection rules of all tests."""

from __future__ import annotations

import pytest
import torch

import gossamer

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(
            not (torch.cuda.is_available() and gossamer.cuda_loaded()), reason="needs a GPU and the CUDA kernels"
        ),
    ),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device that operators run on; CUDA cases are skipped where there is no GPU."""
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("launch"):  # several processes each: never two such tests at the same time
            item.add_marker(pytest.mark.xdist_group("launch"))
