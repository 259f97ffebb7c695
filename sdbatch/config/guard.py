"""What is refused in a user's YAML: traps before Hydra reads it, secrets of the environment before they reach a result."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sdbatch.errors import ConfigError

YAML_LIMIT_MB = 8
"""A larger file is data, which belongs into a prompt file."""
ENVIRONMENT_KEYS = ("paths", "out", "tracking.uri")
"""Where an environment variable may be used: what names folders and servers, and is in no image, row or MLflow parameter."""
TARGET = "_target_"
NO_TARGET = f"{TARGET} is not allowed: options are chosen by name (`sdbatch --help` lists them), code is never named."
DEPTH_LIMIT = 50
"""Nesting of a YAML file: the time its parser takes grows with the square of it."""
SECRET_NAME = re.compile(r"token|secret|passw|credential|auth|cookie|private|(^|_)(api|access)?_?keys?($|_)", re.IGNORECASE)
"""Variables that are used nowhere, since folder names and servers' logs are read by others too."""

_is_open: ContextVar[bool] = ContextVar("environment_is_open", default=False)
_UNSET = object()


def check_folders(folders: Sequence[Path]) -> None:
    """Check every YAML of these configuration folders. Raises ConfigError, naming file and line.

    Aliases are refused because 253 bytes of them can expand to gigabytes; tags because they can name code.
    """
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")) if folder.is_dir() else ():
            _check(path)


def early_values(key: str, overrides: Sequence[str], config_files: Sequence[Path]) -> list[Any]:
    """What the command line and (checked) configuration files give for a key that must be known before composing.

    Raises: ConfigError for a value that needs more than the environment to be resolved.
    """
    given: list[Any] = []
    for override in overrides:
        if override.partition("=")[0].lstrip("+") == key:
            given.append(_parsed(override))
    for file in config_files:
        node: Any = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
        for part in key.split("."):
            node = cast(dict[str, Any], node).get(part) if isinstance(node, dict) else None
        given.append(node)
    with environment_for(key):
        return [_resolved(key, value) for value in given if value is not None]


def _parsed(override: str) -> Any:
    try:
        return OverridesParser.create().parse_override(override).value()
    except HydraException:
        return None  # composing tells what is wrong with it


def _resolved(key: str, value: Any) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]  # pyright: ignore
    except OmegaConfBaseException as error:
        text = str(error).splitlines()[0].rpartition("interpolation: ")[2]
        raise ConfigError(f"{key}={value}: {text}") from None


def searched_folders(overrides: Sequence[str], config_files: Sequence[Path]) -> list[Path]:
    """The folders of `hydra.searchpath`, which are checked as the others are."""
    asked: list[Any] = []
    for value in early_values("hydra.searchpath", overrides, config_files):
        asked += cast(list[Any], value) if isinstance(value, list) else [value]
    return [Path(str(entry).removeprefix("file://")).expanduser() for entry in asked if not str(entry).startswith("pkg://")]


def guard_environment() -> None:
    """Put `read_environment` in the place of OmegaConf's own `oc.env`."""
    OmegaConf.register_new_resolver("oc.env", read_environment, replace=True)


@contextmanager
def environment_for(key: str) -> Generator[None]:
    """While the value of this key is resolved, the environment is open to it or closed."""
    token = _is_open.set(any(key == name or key.startswith(f"{name}.") for name in ENVIRONMENT_KEYS))
    try:
        yield
    finally:
        _is_open.reset(token)


def read_environment(name: str, default: Any = _UNSET) -> str | None:
    """`${oc.env:NAME,default}`. Raises ConfigError where the value would end in a result, by whatever detour."""
    if SECRET_NAME.search(name):
        raise ConfigError(f"${{oc.env:{name}}}: a variable of this name holds a secret, and configurations are written down.")
    if not _is_open.get():
        allowed = ", ".join(ENVIRONMENT_KEYS)
        raise ConfigError(f"${{oc.env:{name}}}: environment variables can be used only in {allowed}, so that no secret ends in an image.")
    found = os.environ.get(name, default)
    if found is _UNSET:
        raise ConfigError(f"${{oc.env:{name}}}: this environment variable is not set. Set it, or give a default: ${{oc.env:{name},value}}.")
    return None if found is None else str(found)


def without_secrets(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree without the keys whose names say that they hold a secret, such as `env_vars.HF_TOKEN`."""
    kept = {key: value for key, value in tree.items() if not SECRET_NAME.search(key)}
    return {key: without_secrets(cast(dict[str, Any], value)) if isinstance(value, dict) else value for key, value in kept.items()}


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse what names code on the command line. Raises ConfigError."""
    for override in overrides:
        key, _, value = override.partition("=")
        if TARGET in key.split(".") or re.search(rf"[{{,]\s*['\"]?{TARGET}['\"]?\s*:", value):
            raise ConfigError(f"{override}: {NO_TARGET}")


def _check(path: Path) -> None:
    if path.stat().st_size > YAML_LIMIT_MB * 1e6:
        raise ConfigError(f"{path}: over {YAML_LIMIT_MB} MB is no configuration. Put prompts into a file of matrix.prompts.file.")
    depth = 0
    try:
        for event in yaml.parse(path.read_bytes(), Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if (fault := _fault_of(event, depth)) is not None:
                raise ConfigError(f"{path}: line {event.start_mark.line + 1}: {fault}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}.") from None


def _fault_of(event: yaml.Event, depth: int) -> str | None:
    if isinstance(event, yaml.AliasEvent):
        return f"YAML aliases (*{event.anchor}) are not allowed. Write it out."
    tag = getattr(event, "tag", None)
    if tag is not None and tag not in ("!", "tag:yaml.org,2002:str"):
        return f"YAML tags ({tag}) are not allowed."
    if depth > DEPTH_LIMIT:
        return f"nested deeper than {DEPTH_LIMIT} levels, which is no configuration."
    return NO_TARGET if isinstance(event, yaml.ScalarEvent) and TARGET in event.value.split(".") else None
