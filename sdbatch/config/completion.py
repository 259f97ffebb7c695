"""What a word of a run's command line could go on with: groups and their options, keys and their values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from sdbatch.cell import STACKS
from sdbatch.config.arguments import read_arguments
from sdbatch.config.compose import LAUNCHER, Composer
from sdbatch.config.composition import Composition
from sdbatch.errors import SdbatchError

JOB_OPTIONS = ("-cn", "--config-name")
SHOW_OPTIONS = {"--cfg": ("job", "hydra", "all"), "-c": ("job", "hydra", "all")}


def complete(before: Sequence[str], word: str) -> list[str]:
    """Words that begin with `word`, as a whole; none where only files or free text can follow.

    What stands before is believed as far as it can be composed: a mistake there is no reason to be silent.
    """
    option = before[-1] if before else ""
    if option in SHOW_OPTIONS:
        return _starting(word, SHOW_OPTIONS[option])
    known = list(before[:-1]) if option in JOB_OPTIONS else list(before)
    try:
        asked = read_arguments(["--help", *known])  # with --help no word is refused
        overrides = [given for given in asked.overrides if "=" in given]
        composer = Composer(asked.config_name, asked.config_dir, overrides)
        if option in JOB_OPTIONS:
            return _starting(word, composer.jobs())
    except SdbatchError:
        composer, overrides = Composer(), []
    if {"--help", "-h"}.intersection(before):
        return _starting(word, [*composer.groups(), LAUNCHER])
    key, equals, value = word.partition("=")
    if equals and composer.is_group(key):
        return [f"{key}={text}" for text in _options(composer, key, value)]
    composition = _compose(composer, overrides)
    return [f"{key}={text}" for text in _starting(value, composition.choices(key))] if equals else _keys(composer, composition, word)


def _starting(word: str, candidates: Sequence[str]) -> list[str]:
    return sorted(candidate for candidate in candidates if candidate.startswith(word))


def _options(composer: Composer, group: str, value: str) -> list[str]:
    """Options after what is written of them: `sty`, `a,sty` in a sweep, `[a,sty` in a stack."""
    written, last = re.fullmatch(r"(.*[\[,\]])?(.*)", value, re.DOTALL).groups("")  # pyright: ignore[reportOptionalMemberAccess]
    named = set(re.split(r"[\[\],]", written))
    found = [f"{written}{option}" for option in _starting(last, composer.options(group)) if option not in named]
    # A stack is not over with a name: with two words that differ behind it, shells stop there.
    return [f"{found[0]}{end}" for end in "],"] if written.count("[") > written.count("]") and len(found) == 1 else found


def _compose(composer: Composer, overrides: Sequence[str]) -> Composition:
    """With the groups chosen so far; of a sweep over stacks, all that it names."""
    chosen: list[str] = []
    for given in overrides:
        key, _, value = given.partition("=")
        if composer.is_group(key):
            names = [name for name in re.split(r"[\[\],'\"\s]+", value) if name]
            chosen.append(f"{key}=[{','.join(dict.fromkeys(names))}]" if key in STACKS else f"{key}={names[0] if names else ''}")
    try:
        return composer.compose(chosen)
    except SdbatchError:
        return composer.compose(())


def _keys(composer: Composer, composition: Composition, word: str) -> list[str]:
    """Groups as `lora=`, keys as `steps=`; of a node its name with a dot, until the dot is typed."""
    path, dot, _ = word.rpartition(".")
    node: Any = composition.plain
    for part in path.split(".") if dot else ():
        node = cast(dict[str, Any], node).get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return []
    children = {f"{path}{dot}{name}": value for name, value in cast(dict[str, Any], node).items()}
    found = [f"{key}." if isinstance(value, dict) and value else f"{key}=" for key, value in children.items()]
    groups = [] if dot else [f"{group}=" for group in [*composer.groups(), LAUNCHER]]
    return _starting(word, list(dict.fromkeys([*groups, *found])))
