"""The command line of a run, in Hydra's own options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.types import RunMode

from sdbatch.errors import ConfigError


@dataclass(frozen=True)
class Arguments:
    """A parsed command line."""

    overrides: tuple[str, ...]
    config_name: str
    config_dir: str | None
    multirun: bool
    help: bool
    """`--help`, or `--help GROUP` with the group in `overrides`."""
    show: str | None
    """`--cfg job|hydra|all`."""
    info: str | None
    """`--info ...`."""
    completion: bool
    """`--shell-completion install=bash`."""
    resolve: bool
    package: str | None

    @property
    def only_asks(self) -> bool:
        """Whether nothing is to be planned: help, the configuration or completions are to be shown."""
        return self.help or self.show is not None or self.info is not None or self.completion

    @property
    def mode(self) -> RunMode:
        """Whether commas and ranges sweep."""
        return RunMode.MULTIRUN if self.multirun else RunMode.RUN


def read_arguments(given: Sequence[str]) -> Arguments:
    """Parse. Raises ConfigError for an option that is unknown, and for a word that is no key=value."""
    parser = get_args_parser()
    parser.error = _refuse
    # Intermixed: `-m` may stand anywhere, also before the last key.
    found = parser.parse_intermixed_args(list(given))
    overrides = list[str](found.overrides)
    if not (found.help or found.shell_completion):
        for word in overrides:
            if "=" not in word and not word.startswith("~"):
                raise ConfigError(
                    f"{word}: give keys as key=value, such as steps=30, a verb first. Text with spaces needs quotes: prompt='a red fox'."
                )
    return Arguments(
        overrides=tuple(overrides),
        config_name=found.config_name or "config",
        config_dir=found.config_dir,
        multirun=found.multirun,
        help=found.help or found.hydra_help,
        show=found.cfg,
        info=found.info,
        completion=found.shell_completion,
        resolve=found.resolve,
        package=found.package,
    )


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}. `sdbatch --help` tells what there is.")
