"""Importing large libraries in less CPU time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


@contextmanager
def without_collector() -> Generator[None]:
    """Import large libraries in this block: they make half a million objects and no garbage.

    Searching those for garbage, as Python does every few hundred, takes a quarter of the time of importing torch and
    diffusers. Whatever is there after an import is never looked at again.
    """
    was_on, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
        if was_on:
            gc.enable()


@contextmanager
def without(*names: str) -> Generator[None]:
    """Import libraries in this block as if these optional packages were not installed, unless they are loaded already."""
    with _in_place(dict.fromkeys(names)):
        yield


@contextmanager
def postponed(name: str, **stand_ins: Any) -> Generator[None]:
    """Import libraries in this block that import a module which they do not use, unless it is loaded already.

    The module itself is not run. Its submodules can be imported, and whatever else is asked of it, then or later, loads it.

    Args:
        name: Of the module.
        stand_ins: What it answers without being loaded, within this block: decorators that do nothing, for one.
    """
    with _in_place({name: _Postponed(name, stand_ins)}):
        yield


class _Postponed(ModuleType):
    """In the place of a module until something is asked of it."""

    def __init__(self, name: str, stand_ins: dict[str, Any]) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # for who asks whether it is there
        self.__dict__.update(stand_ins)

    def __getattr__(self, attribute: str) -> Any:
        if attribute == "__path__":
            return self._folders()
        if attribute.startswith("__"):
            raise AttributeError(attribute)  # the import system asks what kind of module it is
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), attribute)

    def _folders(self) -> Sequence[str] | None:
        """Where its submodules are."""
        parent = self.__name__.rpartition(".")[0]
        spec = PathFinder.find_spec(self.__name__, sys.modules[parent].__path__ if parent else None)
        return spec and spec.submodule_search_locations


@contextmanager
def _in_place(modules: dict[str, Any]) -> Generator[None]:
    """Have these in the place of modules that are not loaded yet."""
    placed = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(placed)
    try:
        yield
    finally:
        for name, module in placed.items():
            if name in sys.modules and sys.modules[name] is module:
                del sys.modules[name]
