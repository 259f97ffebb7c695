"""What is sent of a tally: names within MLflow's alphabet and values within its limits, nothing cut in silence."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sdbatch.tracking.tally import OF_THE_MACHINE, SERIES, WITHIN_GROUP, Group, Tally, plain
from sdbatch.tracking.target import redact

MOST_KEY = 250
MOST_PARAM = 6000
"""MLflow cuts longer parameters without a word."""
MOST_TAG = 5000
"""Some stores take 8000, older ones 5000."""
MOST_METRICS = 1000
MOST_PARAMS = 50
"""Both per request. MLflow takes 100 parameters and 100 tags, but at their longest not within its 1 MB."""

_FOREIGN = re.compile(r"[^\w\-. :/]")
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of a metric."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass(slots=True)
class Payload:
    """Everything for one run, in plain types."""

    name: str
    params: dict[str, str] = field(default_factory=dict[str, str])
    tags: dict[str, str] = field(default_factory=dict[str, str])
    metrics: list[Reading] = field(default_factory=list[Reading])
    notices: list[str] = field(default_factory=list[str])
    """What had to be changed to fit."""

    def add_params(self, values: Mapping[str, Any]) -> None:
        """Parameters with their names and values made to fit."""
        for key, value in values.items():
            text, name = redact(plain(value)), clean_key(key)
            while name in self.params:
                name += "_"
            if name != key:
                self.notices.append(f"parameter {key!r} is called {name!r} in MLflow, whose names have no other signs")
            if len(text) > MOST_PARAM:
                self.notices.append(f"parameter {key!r} was cut from {len(text)} to {MOST_PARAM} characters; the table has it whole")
                text = text[: MOST_PARAM - 1] + "…"
            self.params[name] = text

    def add_tags(self, values: Mapping[str, Any]) -> None:
        """Tags, cut where they are too long: they are for finding runs, not for keeping data."""
        for key, value in values.items():
            text = redact(plain(value))
            self.tags[clean_key(key)] = text if len(text) <= MOST_TAG else text[: MOST_TAG - 1] + "…"

    def add_counts(self, group: Group, planned: int | None = None) -> None:
        """How many images are there, and what one takes."""
        step = group.done + group.failed
        facts: dict[str, float] = {"images_done": group.done, "images_failed": group.failed}
        if planned:
            facts["images_planned"] = planned
        if group.done and group.seconds:
            facts["seconds_per_image"] = group.seconds / group.done
        self.metrics += [Reading(key, float(value), group.last_ms, step) for key, value in facts.items()]

    def add_series(self, group: Group) -> None:
        """One step per image. Equal rows give equal readings, which MLflow keeps once."""
        for step, point in enumerate(group.points):
            for key, value in zip(SERIES, point.values, strict=True):
                if value is not None and math.isfinite(value):
                    self.metrics.append(Reading(key, value, point.time_ms, step))


def sweep_payload(tally: Tally, about: Mapping[str, Any], out: str) -> Payload:
    """What is said of the whole sweep."""
    payload = Payload(name=str(about.get("name") or "sweep"))
    payload.add_params(tally.constants)
    payload.add_tags(
        {
            "sdbatch.role": "sweep",
            "sdbatch.sweep": payload.name,
            "sdbatch.plan_id": str(about.get("plan_id") or ""),
            "sdbatch.out": out,
            "sdbatch.host": socket.gethostname(),
            "sdbatch.axes": ", ".join(tally.axes),
            "mlflow.source.name": "sdbatch",
            "mlflow.note.content": _describe(tally),
        }
        | {f"sdbatch.version.{name}": version for name, version in tally.versions.items()}
    )
    payload.add_counts(tally.total, planned_images(about))
    if tally.images_per_s:
        payload.metrics.append(Reading("images_per_s", tally.images_per_s, tally.total.last_ms, tally.images))
    if not tally.groups:
        payload.add_series(tally.total)
    return payload


def group_payload(group: Group, about: Mapping[str, Any], out: str, parent: str) -> Payload:
    """What is said of one group."""
    payload = Payload(name=group.title[:MOST_KEY])
    # With what it shares with the other groups: its row in a table of runs, and of several sweeps, is whole by itself.
    shared = {key: value for key, value in group.constants.items() if key not in WITHIN_GROUP | OF_THE_MACHINE}
    payload.add_params(shared | dict(group.values))
    payload.add_tags(
        {
            "mlflow.parentRunId": parent,
            "sdbatch.role": "group",
            "sdbatch.group": group.group_id,
            "sdbatch.sweep": str(about.get("name") or "sweep"),
            "sdbatch.plan_id": str(about.get("plan_id") or ""),
            "sdbatch.out": out,
            "mlflow.source.name": "sdbatch",
        }
    )
    payload.add_counts(group)
    payload.add_series(group)
    return payload


def planned_images(about: Mapping[str, Any]) -> int | None:
    """The images of the plan, as `sweep.json` counts them; None when it does not say."""
    planned = about.get("cells")
    return planned if isinstance(planned, int) and planned > 0 else None


def clean_key(key: str) -> str:
    """A name in the signs that MLflow allows."""
    return _FOREIGN.sub("_", key)[:MOST_KEY].strip("/. ") or "_"


def chunks(items: Sequence[_Item], most: int) -> Iterator[Sequence[_Item]]:
    """The items in parts of at most `most`."""
    for start in range(0, len(items), most):
        yield items[start : start + most]


def _describe(tally: Tally) -> str:
    """The description shown on the run's page, in Markdown."""
    lines = [f"{tally.total.done} images" + (f", {tally.total.failed} failed" if tally.total.failed else "") + "."]
    for key, values in tally.axes.items():
        shown = ", ".join(f"`{_code(value)}`" for value in list(values)[:8])
        lines.append(f"* `{_code(key)}`: {shown}" + (f", ... {len(values)} values" if len(values) > 8 else ""))
    lines.append(
        "\nArtifacts: `rows.parquet` (one row per image), `plan.parquet` (not of large sweeps), `config.yaml`, `grid.png`, `samples/`."
    )
    return "\n".join(lines)


def _code(text: str) -> str:
    """Text inside a Markdown code span, on one line."""
    return " ".join(text.replace("`", "'").split())[:80]
