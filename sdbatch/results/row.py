"""The committed record of one image: functions that fill the schema from a cell, its picture and how it was made."""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

import pyarrow as pa

from sdbatch.cell import Cell, Hires, Merge, Picture, Recipe, Source, WeightFile, content_of
from sdbatch.results.arrow import table_of_records
from sdbatch.results.schema import FAILED, FLAT, NAN, OK, SCHEMA, SCHEMA_VERSION

Row = dict[str, Any]
"""One record, keyed by the names of `SCHEMA`."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who makes the rows: equal for all rows of one worker."""

    sweep: str
    """Name of the sweep."""
    worker: str = "main"
    """Name of the worker process."""
    host: str = socket.gethostname()


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A saved image as its row remembers it."""

    path: str
    """Relative to the sweep folder, with `/`."""
    size: int
    """In bytes."""
    sha256: str


def canonical_json(value: object) -> str:
    """`value` as JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def autov2(sha256: str) -> str:
    """Civitai's AutoV2, which is also A1111's model hash: the first 10 digits of the file's SHA-256."""
    return sha256[:10]


def recipe_id(recipe: Recipe) -> str:
    """12 hex digits that are equal for recipes of equal content, wherever the files lie."""
    return hashlib.sha256(canonical_json(content_of(recipe)).encode()).hexdigest()[:12]


def row_of(picture: Picture, image: ImageFile | None, origin: Origin, attempts: int = 1) -> Row:
    """The row of a picture; `image` is None when its pixels were not worth saving."""
    pixels = picture.pixels
    return _row(picture.cell, picture.facts, origin, attempts) | {
        "status": picture.fault or OK,
        "error": _FAULTS.get(picture.fault, picture.fault) if picture.fault else None,
        "image": image.path if image else None,
        "image_bytes": image.size if image else None,
        "image_sha256": image.sha256 if image else None,
        "image_width": pixels.shape[1],
        "image_height": pixels.shape[0],
        "image_mean": float(pixels.mean()) / 255,
        "image_std": float(pixels.std()) / 255,
    }


def failed_row(cell: Cell, error: str, origin: Origin, attempts: int = 1, facts: Mapping[str, Any] | None = None) -> Row:
    """The row of a cell that could not be made, with the reason a user reads."""
    return _row(cell, facts or {}, origin, attempts) | {"status": FAILED, "error": error}


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table of exactly `SCHEMA`; a missing column is null, a wrong type raises."""
    return table_of_records(rows, SCHEMA)


def axes_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The axes of a row as a plain dict, values decoded."""
    return {entry["key"]: json.loads(entry["value"]) for entry in row["axes"] or ()}


def versions_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The versions of a row as a plain dict."""
    return {entry["key"]: entry["value"] for entry in row["versions"] or ()}


_FAULTS = {
    NAN: "the decoded image was not finite, also in float32",
    FLAT: "the image is one single colour",
}


def _row(cell: Cell, facts: Mapping[str, Any], origin: Origin, attempts: int) -> Row:
    """Everything that does not depend on pixels."""
    return (
        dict.fromkeys(SCHEMA.names) | _identity(cell, origin) | _settings(cell) | _weights(cell, facts) | _making(facts, origin, attempts)
    )


def _identity(cell: Cell, origin: Origin) -> Row:
    return {
        "image_id": cell.image_id,
        "sweep": origin.sweep,
        "recipe_id": recipe_id(cell.recipe),
        "axes": [{"key": key, "value": canonical_json(value)} for key, value in cell.axes],
        "config": cell.config,
        "schema_version": SCHEMA_VERSION,
    }


def _settings(cell: Cell) -> Row:
    return {
        "prompt": cell.prompt,
        "negative_prompt": cell.negative_prompt,
        "seed": cell.seed,
        "sampler": cell.sampler.name,
        "sampler_label": cell.sampler.label,
        "sampler_schedule": cell.sampler.schedule,
        "scheduler": cell.sampler.scheduler,
        "scheduler_options": canonical_json(dict(cell.sampler.options)),
        "steps": cell.steps,
        "guidance_scale": cell.guidance_scale,
        "guidance_rescale": cell.guidance_rescale,
        "clip_skip": cell.clip_skip,
        "width": cell.width,
        "height": cell.height,
        "task": cell.task,
        **(_source(cell.source) if cell.source else {}),
        **(_hires(cell.hires) if cell.hires else {}),
    }


def _source(source: Source) -> Row:
    mask = source.mask
    given: Row = {
        "task_image": PurePath(source.image).name,  # never a path of the user's home
        "task_image_sha256": source.image_sha256,
        "task_strength": source.strength,
        "task_resize": source.resize,
    }
    if mask is None:
        return given
    return given | {
        "task_mask": PurePath(mask.image).name,
        "task_mask_sha256": mask.image_sha256,
        "task_mask_blur": mask.blur_px,
        "task_fill": mask.fill,
        "task_paste": mask.paste,
    }


def _hires(hires: Hires) -> Row:
    return {
        "task_strength": hires.strength,
        "task_steps": hires.steps,
        "task_width": hires.width,
        "task_height": hires.height,
        "task_upscaler": hires.enlarger.name,
    }


def _weights(cell: Cell, facts: Mapping[str, Any]) -> Row:
    recipe = cell.recipe
    return {
        "family": recipe.family,
        "engine": recipe.engine,
        "prediction_type": recipe.prediction_type,
        "checkpoint": recipe.checkpoint.name,
        "checkpoint_sha256": recipe.checkpoint.sha256,
        "merge": _merge(recipe.merge) if recipe.merge else None,
        "vae": recipe.vae.name if recipe.vae else None,
        "vae_sha256": recipe.vae.sha256 if recipe.vae else None,
        "text_encoder": recipe.text_encoder.name if recipe.text_encoder else None,
        "text_encoder_sha256": recipe.text_encoder.sha256 if recipe.text_encoder else None,
        "text_encoder_2": recipe.text_encoder_2.name if recipe.text_encoder_2 else None,
        "text_encoder_2_sha256": recipe.text_encoder_2.sha256 if recipe.text_encoder_2 else None,
        "upscaler": recipe.upscaler.name if recipe.upscaler else None,
        "upscaler_sha256": recipe.upscaler.sha256 if recipe.upscaler else None,
        "upscale": cell.upscale,
        "task_upscaler_sha256": recipe.hires_upscaler.sha256 if recipe.hires_upscaler else None,
        "loras": _loras(cell, facts),
        "embeddings": _files(recipe.embeddings),
        "hypernetworks": _hypernetworks(cell),
        "controlnets": _controlnets(cell),
        "ip_adapters": _ip_adapters(cell),
        "image_encoders": _files(recipe.image_encoders),
    }


def _merge(merge: Merge) -> str:
    return canonical_json({"method": merge.method, "ratio": merge.ratio, **content_of(merge)})


def _loras(cell: Cell, facts: Mapping[str, Any]) -> list[Row]:
    counts = facts.get("applied_keys", {})
    short = facts.get("autov3", {})
    loras: list[Row] = []
    for part, strength in zip(cell.recipe.loras, cell.strengths, strict=True):
        applied, total = counts.get(part.name, (None, None))
        loras.append(
            {
                "name": part.name,
                "sha256": part.sha256,
                "autov3": short.get(part.name),
                "weight": strength.model,
                "text_encoder_weight": strength.text_encoder,
                "blocks": strength.blocks or None,
                "applied_keys": applied,
                "total_keys": total,
            }
        )
    return loras


def _hypernetworks(cell: Cell) -> list[Row]:
    parts = zip(cell.recipe.hypernetworks, cell.hypernetwork_weights, strict=True)
    return [{"name": part.name, "sha256": part.sha256, "weight": weight} for part, weight in parts]


def _controlnets(cell: Cell) -> list[Row]:
    return [
        {
            "name": part.name,
            "sha256": part.sha256,
            "image": PurePath(control.image).name,  # never a path of the user's home
            "image_sha256": control.image_sha256,
            "preprocessor": control.preprocessor,
            "weight": control.weight,
            "start": control.start,
            "end": control.end,
        }
        for part, control in zip(cell.recipe.controlnets, cell.controls, strict=True)
    ]


def _ip_adapters(cell: Cell) -> list[Row]:
    return [
        {
            "name": part.name,
            "sha256": part.sha256,
            "image": PurePath(shown.image).name,
            "image_sha256": shown.image_sha256,
            "weight": shown.weight,
            "start": shown.start,
            "end": shown.end,
        }
        for part, shown in zip(cell.recipe.ip_adapters, cell.image_prompts, strict=True)
    ]


def _files(parts: Sequence[WeightFile]) -> list[Row]:
    return [{"name": part.name, "sha256": part.sha256} for part in parts]


def _making(facts: Mapping[str, Any], origin: Origin, attempts: int) -> Row:
    plain = ("batch_size", "batch_slot", "device", "dtype", "threads", "encode_s", "denoise_s", "decode_s")
    versions: Mapping[str, str] = facts.get("versions", {})
    return {name: facts.get(name) for name in plain} | {
        "retried_fp32": bool(facts.get("retried_fp32", False)),
        "attempts": attempts,
        "versions": [{"key": key, "value": value} for key, value in sorted(versions.items())],
        "host": origin.host,
        "worker": origin.worker,
        "made_at": datetime.now(UTC),
    }
