"""Compose configurations with stock Hydra, once per distinct choice of options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.version import setbase
from omegaconf import OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from sdbatch.cell import STACKS
from sdbatch.config.composition import Composition, to_plain
from sdbatch.config.explain import explain
from sdbatch.config.guard import check_folders, check_overrides, guard_environment, searched_folders
from sdbatch.config.schema import FILE_GROUPS
from sdbatch.config.search import PACKAGED, models_roots, register_options
from sdbatch.errors import ConfigError, PlanError, SdbatchError, to_fault
from sdbatch.hub.address import to_address
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.hashes import Hasher

LAUNCHER = "hydra/launcher"


class Composer:
    """Stock Hydra, kept warm: one search path, one configuration name."""

    def __init__(self, config_name: str = "config", config_dir: str | None = None, overrides: Sequence[str] = ()) -> None:
        setbase("1.3")
        setup_globals()
        guard_environment()
        check_overrides(overrides)
        config_dir = config_dir or _find_shipped(config_name)
        folders = [Path(folder).expanduser() for folder in (config_dir, "conf") if folder]
        check_folders(folders)
        names = [folder / f"{config_name}.yaml" for folder in folders]
        check_folders(searched_folders(overrides, names))
        self.config_name = config_name
        self.job_folder = next((file.parent for file in names if file.is_file()), None)
        """Where the job lies that is run; None: it is sdbatch's own configuration."""
        self.catalog: Catalog = register_options(models_roots(overrides, names), folders)
        search_path = create_automatic_config_search_path(None, None, PACKAGED)
        if config_dir is not None:
            folder = Path(config_dir).expanduser().absolute()
            if not folder.is_dir():
                shipped = ", ".join(f"-cn {name}" for name in shipped_jobs())
                raise ConfigError(f"--config-dir {config_dir}: no such folder. The jobs that ship with sdbatch need none: {shipped}.")
            search_path.prepend(provider="command-line", path=f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
        self.loader = ConfigLoaderImpl(config_search_path=search_path)
        self.catalog.known_names = self._known_names

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
        hidden = {"basic"} if group == LAUNCHER else set[str]()  # Hydra's own, which does not run our plans
        return sorted(set(self.loader.get_group_options(group)) - hidden)

    def groups(self) -> list[str]:
        """The groups at the root, without Hydra's own and folders that hold no option."""
        return [group for group in self.loader.list_groups("") if group != "hydra" and self.loader.get_group_options(group)]

    def jobs(self) -> list[str]:
        """What `-cn` can name."""
        found = self.loader.repository.get_group_options("", ObjectType.CONFIG)
        return sorted({*shipped_jobs(), *(name for name in found if name != "schema" and not name.startswith("_"))})

    def compose(self, overrides: Sequence[str], literals: Mapping[str, str] | None = None) -> Composition:
        """Compose with these overrides; `literals` are texts taken as they are. Raises ConfigError, of several faults PlanError."""
        try:
            config = self.loader.load_configuration(self.config_name, list(overrides), run_mode=RunMode.RUN)
            HydraConfig.instance().set_config(config)
            hydra = OmegaConf.to_container(OmegaConf.masked_copy(config.hydra, ["launcher", "sweeper", "mode"]), enum_to_str=True)
            # Taken out rather than copied around: a masked copy forgets the types of plain values.
            with flag_override(config, ["struct", "readonly"], False):
                config.pop("hydra")
            plain = self._with_own_files(to_plain(config, literals or {}))
        except (HydraException, OmegaConfBaseException) as error:
            raise self._explained(error, overrides) from None
        except yaml.YAMLError as error:
            raise ConfigError(f"not readable as YAML: {' '.join(str(error).split())}.") from None
        composition = Composition(config, plain, cast(dict[str, Any], hydra))
        if any(override.startswith(("+", "~")) for override in overrides):
            composition.check_keys()
        return composition

    def _explained(self, error: Exception, overrides: Sequence[str]) -> SdbatchError:
        """The fault, and those that Hydra, which stops at the first, would find without it."""
        text = explain(error, self, overrides)
        rest = [override for override in overrides if _key(override) != _key(text)]
        try:
            if len(rest) < len(overrides):
                self.compose(rest)
        except (ConfigError, PlanError) as further:
            faults = further.faults if isinstance(further, PlanError) else (to_fault(str(further)),)
            # Not of what was asked for: a default that is not there either.
            if asked := [fault for fault in faults if _key(fault.key) in map(_key, rest)]:
                return PlanError([to_fault(text), *asked])
        return ConfigError(text)

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

    def _known_names(self, group: str, option: str) -> list[str]:
        """The file names that a preset is known by, where it is not chosen by its group but named: `checkpoint.merge.b`."""
        if option not in self.options(group):
            return []
        found = self.loader.repository.load_config(f"{group}/{option}")
        preset = cast(dict[str, Any], OmegaConf.to_container(found.config)).get("preset") if found else None
        return preset["known"] if preset else []

    def _find_renamed(self, group: str, sha256: str | None) -> str | None:
        """The option whose file has this SHA-256 under a name of the user's own; only files that were hashed before are known."""
        if sha256 is None:
            return None
        hasher = Hasher()
        options = self.catalog.options(group).items()
        return next((name for name, path in options if (hasher.recall(path) or "").startswith(sha256)), None)


def _key(text: str) -> str:
    """The key of an override, or of an error that begins with one."""
    return re.split("[:=]", text.lstrip("+~"), maxsplit=1)[0]


def shipped_jobs() -> dict[str, Path]:
    """Name -> file of the jobs that come with sdbatch: in the package, or in a checkout beside it."""
    package = Path(__file__).resolve().parent.parent
    folder = next((folder for folder in (package / "jobs", package.parent / "jobs") if folder.is_dir()), package)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _find_shipped(config_name: str) -> str | None:
    """The folder of a job that ships, unless the user's own `conf/` has one of that name."""
    shipped = shipped_jobs().get(config_name)
    return None if shipped is None or (Path("conf") / shipped.name).is_file() else str(shipped.parent)
