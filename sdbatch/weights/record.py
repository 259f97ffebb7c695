"""An identity as plain data: the stable form that scripts, tables, JSON and Parquet get, and that the index keeps."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from sdbatch.weights.identity import Identity
from sdbatch.weights.lora_facts import BlockFacts, LoraFacts

RECORD_VERSION = 8
"""Changes when the meaning of a field does, or a file is called something else: then nothing that an index kept before is used."""

_FIELDS = tuple(field.name for field in fields(Identity) if field.name not in {"path", "lora"})


def to_record(identity: Identity) -> dict[str, Any]:
    """The identity as plain values: text, numbers, lists and dictionaries, always with the same keys."""
    record: dict[str, Any] = {"path": str(identity.path), "name": identity.path.name, "group": identity.group}
    for name in _FIELDS:
        value = getattr(identity, name)
        record[name] = list(value) if isinstance(value, tuple) else dict(value) if name == "metadata" else value
    lora = identity.lora
    ranks = [block.rank_max for block in lora.blocks if block.rank_max is not None] if lora else []
    alphas = [block.alpha_max for block in lora.blocks if block.alpha_max is not None] if lora else []
    record["algorithm"] = lora.algorithm if lora else None
    record["modules"] = lora.modules if lora else None
    record["transformer_width"] = lora.transformer_width if lora else None
    record["rank"] = max(ranks, default=None)
    record["alpha"] = max(alphas, default=None)
    record["blocks"] = [asdict(block) for block in lora.blocks] if lora else []
    return record


def from_record(record: dict[str, Any]) -> Identity:
    """The identity that `to_record` wrote.

    Raises: KeyError or TypeError when it was written by something else.
    """
    values: dict[str, Any] = {name: tuple(record[name]) if isinstance(record[name], list) else record[name] for name in _FIELDS}
    lora = None
    if record["algorithm"] is not None:
        lora = LoraFacts(
            algorithm=record["algorithm"],
            modules=record["modules"],
            blocks=tuple(BlockFacts(**block) for block in record["blocks"]),
            # An adapter's widths are the file's own: they are kept once.
            cross_attention_width=record["cross_attention_width"],
            embedding_widths=tuple(record["embedding_widths"]),
            transformer_width=record["transformer_width"],
        )
    return Identity(path=Path(record["path"]), lora=lora, **values)
