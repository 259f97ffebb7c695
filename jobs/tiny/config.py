"""The recipe's settings: config.yaml under `key=value` overrides."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from jobs.tiny.loop import LoopSettings

FILE = Path(__file__).with_name("config.yaml")
INITS = ("embedded", "scratch")


def load_config(overrides: list[str]) -> dict[str, Any]:
    """Settings as plain values. Raises: ValueError for a key that nothing reads, or an unknown `init`."""
    defaults, given = OmegaConf.load(FILE), OmegaConf.from_dotlist(overrides)
    _refuse_unknown(defaults, given, "")
    config: dict[str, Any] = OmegaConf.to_container(OmegaConf.merge(defaults, given), resolve=True)  # type: ignore[assignment]
    if config["init"] not in INITS:
        raise ValueError(f"init={config['init']}: choose one of {', '.join(INITS)}")
    return config


def _refuse_unknown(known: DictConfig, given: DictConfig, prefix: str) -> None:
    loop_keys = {field.name for field in fields(LoopSettings)} if prefix else set()
    for key, value in given.items():
        if key not in known and key not in loop_keys:
            raise ValueError(f"{prefix}{key}: no such setting; there are {', '.join(sorted({*known, *loop_keys}))}")
        if isinstance(value, DictConfig):
            _refuse_unknown(known[key], value, f"{prefix}{key}.")
