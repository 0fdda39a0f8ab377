"""Every public name says what it is: modules list their names, and classes, functions, methods have docstrings."""

import importlib
import inspect

import pytest

MODULES = ("gossamer", "gossamer.graph", "gossamer.sparse_nn", "gossamer.distributed", "gossamer.distributed.schedule")
NAMES = [(module, name) for module in MODULES for name in importlib.import_module(module).__all__]


def methods_of(cls):
    """Public methods and properties that the class itself defines, and the name that each is looked up by."""
    for name, value in vars(cls).items():
        kinds = (property, classmethod, staticmethod)
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds)):
            yield name


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_has_a_docstring(module, name):
    thing = getattr(importlib.import_module(module), name)
    if inspect.ismodule(thing) or not (inspect.isclass(thing) or callable(thing)):
        return
    assert thing.__doc__, f"{module}.{name}"
    if inspect.isclass(thing):
        silent = [method for method in methods_of(thing) if not inspect.getdoc(getattr(thing, method))]
        assert not silent, f"{module}.{name}: no docstring of {', '.join(silent)}"


@pytest.mark.parametrize("module", MODULES)
def test_names_are_listed_once(module):
    names = importlib.import_module(module).__all__
    assert sorted(set(names)) == sorted(names)
