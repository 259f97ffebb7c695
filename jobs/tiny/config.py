"""The recipe's settings: config.yaml under `key=value` overrides."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from jobs.tiny.loop import LoopSettings

FILE = Path(__file__).with_name("config.yaml")
INITS = ("embedded", "scratch")
LOOP_KEYS = {field.name for field in fields(LoopSettings)}
GROUPS = {"adapters": "adapter", "embeddings": "embedding"}  # sections of parts, and the section of their defaults


def load_config(overrides: list[str]) -> dict[str, Any]:
    """Settings as plain values. Raises: ValueError for a key that nothing reads, or an unknown `init`."""
    defaults, given = OmegaConf.load(FILE), OmegaConf.from_dotlist(overrides)
    merged: dict[str, Any] = OmegaConf.to_container(OmegaConf.merge(defaults, given), resolve=True)  # type: ignore[assignment]
    known = _known_keys(OmegaConf.to_container(defaults, resolve=True))  # type: ignore[arg-type]
    for override in overrides:
        key = override.partition("=")[0]
        if key not in known:
            near = sorted(other for other in known if other.rpartition(".")[0] == key.rpartition(".")[0])
            raise ValueError(f"{key}: no such setting; there are {', '.join(near or sorted(defaults))}")
    if merged["init"] not in INITS:
        raise ValueError(f"init={merged['init']}: choose one of {', '.join(INITS)}")
    return merged


def _known_keys(defaults: dict[str, Any]) -> set[str]:
    known: set[str] = set()
    for name, value in defaults.items():
        if name in GROUPS:
            shared = LOOP_KEYS | set(defaults[GROUPS[name]])
            known |= {f"{name}.{part}.{key}" for part, section in value.items() for key in {*section, *shared}}
        elif isinstance(value, dict):
            known |= {f"{name}.{key}" for key in {*value, *LOOP_KEYS}}
        else:
            known.add(name)
    return known
