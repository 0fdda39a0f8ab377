"""The package as it is installed: imports from anywhere, imports nothing heavy, and says what is missing."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gossamer

HOST = "gossamer._C, gossamer._host" if sys.platform == "linux" else "gossamer._C"
ROOT = Path(__file__).resolve().parent.parent
HEAVY = [
    "deepspeed",
    "torch_geometric",
    "transformers",
    "scipy",
    "sklearn",
    "networkx",
    "pymetis",
    "matplotlib",
    "cupy",
]
FORBIDDEN = {
    "graph": ("gossamer.sparse_nn", "gossamer.distributed"),
    "sparse_nn": ("gossamer.graph", "gossamer.distributed"),
    "distributed": (),
}


def run(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("folder", [ROOT, Path("/")], ids=["root", "elsewhere"])
def test_import_from_any_folder(folder: Path) -> None:
    done = run("import gossamer.graph, gossamer.sparse_nn, gossamer.distributed; print('imported')", folder)
    assert done.stdout == "imported\n", done.stderr
    assert done.stderr == ""


def test_import_loads_nothing_heavy(tmp_path: Path) -> None:
    parts = "import sys, gossamer.graph, gossamer.sparse_nn, gossamer.distributed"
    # torch itself imports some of them where they are installed: only what Gossamer adds counts.
    done = run(f"import sys, torch; before = set(sys.modules); {parts}; print(*(set(sys.modules) - before))", tmp_path)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & set(HEAVY)


def test_tests_do_not_see_the_repository_root() -> None:
    """Otherwise another package's ``import distributed`` would find ours."""
    assert str(ROOT) not in map(os.path.abspath, sys.path)
    assert importlib.util.find_spec("sparse_nn") is None


@pytest.mark.parametrize("part", FORBIDDEN)
def test_parts_keep_apart(part: str) -> None:
    for path in (ROOT / part).rglob("*.py"):
        imported = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module or "")
        assert not [name for name in imported if name.startswith(FORBIDDEN[part])], path


def test_metadata() -> None:
    metadata = importlib.metadata.metadata("gossamer")
    assert gossamer.__version__ == metadata["Version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    requirements = [r for r in importlib.metadata.requires("gossamer") or [] if "extra ==" not in r]
    assert sorted(requirements) == ["numpy>=1.26", "torch>=2.11"]


def test_constraints_are_within_the_declared_ranges() -> None:
    """Every requirement of every extra that has a tested version accepts it."""
    from packaging.requirements import Requirement

    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = {r.name: next(iter(r.specifier)).version for r in map(Requirement, filter(None, lines))}
    declared = [Requirement(r) for r in importlib.metadata.requires("gossamer") or []]
    assert not [str(r) for r in declared if r.name in pins and not r.specifier.contains(pins[r.name])]
    assert {"torch", "deepspeed", "torch-geometric"} <= set(pins)


def test_cuda_libraries_are_only_loaded_with_a_cuda_torch() -> None:
    assert gossamer.cuda_loaded() <= (gossamer.cuda_built() and torch.version.cuda is not None)


def test_every_requested_instruction_set_is_used(tmp_path: Path) -> None:
    for name in ("scalar", "avx2"):
        done = run("import gossamer; print(gossamer.instruction_set())", tmp_path, GOSSAMER_ISA=name)
        assert done.stdout.strip() in (name, "scalar"), done.stderr


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("0", f"building {HOST}\n"), ("1", "needs the CUDA toolkit")],
    ids=["no CUDA kernels", "a toolkit that is not there"],
)
def test_cuda_setting(setting: str, expected: str) -> None:
    """Asking setup.py for its version prints what it would build; without nvcc on PATH, 1 must fail."""
    environment = {"GOSSAMER_CUDA": setting, "PATH": "/nowhere", "CUDA_HOME": "", "CUDA_PATH": ""}
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert expected in done.stdout + done.stderr
    assert (done.returncode == 0) == (setting == "0")


def test_build_without_torch_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch')")
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "install torch (2.11 or newer) first" in done.stderr
