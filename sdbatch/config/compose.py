"""Compose configurations with stock Hydra, once per distinct choice of options."""

from __future__ import annotations

# pyright: reportPrivateUsage=false
# OmegaConf has no public way to a node, nor to convert one value.
import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.version import setbase
from omegaconf import AnyNode, DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from sdbatch.cell import STACKS
from sdbatch.config.explain import explain
from sdbatch.config.guard import check_folders, check_overrides, environment_for, guard_environment, searched_folders
from sdbatch.config.schema import FILE_GROUPS
from sdbatch.config.search import PACKAGED, models_roots, register_options
from sdbatch.errors import ConfigError, did_you_mean
from sdbatch.hub.address import to_address
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.hashes import Hasher

LITERAL_KEYS = ("prompt", "negative_prompt")
"""Keys whose text is data: never interpolated, whatever it holds."""


@dataclass(frozen=True)
class Composition:
    """One composed configuration: its plain values, and the typed tree that converts further ones."""

    tree: DictConfig
    """Without the `hydra` node."""
    plain: dict[str, Any]
    """Resolved, nothing but dict, list, str, int, float, bool and None."""
    hydra: dict[str, Any]
    """`launcher` and `sweeper` of the `hydra` node."""

    def convert(self, key: str, value: Any) -> Any:
        """The value as the schema would take it for this key. Raises ConfigError, naming the key, if it would not."""
        parent_path, _, last = key.rpartition(".")
        parent = OmegaConf.select(self.tree, parent_path) if parent_path else self.tree
        # Not `last in parent`: OmegaConf says no for a value that must still be given.
        node = parent._get_node(last, validate_access=False) if isinstance(parent, DictConfig) else None
        if node is None:
            raise ConfigError(self.unknown(key))
        if key in LITERAL_KEYS and isinstance(value, str):
            return value
        if isinstance(node, AnyNode) and isinstance(value, list):
            return plain_value(value)  # a key of any type, whose node holds no list when it is set by itself
        node = copy.copy(node)
        try:
            node._set_value(value)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}={value}: {str(error).splitlines()[0]}") from None
        return plain_value(node._value())

    def unknown(self, key: str) -> str:
        """Why this key is not there, with the nearest that are."""
        group, _, rest = key.partition(".")
        name = rest.partition(".")[0]
        stack = self.plain.get(group)
        if group in STACKS and isinstance(stack, dict) and name not in stack:
            chosen = ", ".join(cast(dict[str, Any], stack)) or "nothing"
            return f"{key} is set, but {group} {name!r} is not in the stack ({chosen}). Add it: '{group}=[{name}]'."
        if key.startswith("hydra.launcher."):
            options: list[str] = [f"hydra.launcher.{option}" for option in self.hydra["launcher"]]
            return f"{key}: {self.hydra['launcher'].get('name')} has no such option. {did_you_mean(key, options, shown=len(options))}"
        return f"{key}: there is no such key. {did_you_mean(key, leaf_keys(self.plain))}"

    def interpolates(self, key: str) -> bool:
        """Whether some other value may be computed from this key, so that overlaying it alone would be wrong."""
        last = key.rpartition(".")[2]
        return any(last in text for text in interpolations(self.tree))


class Composer:
    """Stock Hydra, kept warm: one search path, one configuration name."""

    def __init__(self, config_name: str = "config", config_dir: str | None = None, overrides: Sequence[str] = ()) -> None:
        setbase("1.3")
        setup_globals()
        guard_environment()
        check_overrides(overrides)
        folders = [Path(folder).expanduser() for folder in (config_dir, "conf") if folder]
        check_folders(folders)
        names = [folder / f"{config_name}.yaml" for folder in folders]
        check_folders(searched_folders(overrides, names))
        self.config_name = config_name
        self.catalog: Catalog = register_options(models_roots(overrides, names), folders)
        search_path = create_automatic_config_search_path(None, None, PACKAGED)
        if config_dir is not None:
            folder = Path(config_dir).expanduser().absolute()
            if not folder.is_dir():
                raise ConfigError(f"--config-dir {config_dir}: no such folder.")
            search_path.prepend(provider="command-line", path=f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
        self.loader = ConfigLoaderImpl(config_search_path=search_path)

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Parse override strings in Hydra's grammar. Raises ConfigError."""
        try:
            return OverridesParser.create(config_loader=self.loader).parse_overrides(list(overrides))
        except HydraException as error:
            raise ConfigError(explain(error, self)) from None

    def is_group(self, key: str) -> bool:
        """Whether the key chooses an option (`lora`, `sampler`, `checkpoint@other`), not a value."""
        return self.loader.repository.group_exists(key.partition("@")[0])

    def options(self, group: str) -> list[str]:
        """The options of a group, files of the models folders included."""
        return sorted(set(self.loader.get_group_options(group)))

    def groups(self) -> list[str]:
        """The groups at the root, without Hydra's own."""
        return [group for group in self.loader.list_groups("") if group not in ("hydra", "__pycache__")]

    def compose(self, overrides: Sequence[str], literals: Mapping[str, str] | None = None) -> Composition:
        """Compose with these overrides; `literals` are texts taken as they are. Raises ConfigError."""
        try:
            config = self.loader.load_configuration(self.config_name, list(overrides), run_mode=RunMode.RUN)
            HydraConfig.instance().set_config(config)
            hydra = OmegaConf.to_container(OmegaConf.masked_copy(config.hydra, ["launcher", "sweeper", "mode"]), enum_to_str=True)
            # Taken out rather than copied around: a masked copy forgets the types of plain values.
            with flag_override(config, ["struct", "readonly"], False):
                config.pop("hydra")
            plain = self._with_own_files(to_plain(config, literals or {}))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error, self, overrides)) from None
        except yaml.YAMLError as error:
            raise ConfigError(f"not readable as YAML: {' '.join(str(error).split())}.") from None
        return Composition(config, plain, cast(dict[str, Any], hydra))

    def _with_own_files(self, plain: dict[str, Any]) -> dict[str, Any]:
        """Where no `file` is given: what a repository or a preset stands for, else (of a stack) the file of the item's own name.

        So a YAML beside a weight file need only add defaults.
        """
        for group in FILE_GROUPS:
            node = cast(dict[str, Any], plain[group])
            for name, item in (node if group in STACKS else {"": node}).items():
                if file := self._own_file(group, name, item):
                    item["file"] = file
        return plain

    def _own_file(self, group: str, name: str, item: dict[str, Any]) -> str | None:
        if item["repo"] is not None:
            return to_address(item["repo"], item["revision"])
        if item["file"] is not None:
            return None
        if preset := item["preset"]:
            names = [*preset["known"], preset["name"]]
            return self.catalog.find_known(group, names) or self._find_renamed(group, preset["sha256"]) or preset["name"]
        return name if name in self.catalog.options(group) else None

    def _find_renamed(self, group: str, sha256: str | None) -> str | None:
        """The option whose file has this SHA-256 under a name of the user's own; only files that were hashed before are known."""
        if sha256 is None:
            return None
        hasher = Hasher()
        options = self.catalog.options(group).items()
        return next((name for name, path in options if (hasher.recall(path) or "").startswith(sha256)), None)


def to_plain(tree: DictConfig, literals: Mapping[str, str]) -> dict[str, Any]:
    """The resolved values; prompts as they were written, missing values as None."""
    texts = dict(literals)
    for key in LITERAL_KEYS:
        node = tree._get_node(key) if key in tree else None
        if key not in texts and node is not None:
            # The raw text, not the resolved one: a prompt with "${" is data. "\${" is how YAML spells it.
            texts[key] = str(cast(Any, node)._value()).replace("\\${", "${")
    for key in texts:
        tree[key] = ""
    plain = resolved(tree)
    plain.update(texts)
    return cast(dict[str, Any], _missing_to_none(plain))


def resolved(node: DictConfig, path: str = "") -> dict[str, Any]:
    """The resolved values of a tree, key by key, so that each is told whether it may see the environment."""
    found: dict[str, Any] = {}
    for key in node:
        own = f"{path}{key}"
        child = node._get_node(key)
        with environment_for(own):
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation() and not child._is_missing():
                found[str(key)] = resolved(child, f"{own}.")
            else:
                found[str(key)] = "???" if OmegaConf.is_missing(node, key) else plain_value(node[key])
    return found


def _missing_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _missing_to_none(item) for key, item in cast(dict[Any, Any], value).items()}
    if isinstance(value, list):
        return [_missing_to_none(item) for item in cast(list[Any], value)]
    return None if value == "???" else value


def plain_value(value: Any) -> Any:
    """A value without OmegaConf or Enum around it."""
    if isinstance(value, Enum):
        return value.name
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True, enum_to_str=True, throw_on_missing=False)
    return value


def leaf_keys(plain: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """Key paths of all plain values."""
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield from leaf_keys(cast(dict[str, Any], value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def interpolations(tree: DictConfig) -> list[str]:
    """The texts of all values that are interpolated, prompts excepted."""
    raw = cast(dict[str, Any], OmegaConf.to_container(tree, resolve=False, enum_to_str=True, throw_on_missing=False))
    found: list[str] = []

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, item in cast(dict[str, Any], value).items():
                walk(item, f"{key}.{name}" if key else str(name))
        elif isinstance(value, list):
            for item in cast(list[Any], value):
                walk(item, key)
        elif isinstance(value, str) and "${" in value and key not in LITERAL_KEYS:
            found.append(value)

    walk(raw, "")
    return found
