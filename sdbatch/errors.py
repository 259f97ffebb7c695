"""Every error a user can cause. A message says what was asked, what was found and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class SdbatchError(Exception):
    """Base of all errors that are shown as one clear message, without a traceback."""


class ConfigError(SdbatchError):
    """A key, option or value that cannot be used."""


class WeightFileError(SdbatchError):
    """A weight file that is missing, damaged, not what it claims to be, or does not fit the model."""


class FolderError(SdbatchError):
    """A sweep folder that cannot be read, written or shared."""


class DeviceError(SdbatchError):
    """A device that this process cannot use; another machine might make the cells."""


class CellError(SdbatchError):
    """One cell could not be made; the others go on."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a plan."""

    key: str
    """The key path a user can type, such as `lora.style_a.weight`."""
    message: str
    """What was found and what to do."""

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


def to_fault(text: str) -> Fault:
    """The fault that an error of the form `key: message` tells of."""
    key, _, message = text.partition(": ")
    return Fault(key, message)


class PlanError(SdbatchError):
    """All faults of a plan, found before any weight is loaded."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        count = len(self.faults)
        head = "1 fault" if count == 1 else f"{count} faults"
        super().__init__(f"{head} in the plan, nothing was started:\n" + "\n".join(f"  {fault}" for fault in self.faults))


def harmless(text: str) -> str:
    """A text for the terminal: control characters, by which a prompt or file name could steer it, become `?`."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def nearest(asked: str, options: Iterable[str], limit: int = 3) -> list[str]:
    """The options that look most like what was asked, best first."""
    return difflib.get_close_matches(asked, list(options), n=limit, cutoff=0.5)


def did_you_mean(asked: str, options: Iterable[str], shown: int = 12) -> str:
    """The tail of an error message: the nearest options, or all of them when none is near."""
    names = sorted(set(options))
    if near := nearest(asked, names):
        return f"Did you mean {', '.join(near)}?"
    if not names:
        return "There are none."
    more = f", ... ({len(names) - shown} more)" if len(names) > shown else ""
    return f"Choose one of: {', '.join(names[:shown])}{more}."
