"""The types of arguments, checked where a public function is entered.

``@typed`` reads a function's annotations, so that what the documentation promises is what a call is held to; what no
type says (shapes, ranges, dtypes) the function checks itself.
"""

from __future__ import annotations

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, Union

import torch
from torch import Tensor

__all__ = ["typed"]

P = ParamSpec("P")
R = TypeVar("R")


class Requirement(NamedTuple):
    """What a value must be: the test, and the words for it."""

    holds: Callable[[Any], bool]
    words: str


class Parameter(NamedTuple):
    position: int
    name: str
    requirement: Requirement


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: arguments of a type other than the annotated one raise a TypeError that names function and argument.

    Checked are tensors, numbers (an int must fit 64 bits), strings, flags, classes, None where allowed, and
    the elements of sequences; other annotations are not. Traced code (torch.compile) is not checked. The annotations
    are read at the first call, when all modules are there.
    """
    parameters: list[Parameter] | None = None

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal parameters
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if parameters is None:
            parameters = _parameters(function)
        given = len(args)
        for position, name, requirement in parameters:
            if position < given:
                value = args[position]
            elif name in kwargs:
                value = kwargs[name]
            else:
                continue
            if not requirement.holds(value):
                raise TypeError(f"{_public_name(function)}: {name} must be {requirement.words}, got {_shown(value)}")
        return function(*args, **kwargs)

    checked.__gossamer_typed__ = True  # type: ignore[attr-defined]
    return checked


def _public_name(function: Callable[..., Any]) -> str:
    """As the caller wrote it: a class for its constructor."""
    return function.__qualname__.removesuffix(".__init__")


def _shown(value: Any) -> str:
    """A wrong value where it says more than its type."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, int) and not _is_int(value):
        return f"{value}, beyond 64 bits"
    name = type(value).__name__
    if isinstance(value, (list, tuple)) and value:
        return f"{name} of {', '.join(sorted({type(element).__name__ for element in value}))}"
    return name


def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    hints = typing.get_type_hints(function)
    found = []
    for position, parameter in enumerate(inspect.signature(function).parameters.values()):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.name not in hints:
            continue
        requirement = _requirement(hints[parameter.name])
        if requirement is not None:
            place = position if parameter.kind != parameter.KEYWORD_ONLY else 1 << 30
            found.append(Parameter(place, parameter.name, requirement))
    return found


def _is_int(value: Any) -> bool:
    if type(value) is int:
        return -(1 << 63) <= value < 1 << 64  # a seed may be unsigned
    return hasattr(type(value), "__index__") and not isinstance(value, Tensor)  # numpy's, for example


def _is_number(value: Any) -> bool:
    if type(value) is float:
        return True
    return hasattr(type(value), "__float__") and not isinstance(value, Tensor)


PLAIN = {
    int: Requirement(_is_int, "an int"),
    float: Requirement(_is_number, "a number"),
    bool: Requirement(lambda value: isinstance(value, bool), "True or False"),
    str: Requirement(lambda value: isinstance(value, str), "a string"),
    Tensor: Requirement(lambda value: isinstance(value, Tensor), "a tensor"),
    type(None): Requirement(lambda value: value is None, "None"),
    os.PathLike: Requirement(lambda value: isinstance(value, os.PathLike), "a path"),
}


def _requirement(hint: Any) -> Requirement | None:
    """Of a type annotation; None for one that is not checked."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return None
    if hint in PLAIN or origin in PLAIN:
        return PLAIN[hint if hint in PLAIN else origin]
    if origin in (Union, types.UnionType):
        return _any_of([_requirement(part) for part in typing.get_args(hint)])
    if origin is Literal:  # which of them is the function's to say: it is a matter of value
        return _any_of([PLAIN.get(kind) for kind in dict.fromkeys(map(type, typing.get_args(hint)))])
    parts = typing.get_args(hint)
    if origin in (list, Sequence) or (origin is tuple and parts[-1] is Ellipsis):
        return _sequence_of(_requirement(parts[0]))
    if origin in (dict, Mapping, tuple, Iterable) or isinstance(hint, type):
        kind = origin or hint
        return Requirement(lambda value: isinstance(value, kind), f"{_article(kind.__name__)} {kind.__name__}")
    return None


def _any_of(parts: Sequence[Requirement | None]) -> Requirement | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    tests = [part.holds for part in known]
    words = " or ".join(dict.fromkeys(part.words for part in known))
    return Requirement(lambda value: any(test(value) for test in tests), words)


def _sequence_of(element: Requirement | None) -> Requirement:
    """A list, a tuple or whatever else has a length and elements, as nn.ModuleList; not a tensor, nor one string for
    a sequence of them."""

    def holds(value: Any) -> bool:
        if not (hasattr(value, "__len__") and hasattr(value, "__iter__")):
            return False
        if isinstance(value, (bytes, Mapping, Tensor)) or (isinstance(value, str) and element == PLAIN[str]):
            return False
        return element is None or all(map(element.holds, value))

    return Requirement(holds, "a sequence" + (f", each element {element.words}" if element else ""))


def _article(name: str) -> str:
    return "an" if name[0] in "AEIOaeio" else "a"
