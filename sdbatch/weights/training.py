"""What trainers wrote about a file: kohya's `ss_*` and ModelSpec's `modelspec.*`. Written by strangers: bounded, never trusted."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from sdbatch.weights.families import FAMILIES
from sdbatch.weights.header import shown

MAX_ENTRIES = 200
MAX_CHARS = 500
MAX_TRIGGER_WORDS = 8
_MAX_JSON_CHARS = 4 * 2**20
_COMMON = 0.9
"""Share of a data set's captions in which a tag must stand to count as its trigger word."""


def to_summary(metadata: Mapping[str, str]) -> dict[str, str]:
    """The short entries, fit for tables: no pictures, no tag lists, no control characters."""
    short = [(shown(key, 100), shown(value, MAX_CHARS)) for key, value in metadata.items() if len(value) <= MAX_CHARS]
    return dict(sorted(short)[:MAX_ENTRIES])


def find_family(metadata: Mapping[str, str]) -> str | None:
    """The family that the metadata names."""
    architecture = metadata.get("modelspec.architecture", "").lower()
    version = metadata.get("ss_base_model_version", "").lower()
    for facts in FAMILIES:
        if architecture.startswith(facts.modelspec) or (version and version.startswith(facts.base_versions or ("\0",))):
            return facts.name
    return "sd2" if metadata.get("ss_v2", "").lower() == "true" else None


def is_for_chroma(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata names Chroma, whose layers have FLUX.1's names and sizes."""
    return any(metadata.get(key, "").lower().startswith("chroma") for key in ("modelspec.architecture", "ss_base_model_version"))


def find_prediction_type(metadata: Mapping[str, str]) -> str | None:
    """`epsilon` or `v_prediction` when the metadata says it."""
    said = metadata.get("modelspec.prediction_type", "").lower()
    if said in {"v", "v_prediction", "v-prediction", "v_pred"}:
        return "v_prediction"
    return "epsilon" if said in {"epsilon", "eps"} else None


def find_trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The words that call a trained style: what the author says, else the tags that stand in nearly every caption."""
    if said := metadata.get("modelspec.trigger_phrase", "").strip():
        return tuple(shown(word.strip(), 100) for word in said.split(",") if word.strip())[:MAX_TRIGGER_WORDS]
    found: Counter[str] = Counter()
    for folder, tags in _load_tags(metadata.get("ss_tag_frequency", "")).items():
        if not tags:
            # Without captions kohya trains on the name of the folder: `10_sks dog`.
            found[re.sub(r"^\d+_", "", folder)] += 1
            continue
        most = max(tags.values())
        found.update({tag: count for tag, count in tags.items() if count >= _COMMON * most and most > 1})
    words = [shown(tag.strip(), 100) for tag, _ in found.most_common(MAX_TRIGGER_WORDS) if tag.strip()]
    return tuple(words)


def _load_tags(text: str) -> dict[str, dict[str, int]]:
    """Data set folder -> tag -> how often."""
    if not text or len(text) > _MAX_JSON_CHARS:
        return {}
    try:
        parsed: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    found: dict[str, dict[str, int]] = {}
    for folder, tags in cast(dict[str, Any], parsed).items() if isinstance(parsed, dict) else ():
        if isinstance(tags, dict):
            counts = cast(dict[str, Any], tags)
            found[folder] = {tag: count for tag, count in counts.items() if type(count) is int}
    return found
