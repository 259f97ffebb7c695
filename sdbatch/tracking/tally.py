"""Rows counted by the groups worth comparing: cells that differ only by seed or prompt share one."""

from __future__ import annotations

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from sdbatch.results.row import axes_of, canonical_json, versions_of
from sdbatch.results.schema import OK

WITHIN_GROUP = frozenset({"seed", "prompt", "negative_prompt"})
"""Axes that make samples of one group, not groups."""

SERIES = ("encode_s", "denoise_s", "decode_s", "image_mean", "image_std")
"""Columns that become metrics with one step per image."""

MOST_POINTS = 1000
"""Images of a group that get a step of their own; more make no better chart, and the table has them all."""

PARAMETERS = (
    "family",
    "checkpoint",
    "merge",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "prompt",
    "negative_prompt",
    "seed",
    "sampler",
    "scheduler",
    "steps",
    "guidance_scale",
    "guidance_rescale",
    "clip_skip",
    "width",
    "height",
    "device",
    "dtype",
    "batch_size",
)
"""Columns that become parameters of a run where all its rows agree."""

OF_THE_MACHINE = frozenset({"device", "dtype", "batch_size"})
"""Those that are not asked for: the rows of a group may come to differ in them."""

SAMPLE = ("image", "image_bytes", "image_offset", "image_sha256")
"""Columns that say where an image is."""

COLUMNS = ("image_id", "axes", "status", "loras", *SAMPLE, "versions", "worker", "made_at", *SERIES, *PARAMETERS)
"""What a projection reads of the rows."""

VARIES = object()


@dataclass(frozen=True, slots=True)
class Point:
    """One image as a step of its group's metrics."""

    time_ms: int
    values: tuple[float | None, ...]
    """In the order of `SERIES`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An image that is sent, as its row speaks of it."""

    image: str
    """Its path in the sweep folder; inside a block where images are packed."""
    image_bytes: int
    image_offset: int | None
    image_sha256: str

    @property
    def name(self) -> str:
        """Its own, wherever it is."""
        return PurePosixPath(self.image).name

    @staticmethod
    def of(row: Mapping[str, Any]) -> Sample:
        """The image of a row."""
        return Sample(*(row[name] for name in SAMPLE))


@dataclass(slots=True)
class Group:
    """Cells that differ only by seed or prompt."""

    values: Mapping[str, Any]
    """The axes that set this group apart from the others."""
    done: int = 0
    failed: int = 0
    points: list[Point] = field(default_factory=list[Point])
    samples: list[Sample] = field(default_factory=list[Sample])
    """The first images, in the order in which they were made."""
    constants: dict[str, Any] = field(default_factory=dict[str, Any])
    """Parameters on which its rows agree."""
    lora_rows: dict[str, int] = field(default_factory=dict[str, int])
    """In how many rows a parameter of a LoRA occurs: one that some images lack is not shared."""
    seconds: float = 0.0
    """Spent on making its images."""
    first_ms: int = 0
    last_ms: int = 0

    @property
    def group_id(self) -> str:
        """16 hex digits that name the group in every projection of the same sweep."""
        return group_id(self.values)

    @property
    def title(self) -> str:
        """What a list of runs shows: `lora.style_a.weight=0.5, sampler=ddim`."""
        return ", ".join(f"{key}={plain(value)}" for key, value in self.values.items()) or "all images"


@dataclass(slots=True)
class Tally:
    """A sweep's rows, counted."""

    total: Group = field(default_factory=lambda: Group({}))
    groups: dict[str, Group] = field(default_factory=dict[str, Group])
    """By group id, in the order of their first image; only the whole sweep when there are too many."""
    constants: dict[str, Any] = field(default_factory=dict[str, Any])
    """Parameters on which all rows agree, and that are no axes."""
    axes: dict[str, dict[str, None]] = field(default_factory=dict[str, dict[str, None]])
    """The values of each axis, as JSON, in the order of their first image."""
    versions: dict[str, str] = field(default_factory=dict[str, str])
    worker_s: dict[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])
    """Images and seconds by worker."""

    @property
    def images(self) -> int:
        """All rows, failed ones included."""
        return self.total.done + self.total.failed

    @property
    def images_per_s(self) -> float:
        """All workers together, while they make images: pauses between two runs of a sweep do not count."""
        return sum(count / seconds for count, seconds in self.worker_s.values() if seconds > 0)


def count_rows(table: pa.Table, most_groups: int, samples: int) -> Tally:
    """Count in the order in which the images were made, so that a later count only appends."""
    tally = Tally()
    grouped = True
    for batch in table.sort_by([("made_at", "ascending"), ("image_id", "ascending")]).to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            _add(tally.total, row, samples)
            _note(tally, row)
            if grouped:
                values = {key: value for key, value in axes_of(row).items() if key not in WITHIN_GROUP}
                _add(tally.groups.setdefault(group_id(values), Group(values)), row, samples)
                grouped = len(tally.groups) <= most_groups
    if not grouped or len(tally.groups) == 1:
        tally.groups = {}
    for group in (tally.total, *tally.groups.values()):
        group.constants = {key: value for key, value in group.constants.items() if _is_shared(group, key, value)}
    varying = {key for key, values in tally.axes.items() if len(values) > 1}
    tally.constants = {key: value for key, value in tally.total.constants.items() if key not in varying}
    return tally


def group_id(values: Mapping[str, Any]) -> str:
    """A hash of the values that set a group apart."""
    return hashlib.sha256(canonical_json(dict(values)).encode()).hexdigest()[:16]


def plain(value: Any) -> str:
    """A value as people read it; lists of names as `a+b`."""
    match value:
        case str():
            return value
        case float():
            return f"{value:.9g}"
        case list():
            return "+".join(plain(item) for item in _items(value)) or "none"
        case _:
            return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _items(value: Iterable[Any]) -> list[Any]:
    return list(value)


def _add(group: Group, row: Mapping[str, Any], samples: int) -> None:
    made_at = row["made_at"] or datetime.fromtimestamp(0, UTC)
    time_ms = int(made_at.timestamp() * 1000)
    _learn(group, row)
    group.first_ms = group.first_ms or time_ms
    group.last_ms = time_ms
    if row["status"] != OK:
        group.failed += 1
        return
    group.done += 1
    group.seconds += sum(row[name] or 0.0 for name in ("encode_s", "denoise_s", "decode_s"))
    if len(group.points) < MOST_POINTS:
        group.points.append(Point(time_ms, tuple(row[name] for name in SERIES)))
    if row["image"] and len(group.samples) < samples:
        group.samples.append(Sample.of(row))


def _is_shared(group: Group, key: str, value: object) -> bool:
    rows = group.done + group.failed
    return value is not VARIES and value is not None and group.lora_rows.get(key, rows) == rows


def _learn(group: Group, row: Mapping[str, Any]) -> None:
    """Keep what the rows share."""
    seen = {name: row[name] for name in PARAMETERS}
    for lora in row["loras"] or ():
        for part in ("weight", "text_encoder_weight"):
            key = f"lora.{lora['name']}.{part}"
            seen[key] = lora[part]
            group.lora_rows[key] = group.lora_rows.get(key, 0) + 1
    if row["status"] != OK:
        # A cell that never reached a device has none: that is not a difference.
        seen = {key: value for key, value in seen.items() if value is not None}
    for key, value in seen.items():
        if group.constants.setdefault(key, value) != value:
            group.constants[key] = VARIES


def _note(tally: Tally, row: Mapping[str, Any]) -> None:
    """Keep the values of the axes, the versions, and what each worker took."""
    for key, value in axes_of(row).items():
        tally.axes.setdefault(key, {})[plain(value)] = None
    tally.versions.update(versions_of(row))
    if row["status"] == OK:
        count, seconds = tally.worker_s.get(row["worker"] or "", (0, 0.0))
        spent = sum(row[name] or 0.0 for name in ("encode_s", "denoise_s", "decode_s"))
        tally.worker_s[row["worker"] or ""] = (count + 1, seconds + spent)
