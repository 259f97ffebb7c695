"""`sdbatch models [GROUP...]`: every weight file that is an option, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdbatch.errors import ConfigError, did_you_mean
from sdbatch.verbs.records import FORMS, write_records
from sdbatch.verbs.words import MODELS, model_folders, read_names
from sdbatch.weights.header import shown

OPTIONS = {**FORMS, **MODELS}


def main(arguments: Sequence[str]) -> int:
    """List. Returns the exit code."""
    groups, words = read_names("models", arguments, ("[GROUP...]",), OPTIONS)
    from sdbatch.weights.catalog import Catalog
    from sdbatch.weights.index import Index
    from sdbatch.weights.inspection import summarize
    from sdbatch.weights.kinds import GROUPS

    for group in groups:
        if group not in GROUPS:
            raise ConfigError(f"{group}: no group of weight files. {did_you_mean(group, GROUPS)}")
    catalog = Catalog(model_folders(words))
    records: list[dict[str, Any]] = []
    for item in Index().list_catalog(catalog, groups or None):
        known = summarize(item.identity) if item.identity else {"path": str(item.path), "group": item.group}
        records.append({"option": f"{item.group}={item.name}", "fault": item.fault, **known})
    write_records(records, words, lambda found: to_text(found) or f"No weight files in {words['paths.models']}. {PUT_THEM}\n")
    return 0


PUT_THEM = "Put them into models/checkpoints, models/loras, ..., or run `sdbatch pull`."


def to_text(records: Sequence[dict[str, Any]]) -> str:
    """Option, what it is, and where, in aligned columns."""
    return to_columns([(record["option"], record["fault"] or describe_record(record), shown(record["path"])) for record in records])


def describe_record(record: dict[str, Any]) -> str:
    """What a file is, in a few words with its size in numbers."""
    count = record["parameters"]
    numbers = f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count / 1e3:.1f} k" if count else ""
    told = ("base", "vae", "lora")
    kinds = [word for word in (record["variant"], record["algorithm"]) if word and word not in told and word not in record["summary"]]
    return ", ".join(word for word in (record["summary"], *kinds, numbers, record["dtype"]) if word)


def to_columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Text in aligned columns."""
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    return "\n".join(lines) + "\n"
