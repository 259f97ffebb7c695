"""Writes a diffusers folder: its configs and tokenizers copied, its weights written component by component."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from sdbatch.errors import WeightFileError
from sdbatch.merge.checkpoint import OnProgress, counting
from sdbatch.merge.layout import as_folder, entries_of
from sdbatch.merge.model import read_likes
from sdbatch.merge.source import Source
from sdbatch.merge.weights import Weights
from sdbatch.merge.writer import write_safetensors
from sdbatch.plan.files import find_config
from sdbatch.weights.identify import identify_header

COPIED = {".json", ".txt", ".model"}
"""Configs and tokenizers."""

_OWN_METADATA = {"format": "pt"}
"""What diffusers and transformers ask of each file."""


def write_folder(path: Path, weights: Weights, source: Source, configs: Path, metadata: Mapping[str, str], on_progress: OnProgress) -> None:
    """Write weights as a diffusers folder.

    Raises:
        WeightFileError: they are not all that the configs call for.
    """
    chosen = _complete(weights, source, configs)
    layout = as_folder(chosen)
    _copy_configs(configs, path)
    _adapt_unet(path / "unet" / "config.json", chosen)
    _adapt_scheduler(path / "scheduler" / "scheduler_config.json", source)
    files = {place: entries_of(pieces, chosen, {}) for place, pieces in layout.files.items()}
    count = counting(list(files.values()), on_progress)
    for place, entries in files.items():
        (path / place).parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path / place, entries, {**metadata, **_OWN_METADATA}, count)
    for folder in (path, *(child for child in path.rglob("*") if child.is_dir())):
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _complete(weights: Weights, source: Source, configs: Path) -> Weights:
    """The weights that the configs call for: original files hold some that diffusers' classes have not."""
    expected = read_likes(configs)
    missing = [name for name in expected if name not in weights.likes and not name.endswith(".position_ids")]
    if missing:
        absent = sorted({name.partition(".")[0] for name in missing} - {name.partition(".")[0] for name in weights.likes})
        what = f"it has no {', '.join(absent)}" if absent else f"{len(missing)} tensors are missing ({missing[0]}, ...)"
        raise WeightFileError(
            f"{source.file.name}: {what}, which a diffusers folder needs. Give a whole checkpoint, or vae=FILE for a VAE."
        )
    for name, like in expected.items():
        found = weights.likes[name].shape
        if found != like.shape and name != "unet.conv_in.weight":
            raise WeightFileError(
                f"{source.file.name}: {name} is {list(found)}, by {configs.name}'s configs {list(like.shape)}. Give config=FOLDER."
            )
    return Weights({name: like for name, like in weights.likes.items() if name in expected}, weights.make, weights.release)


def _copy_configs(configs: Path, path: Path) -> None:
    for file in sorted(configs.rglob("*")):
        if file.is_file() and file.suffix in COPIED and not file.name.endswith(".index.json"):
            target = path / file.relative_to(configs)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    for tokenizer in path.glob("tokenizer*"):
        is_clip = "CLIP" in (tokenizer / "tokenizer_config.json").read_text(encoding="utf-8")
        if is_clip and not (tokenizer / "vocab.json").exists() and not (tokenizer / "tokenizer.json").exists():
            # Every CLIP reads the same words; sdbatch ships them once.
            for name in ("vocab.json", "merges.txt"):
                shutil.copyfile(find_config("sd1") / "tokenizer" / name, tokenizer / name)


def _adapt_unet(path: Path, weights: Weights) -> None:
    """An inpainting UNet takes more channels than its family's config says."""
    if (like := weights.likes.get("unet.conv_in.weight")) is not None:
        _set(path, {"in_channels": like.shape[1]})


def _adapt_scheduler(path: Path, source: Source) -> None:
    identity = identify_header(source.header)
    if identity.prediction_type in ("epsilon", "v_prediction") and path.is_file():
        _set(path, {"prediction_type": identity.prediction_type})
        if identity.zero_snr:
            _set(path, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})


def _set(path: Path, values: Mapping[str, Any]) -> None:
    config = cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    if any(config.get(key) != value for key, value in values.items()):
        path.write_text(json.dumps({**config, **values}, indent=2) + "\n", encoding="utf-8")
