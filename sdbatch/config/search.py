"""Where options come from: the packaged `conf/`, the user's `./conf`, and every weight file in the models folders."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from sdbatch.cell import STACKS
from sdbatch.config.guard import early_values
from sdbatch.config.schema import FILE_GROUPS, Config
from sdbatch.families.samplers import SAMPLERS
from sdbatch.weights.catalog import Catalog

PROVIDER = "sdbatch"
PACKAGED = "pkg://sdbatch.conf"


class WorkspaceConf(SearchPathPlugin):
    """Puts `./conf` of the working directory before the packaged groups, so that users add and shadow options."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Prepend the folder when there is one."""
        folder = Path.cwd() / "conf"
        if folder.is_dir():
            # Not as_uri(): Hydra does not decode %20.
            search_path.prepend(provider="workspace", path=f"file://{folder}", anchor="main")


def models_roots(overrides: Sequence[str], config_files: Sequence[Path]) -> list[Path]:
    """The models folders, which must be known before composition because their files are options.

    From `paths.models` of the command line, else of the first of `config_files` that has it, else `./models`.
    """
    asked: Any = next(iter(early_values("paths.models", overrides, config_files)), None)
    names: list[str] = [asked] if isinstance(asked, str) else list(asked or ["models"])
    return [Path(name).expanduser() for name in names]


def register_options(roots: Sequence[Path], folders: Sequence[Path]) -> Catalog:
    """Make the schema, every sampler and every weight file an option.

    A YAML of the same name in one of the configuration `folders` is the option then: Hydra would take ours for its schema.
    """
    store = ConfigStore.instance()
    store.store(name="schema", node=Config, provider=PROVIDER)
    for name in sorted(set(SAMPLERS) - _yaml_options(folders, "sampler")):
        store.store(group="sampler", name=name, node={"name": name}, provider=PROVIDER)
    catalog = Catalog(roots)
    for group in FILE_GROUPS:
        # The store outlives a composer: options of another models folder must not stay.
        store.repo.pop(group, None)
        for name in sorted(set(catalog.options(group)) - _yaml_options(folders, group)):
            package = f"{group}.{name}" if group in STACKS else group
            store.store(group=group, name=name, node={"file": name}, package=package, provider=PROVIDER)
    Plugins.instance().register(WorkspaceConf)
    return catalog


def _yaml_options(folders: Sequence[Path], group: str) -> set[str]:
    packaged = files("sdbatch.conf") / group
    shipped = (
        {entry.name.removesuffix(".yaml") for entry in packaged.iterdir() if entry.name.endswith(".yaml")}
        if packaged.is_dir()
        else set[str]()
    )
    return shipped | {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
