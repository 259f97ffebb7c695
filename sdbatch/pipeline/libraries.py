"""Imports transformers and diffusers without what they bring along and nothing here calls: half of their CPU time."""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from sdbatch.importing import postponed, without


@contextmanager
def importing_lean() -> Generator[None]:
    """Import what builds on transformers and diffusers in this block. Without effect where they are imported already."""
    with without("peft", "accelerate"), postponed("torch._dynamo", **dict.fromkeys(_COMPILER_MARKS, _as_it_is)):
        with without("scipy"):
            import_module("transformers")  # it asks now, once, whether there is scipy: its losses for detectors would import it
        # The list of its models is made by reading more than a thousand files.
        with postponed("transformers.models"), importing_samplers():
            yield


@contextmanager
def importing_samplers() -> Generator[None]:
    """Import samplers of diffusers in this block. Those with beta sigmas and LMS load what they need of scipy when they run."""
    with postponed("scipy.stats"), postponed("scipy.integrate"):
        yield


def remember_signature(function: Any) -> None:
    """Keep a function's parameters with it, where Python looks for them first.

    Attention layers ask for those of their processor at every call, which takes 13 us in place of 50 then.
    """
    function.__signature__ = inspect.signature(function)


_COMPILER_MARKS = ("allow_in_graph", "assume_constant_result", "disable")
"""Decorators that tell a compiler what to leave alone. Nothing is compiled here."""


def _as_it_is(marked: Any = None, *_args: Any, **_options: Any) -> Any:
    """A decorator that does nothing, with or without options."""
    return _as_it_is if marked is None else marked
