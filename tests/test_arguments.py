"""Types of arguments: every public function refuses what its annotations do not allow, and says so by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import gossamer.distributed
import gossamer.graph
import gossamer.sparse_nn
from gossamer._arguments import typed

PARTS = [gossamer.graph, gossamer.sparse_nn, gossamer.distributed]


@typed
def example(
    x: Tensor,
    count: int = 1,
    *,
    rate: float = 0.5,
    flag: bool = False,
    mode: Literal["a", "b"] = "a",
    sizes: Sequence[int] = (),
    mask: Tensor | None = None,
    anything: Any = None,
    call: Callable[[], None] | None = None,
) -> int:
    return count


class Example:
    @typed
    def __init__(self, count: int) -> None:
        self.count = count


X = torch.zeros(2)
WRONG = [
    pytest.param(lambda: example(None), "example: x must be a tensor, got NoneType", id="None"),
    pytest.param(lambda: example([1.0]), "example: x must be a tensor, got list", id="list"),
    pytest.param(lambda: example(X, 1.5), "example: count must be an int, got float", id="real"),
    pytest.param(lambda: example(X, 1 << 64), "count must be an int, got 1844", id="too large"),
    pytest.param(lambda: example(X, count="3"), "count must be an int, got '3'", id="string"),
    pytest.param(lambda: example(X, rate="3"), "rate must be a number, got '3'", id="number"),
    pytest.param(lambda: example(X, flag=1), "flag must be True or False, got int", id="flag"),
    pytest.param(lambda: example(X, mode=2), "mode must be a string, got int", id="literal"),
    pytest.param(lambda: example(X, sizes=[1, "2"]), "sizes must be a sequence, each element an int", id="element"),
    pytest.param(lambda: example(X, sizes="12"), "sizes must be a sequence", id="string for a sequence"),
    pytest.param(lambda: example(X, mask=3), "mask must be a tensor or None, got int", id="option"),
    pytest.param(lambda: Example(count=None), "Example: count must be an int", id="class"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_the_message_names_function_argument_and_requirement(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^(?:example: )?{message}" if ": " not in message else f"^{message}"):
        call()


def test_what_the_annotations_allow_passes() -> None:
    assert example(X, np.int64(3), rate=2, sizes=(1, 2), mask=X, anything=object(), call=None) == 3
    assert example(torch.nn.Parameter(X), rate=np.float32(0.5), mode="b", sizes=np.arange(3), flag=True) == 1


def test_python_s_own_errors_stay() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        example()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
        example(X, wrong=1)  # type: ignore[call-arg]


def test_traced_code_is_not_checked() -> None:
    compiled = torch.compile(lambda x: x * example(x, 3, mask=x), backend="eager", fullgraph=True)
    assert compiled(torch.ones(2)).tolist() == [3.0, 3.0]


def public_callables() -> Iterator[Any]:
    """Every public function, and the constructor of every public class that wrote one (a dataclass did not)."""
    for part in PARTS:
        for name in part.__all__:
            value = getattr(part, name)
            if inspect.isclass(value) and not is_dataclass(value):
                value = vars(value).get("__init__")
            if inspect.isfunction(value):
                yield pytest.param(value, id=f"{part.__name__}.{name}")


@pytest.mark.parametrize("function", public_callables())
def test_public_functions_check_the_types_of_their_arguments(function: Any) -> None:
    if [name for name in inspect.signature(function).parameters if name != "self"]:
        assert getattr(function, "__gossamer_typed__", False), "decorate it with gossamer._arguments.typed"
