"""Nothing is forgotten: every operator and every public name has what the house asks of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gossamer.distributed
import gossamer.graph
import gossamer.sparse_nn

from cost import COSTS
from samples import SAMPLES

ROOT = Path(__file__).resolve().parent.parent
PARTS = [gossamer.graph, gossamer.sparse_nn, gossamer.distributed]
QUERIES = {"instruction_set"}  # answers a question about the library: no tensors, nothing to differentiate or to time
OPERATORS = sorted(
    name.removeprefix("gossamer::").partition(".")[0]
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("gossamer::")
)
KERNELS = [name for name in OPERATORS if name not in QUERIES]

# Part of an operator that is measured: a benchmark of its own would show nothing more.
MEASURED_WITHIN = {
    "extremum": "aggregate",
    "sddmm": "aggregate",
    "diagonal_blocks": "k_hop",
    "k_hop_count": "k_hop",
    "row_pointers": "k_hop",
    "sample_bounds": "neighbor_sample",
    "sample_rows": "neighbor_sample",
    "decompress_rows": "CompressedCSR",
    "neighbor_sample_compressed": "CompressedCSR",
}

# No goal yet: an operator leaves this list when its benchmark comes.
TO_MEASURE: set[str] = set()

# Part of an operator whose cost model counts it too.
COSTED_WITHIN = {
    "diagonal_blocks": "k_hop",
    "k_hop_count": "k_hop",
    "row_pointers": "k_hop",
    "sample_bounds": "neighbor_sample",
    "sample_rows": "neighbor_sample",
    "decompress_rows": "compress_rows",
    "neighbor_sample_compressed": "neighbor_sample",
}

# What no sample calls, and why.
NOT_FUZZED = {
    "sample_bounds": "a step of sampling on a GPU",
    "sample_rows": "a step of sampling on a GPU",
    "decompress_rows": "of a graph that compress_rows made",
    "sddmm": "the gradient of edge weights, of tensors that aggregate has checked",
}


def text_of(pattern: str) -> str:
    files = (path for path in sorted(ROOT.glob(pattern)) if path.name != Path(__file__).name)
    return "\n".join(path.read_text() for path in files)


def names(pattern: str) -> set[str]:
    """Every identifier in the files that match."""
    return set(re.findall(r"\w+", text_of(pattern)))


def status() -> dict[str, list[str]]:
    """Cells of docs/status.md by operator: CPU tested, CUDA compiled, run on a GPU."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", text_of("docs/status.md"), re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def forward_of(operator: str) -> str:
    """A backward operator is tested and timed under the name of its forward."""
    return operator.partition("_backward")[0]


def measured_as(operator: str) -> str:
    forward = forward_of(operator)
    return MEASURED_WITHIN.get(forward, forward)


def test_there_are_operators() -> None:
    assert "aggregate" in KERNELS


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_has_a_test(operator: str) -> None:
    assert forward_of(operator) in names("tests/*.py")


@pytest.mark.parametrize("operator", KERNELS)
def test_operator_has_a_fake_kernel(operator: str) -> None:
    """Without one it could not be traced by torch.compile and torch.export."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"gossamer::{operator}", "Meta")


@pytest.mark.parametrize("operator", KERNELS)
def test_status_tells_the_truth(operator: str) -> None:
    """The table says whether there is a CUDA kernel."""
    cells = status().get(operator)
    assert cells, "no row in docs/status.md"
    compiled = f'm.impl("{operator}"' in text_of("csrc/*/*_cuda.cu")
    assert cells[1] == "yes" if compiled else cells[1].startswith("no")


def test_status_lists_no_operator_that_is_gone() -> None:
    assert set(status()) <= set(KERNELS)


@pytest.mark.parametrize("operator", [name for name in KERNELS if measured_as(name) not in TO_MEASURE])
def test_operator_has_a_benchmark(operator: str) -> None:
    assert measured_as(operator) in names("benchmarks/bench_*.py")


@pytest.mark.parametrize("operator", KERNELS)
def test_operator_has_a_cost_model(operator: str) -> None:
    forward = forward_of(operator)
    assert COSTED_WITHIN.get(forward, forward) in COSTS


def test_sweeps_measure_every_cost_model() -> None:
    """``make bench`` leaves none out."""
    swept = set(re.findall(r'^@sweep\("(\w+)"', text_of("benchmarks/sweep_*.py"), re.MULTILINE))
    assert swept == set(COSTS)


@pytest.mark.parametrize("operator", KERNELS)
def test_operator_passes_opcheck_somewhere(operator: str) -> None:
    """Its name stands in a test file that calls opcheck."""
    files = [path.read_text() for path in (ROOT / "tests").glob("test_*.py") if path.name != Path(__file__).name]
    assert any(operator in set(re.findall(r"\w+", text)) for text in files if "opcheck(" in text)


class Recorder(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func.name().partition("::")
        if namespace == "gossamer":
            self.seen.add(name.partition(".")[0])
        return func(*args, **(kwargs or {}))


def test_samples_call_every_operator() -> None:
    """So fuzzing reaches all of them, but for those with a reason."""
    with Recorder() as recorder:
        for make, call in SAMPLES.values():
            for seed in range(8):
                call(**make(torch.Generator().manual_seed(seed)))
    assert {forward_of(name) for name in KERNELS} - recorder.seen == set(NOT_FUZZED)


def methods_of(cls: type) -> Iterator[str]:
    """Public methods and properties that the class itself defines."""
    for name, value in vars(cls).items():
        kinds = (property, classmethod, staticmethod)
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds)):
            yield name


@pytest.mark.parametrize(
    ("part", "name"), [(part, name) for part in PARTS for name in part.__all__], ids=lambda x: getattr(x, "__name__", x)
)
def test_public_name_has_a_docstring(part: ModuleType, name: str) -> None:
    thing = getattr(part, name)
    if not (inspect.isclass(thing) or callable(thing)):
        return
    own = thing.__dict__.get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert own, f"{part.__name__}.{name} has no docstring"
    assert not own.startswith(f"{name}("), f"{part.__name__}.{name} has only the docstring that dataclass made"
    if inspect.isclass(thing):
        silent = [method for method in methods_of(thing) if not inspect.getdoc(getattr(thing, method))]
        assert not silent, f"{part.__name__}.{name}: no docstring of {', '.join(silent)}"


@pytest.mark.parametrize("part", [gossamer, *PARTS], ids=lambda part: part.__name__)
def test_all_names_exist_once(part: ModuleType) -> None:
    assert len(set(part.__all__)) == len(part.__all__)
    assert not [name for name in part.__all__ if not hasattr(part, name)]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_part_is_documented(part: ModuleType) -> None:
    assert part.__doc__ or not part.__all__
    assert f"::: {part.__name__}" in text_of("docs/api/*.md")


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_functions_named_like_their_file_are_documented(part: ModuleType) -> None:
    """``::: gossamer.graph`` shows all public names but these, which the module of the same name hides from it."""
    hidden = [
        name for name in part.__all__ if getattr(getattr(part, name), "__module__", "") == f"{part.__name__}.{name}"
    ]
    pages = text_of("docs/api/*.md")
    assert not [name for name in hidden if f"::: {part.__name__}.{name}.{name}\n" not in pages]
