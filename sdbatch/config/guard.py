"""What is refused in a user's YAML before Hydra reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from sdbatch.errors import ConfigError

YAML_LIMIT_MB = 8
"""A larger file is data, which belongs into a prompt file."""


def check_folders(folders: Sequence[Path]) -> None:
    """Check every YAML of these configuration folders. Raises ConfigError, naming file and line.

    Aliases are refused because 253 bytes of them can expand to gigabytes; tags because they can name code.
    """
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")) if folder.is_dir() else ():
            _check(path)


def _check(path: Path) -> None:
    if path.stat().st_size > YAML_LIMIT_MB * 1e6:
        raise ConfigError(f"{path}: over {YAML_LIMIT_MB} MB is no configuration. Put prompts into a file of matrix.prompts.file.")
    try:
        for event in yaml.parse(path.read_bytes(), Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(
                    f"{path}: line {event.start_mark.line + 1}: YAML aliases (*{event.anchor}) are not allowed. Write it out."
                )
            tag = getattr(event, "tag", None)
            if tag is not None and tag not in ("!", "tag:yaml.org,2002:str"):
                raise ConfigError(f"{path}: line {event.start_mark.line + 1}: YAML tags ({tag}) are not allowed.")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}.") from None
