"""Fixtures and collection rules of all tests."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import gossamer

GPU = torch.cuda.is_available() and gossamer.cuda_loaded()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not GPU, reason="needs a GPU and the CUDA kernels"))]

# Tests need torch, numpy and pytest. A file that imports one of these at its top is left out where it is missing.
OPTIONAL = (
    "deepspeed",
    "hypothesis",
    "networkx",
    "packaging",
    "pymetis",
    "scipy",
    "sklearn",
    "torch_geometric",
    "transformers",
)
IMPORT = re.compile(r"^(?:import|from) (\w+)", re.MULTILINE)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device that operators run on; CUDA cases are skipped where there is no GPU."""
    return request.param


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch with one thread; afterwards with as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def missing_packages(path: Path) -> set[str]:
    """Optional packages that a test file imports and this environment lacks."""
    imported = set(IMPORT.findall(path.read_text())) & set(OPTIONAL)
    return {name for name in imported if importlib.util.find_spec(name) is None}


LEFT_OUT = {
    path.name: missing
    for path in sorted(Path(__file__).parent.glob("test_*.py"))
    if (missing := missing_packages(path))
}
collect_ignore = list(LEFT_OUT)


def pytest_report_header() -> list[str]:
    return [f"{name} left out: needs {', '.join(sorted(missing))}" for name, missing in LEFT_OUT.items()]


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("launch"):  # several processes each: never two such tests at the same time
            item.add_marker(pytest.mark.xdist_group("launch"))
