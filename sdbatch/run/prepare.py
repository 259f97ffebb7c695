"""From a command line to a checked plan with its settings. Nothing is written, no weight is loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdbatch.config.arguments import Arguments
from sdbatch.config.compose import Composer
from sdbatch.config.composition import Composition
from sdbatch.config.launcher import read_launcher
from sdbatch.config.schema import identity_defaults
from sdbatch.config.sweep import Request, read_request, read_space
from sdbatch.errors import ConfigError
from sdbatch.plan.beside import look_beside
from sdbatch.plan.draft import Sweep, expand
from sdbatch.plan.files import FileBook
from sdbatch.plan.identity import canonical, leaves
from sdbatch.plan.plan import Plan
from sdbatch.plan.resolve import resolve
from sdbatch.plan.tree import Tree, get, overlay
from sdbatch.run.settings import Settings, read_settings


@dataclass(frozen=True)
class Job:
    """A plan that can be run."""

    plan: Plan
    settings: Settings
    out: Path
    config: Tree
    """The resolved base configuration, for `config.yaml`."""
    axes: dict[str, int]
    """Swept key -> number of its distinct values."""


def prepare(arguments: Arguments) -> Job:
    """Compose, expand, check and name everything. Raises ConfigError or PlanError."""
    composer = Composer(arguments.config_name, arguments.config_dir, arguments.overrides)
    request = read_request(composer, arguments.overrides, arguments.mode)
    base = composer.compose(request.fixed, request.literals)
    space, exclude = read_space(composer, request, base)
    draft = expand(Sweep(space, exclude, request.values, _Composing(composer, request, base), composer.is_group))
    draft = look_beside(draft, composer.job_folder, request.keys)
    axes = {key: len(column.values) for key, column in {**draft.labels, **draft.columns}.items()}
    name = _name(arguments, base)
    plan = resolve(draft, name, identity_defaults(), FileBook(composer.catalog))
    launcher = _launcher(base)
    settings = read_settings(base.plain, name, launcher)
    config = overlay(base.plain, request.values)
    return Job(plan, settings, _out(config, name, axes), config, axes)


class _Composing:
    """Compose with further overrides, each distinct list once."""

    def __init__(self, composer: Composer, request: Request, base: Composition) -> None:
        self.composer = composer
        self.request = request
        self.known: dict[tuple[str, ...], Composition] = {(): base}

    def __call__(self, more: Sequence[str]) -> Composition:
        key = tuple(more)
        if key not in self.known:
            literals = dict(self.request.literals)
            self.known[key] = self.composer.compose([*self.request.fixed, *more], literals)
        return self.known[key]


def _launcher(base: Composition) -> dict[str, Any]:
    """The launcher's own settings. Raises ConfigError for one that is not ours, which would be ignored in silence."""
    launcher = read_launcher(base.hydra.get("launcher") or {})
    if "basic_sweeper" not in str((base.hydra.get("sweeper") or {}).get("_target_")):
        raise ConfigError("hydra/sweeper: sdbatch plans sweeps itself; leave hydra/sweeper as it is.")
    return asdict(launcher)


def read_launcher_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """What `hydra/launcher=` and `hydra.launcher.KEY=` ask: a whole launcher, or options only. Raises ConfigError."""
    composer = Composer()
    if any(override.startswith("hydra/launcher=") for override in overrides):
        return _launcher(composer.compose(overrides))
    parsed = composer.parse(overrides)
    return {override.key_or_group.removeprefix("hydra.launcher."): override.value() for override in parsed}


def _name(arguments: Arguments, base: Composition) -> str:
    if (given := base.plain["name"]) is not None:
        name = str(given)
        if not re.fullmatch(r"[\w][\w .+-]{0,80}", name) or name.endswith((".", " ")):
            raise ConfigError(f"name={name}: a name has letters, digits, spaces and . _ + - only, at most 80.")
        return name
    return arguments.config_name if arguments.config_name != "config" else base.plain["model"]["name"] or "sweep"


def _out(config: Tree, name: str, axes: dict[str, int]) -> Path:
    """The sweep's folder: the same for the same command, and for one that only changes the values of an axis.

    So repeating a command finds what is made, and a longer axis adds to it; a key that a later version brings changes nothing.
    """
    if config["out"] is not None:
        return Path(config["out"]).expanduser()
    defaults, swept = identity_defaults(), [key.lstrip("+~") for key in axes]
    fixed = {
        path: value
        for key, path, pattern in leaves(config, defaults)
        if (value := get(config, key)) != defaults[pattern] and not any(key == axis or key.startswith(f"{axis}.") for axis in swept)
    }
    digest = hashlib.sha256(f"{canonical(fixed)} {sorted(axes)}".encode()).hexdigest()[:6]
    slug = re.sub(r"[^\w+-]+", "-", name).strip("-").lower() or "sweep"
    return Path(config["paths"]["outputs"]).expanduser() / f"{slug}_{digest}"
