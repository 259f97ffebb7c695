"""Words of the small verbs: some names, then key=value. A verb's table of options is read by its parser and its help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from sdbatch.errors import ConfigError, did_you_mean

HELP = ("-h", "--help")
FLAG = ("true", "false")


class Option(NamedTuple):
    """A key of a verb."""

    default: str
    """`true` or `false` makes it a flag, which `--KEY` switches on; empty: unset."""
    about: str
    """One line for the help."""

    @property
    def is_flag(self) -> bool:
        """Whether it is on or off."""
        return self.default in FLAG


Options = Mapping[str, Option]

MODELS = {"paths.models": Option("models", "models folders, separated by commas")}
"""Where verbs that plan nothing find weight files; the key that a run has for it."""


def model_folders(words: Mapping[str, str]) -> list[Path]:
    """The folders of `paths.models`."""
    return [Path(root).expanduser() for root in words["paths.models"].split(",")]


def read_words(verb: str, arguments: Sequence[str], places: Sequence[str], options: Options) -> dict[str, str]:
    """A name for each of `places` and a value for each option. Raises ConfigError with the verb's usage."""
    names, found = read_names(verb, arguments, places, options)
    if len(names) > len(places):
        raise ConfigError(f"{names[len(places)]}: not understood. {_usage(verb, places, options)}")
    return found | dict(zip(places, names, strict=True))


def read_names(verb: str, arguments: Sequence[str], places: Sequence[str], options: Options) -> tuple[list[str], dict[str, str]]:
    """Names and a value for each option: as many names as `places` that are not in brackets, or more. Raises ConfigError."""
    names: list[str] = []
    found = {key: option.default for key, option in options.items()}
    for word in arguments:
        key, equals, value = word.removeprefix("--").partition("=")
        if key in options and (equals or (word.startswith("--") and options[key].is_flag)):
            found[key] = value if equals else "true"
            if options[key].is_flag and found[key] not in FLAG:
                raise ConfigError(f"{word}: choose true or false.")
        elif word.startswith("-") or (equals and not Path(word).exists()):
            raise ConfigError(f"{word}: no such option of {verb}. {did_you_mean(key, options)} {_usage(verb, places, options)}")
        else:
            names.append(word)
    needed = [place for place in places if not place.startswith("[")]
    if len(names) < len(needed):
        raise ConfigError(f"{needed[len(names)]} is missing. {_usage(verb, places, options)}")
    return names, found


def _usage(verb: str, places: Sequence[str], options: Options) -> str:
    words = [f"[--{key}]" if option.default == "false" else f"[{key}={option.default or '...'}]" for key, option in options.items()]
    return " ".join(["Usage: sdbatch", verb, *places, *words])


def to_help(verb: ModuleType) -> str:
    """What a verb does and how it is called: its module's docstring, and its options where it has a table of them."""
    about = (verb.__doc__ or "").strip().replace("`", "")
    options: Options = getattr(verb, "OPTIONS", {})
    words = {key: f"--{key}" if option.default == "false" else f"{key}={option.default}" for key, option in options.items()}
    width = max(map(len, words.values()), default=0)
    lines = [f"  {words[key].ljust(width)}  {option.about}" for key, option in options.items()]
    return "\n".join([about, *([""] if lines else []), *lines]) + "\n"
