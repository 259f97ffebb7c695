"""The headers of a diffusers folder, joined: every tensor prefixed by its part, every config by part.

No code of a model folder ever runs, so a folder that brings some is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from sdbatch.weights.header import FlawError, Header, Limits, TensorInfo, shown
from sdbatch.weights.kinds import WEIGHT_SUFFIXES
from sdbatch.weights.peft import ADAPTER_CONFIG, ADAPTER_MODEL, METADATA, check_adapter
from sdbatch.weights.pickle_header import read_pickle
from sdbatch.weights.safetensors_header import read_safetensors
from sdbatch.weights.sniff import sniff

MAX_CONFIG_BYTES = 2**20
_LIBRARIES = ("diffusers", "transformers")
"""Where the classes of a pipeline may come from; anything else would be code of the folder."""
_CODE_FIELDS = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "random_states_0.pkl")
_NOT_A_PART = ("safety_checker", "feature_extractor", "tokenizer", "tokenizer_2", "tokenizer_3")


def read_folder(folder: Path, limits: Limits) -> Header:
    """The joined header of a pipeline folder (`model_index.json`), one component (`config.json`) or peft's adapter (its own config).

    Raises: FlawError when it is neither, or when it brings code of its own.
    """
    _refuse_code(folder)
    metadata: dict[str, str] = {}
    if (folder / "model_index.json").is_file():
        index = _read_config(folder / "model_index.json")
        _check_index(index)
        values: dict[str, object] = {"model_index": index}
    elif is_adapter(folder):
        values = {}
        metadata[METADATA] = read_adapter_text(folder)
    elif (folder / "config.json").is_file():
        values = {}
    else:
        raise FlawError("is a folder without model_index.json or config.json. Give a diffusers folder, or a file in it.")
    tensors: dict[str, TensorInfo] = {}
    foreign: set[str] = set()
    size = 0
    for prefix, part in _list_parts(folder):
        for name in ("config.json", "scheduler_config.json"):
            if (part / name).is_file():
                values[f"{prefix}{name.removesuffix('.json')}"] = _read_config(part / name)
        for header in (_read_weights(path, limits) for path in _weight_files(part)):
            tensors.update({prefix + name: TensorInfo(info.dtype, info.shape) for name, info in header.tensors.items()})
            size += header.size
            foreign.update(header.foreign)
    if len(tensors) > limits.tensors:
        raise FlawError(f"names {len(tensors)} tensors, more than {limits.tensors}. Do not use it.")
    return Header(folder, "folder", size, tensors, metadata, values=values, foreign=tuple(sorted(foreign)))


def is_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter that peft saved."""
    return (folder / ADAPTER_CONFIG).is_file()


def read_adapter_text(folder: Path) -> str:
    """The settings of peft's adapter as JSON text. Raises: FlawError when they are none, or of what is not applied."""
    config = _read_config(folder / ADAPTER_CONFIG)
    check_adapter(config)
    return json.dumps(config)


def list_weights(folder: Path) -> list[tuple[str, Path]]:
    """(what its tensors' names are prefixed by, file) of every weight file of a diffusers folder that is used."""
    return [(prefix, path) for prefix, part in _list_parts(folder) for path in _weight_files(part)]


def _list_parts(folder: Path) -> list[tuple[str, Path]]:
    """(prefix, sub-folder) of a pipeline's parts, or the folder itself where it is one component."""
    if not (folder / "model_index.json").is_file():
        return [("", folder)]
    return [(f"{entry.name}.", entry) for entry in sorted(folder.iterdir()) if entry.is_dir() and entry.name not in _NOT_A_PART]


def _read_weights(path: Path, limits: Limits) -> Header:
    try:
        with path.open("rb", buffering=0) as file:
            size = path.stat().st_size
            read = read_safetensors if sniff(path, file.read(512), size) == "safetensors" else read_pickle
            return read(path, file.fileno(), size, limits)
    except FlawError as flaw:
        raise FlawError(f"{shown(path.name)} in it {flaw}") from None


def _weight_files(part: Path) -> list[Path]:
    """The weights of one part: safetensors before pickles, the full precision before a variant such as fp16."""
    names = sorted(path.name for path in part.iterdir() if path.suffix.lower() in WEIGHT_SUFFIXES and path.name not in _NOT_WEIGHTS)
    chosen = [name for name in names if name.endswith((".safetensors", ".sft"))] or names
    if is_adapter(part):
        return [part / name for name in chosen if name.startswith(ADAPTER_MODEL)]
    # `diffusion_pytorch_model.fp16.safetensors` beside `diffusion_pytorch_model.safetensors` is the same model again.
    plain = [name for name in chosen if name.count(".") == 1]
    return [part / name for name in plain or chosen]


def _refuse_code(folder: Path) -> None:
    for pattern in ("*.py", "*/*.py"):
        if code := next(iter(sorted(folder.glob(pattern))), None):
            raise FlawError(f"brings code of its own ({shown(code.relative_to(folder))}), which sdbatch never runs. Remove it if unneeded.")


def _check_index(index: dict[str, Any]) -> None:
    for key, value in index.items():
        if isinstance(value, list) and not key.startswith("_"):
            library = cast(list[Any], value)[0] if value else None
            if key not in _NOT_A_PART and not (library is None or library in _LIBRARIES):
                raise FlawError(f"its model_index.json takes `{shown(key, 60)}` from {shown(library, 60)}, which is not diffusers' own.")


def _read_config(path: Path) -> dict[str, Any]:
    config = _read_json(path)
    for name in _CODE_FIELDS:
        if config.get(name):
            raise FlawError(f"{path.name} has the field {name}, which asks for code of the folder. Remove the field if unneeded.")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise FlawError(f"{path.name} has more than {MAX_CONFIG_BYTES} bytes. Download it again.")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise FlawError(f"{path.name} is not valid JSON. Download it again.") from None
    if not isinstance(value, dict):
        raise FlawError(f"{path.name} is not a JSON object. Download it again.")
    return cast(dict[str, Any], value)
