"""What a check says: how bad it is, what was found, what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Level(StrEnum):
    """How bad it is."""

    ok = "ok"
    warning = "warning"
    """Works, with a risk or at a cost that is told."""
    fault = "fault"
    """A run will fail, lose work, or load what it should not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a check found."""

    check: str
    """Its name, such as `folder.rename`."""
    level: Level
    found: str
    todo: str = ""
    """What to do; empty when nothing is to be done."""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Level.ok, found)


def warning(check: str, found: str, todo: str) -> Finding:
    """It works, but."""
    return Finding(check, Level.warning, found, todo)


def fault(check: str, found: str, todo: str) -> Finding:
    """It will not work."""
    return Finding(check, Level.fault, found, todo)


@dataclass(frozen=True, slots=True)
class Site:
    """What is examined."""

    folder: Path
    """Where sweeps are written."""
    config: dict[str, Any] | None = None
    """The composed configuration; None when it cannot be composed, which is a finding of its own."""
    launcher: str = "local"
    """Name of the launcher that the configuration chooses."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Of that launcher, such as `partition`."""

    def get(self, group: str, key: str) -> Any:
        """A value of the configuration; None when there is none."""
        return ((self.config or {}).get(group) or {}).get(key)


def as_text(site: Site, findings: Sequence[Finding]) -> str:
    """Findings as a table; what to do stands below what was found."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.level:<7}  {finding.check:<{width}}  {finding.found}")
        if finding.todo:
            lines.append(f"{'':7}  {'':{width}}  -> {finding.todo}")
    faults, warnings = count(findings, Level.fault), count(findings, Level.warning)
    lines.append(f"{site.folder}: {_number(faults, 'fault')}, {_number(warnings, 'warning')}")
    return "\n".join(lines) + "\n"


def as_json(site: Site, findings: Sequence[Finding]) -> str:
    """Findings as one JSON object."""
    facts = {
        "folder": str(site.folder),
        "faults": count(findings, Level.fault),
        "warnings": count(findings, Level.warning),
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def count(findings: Sequence[Finding], level: Level) -> int:
    """How many findings are of a level."""
    return sum(finding.level is level for finding in findings)


def _number(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
