"""Turn Hydra's and OmegaConf's errors into one clear sentence with the nearest valid names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Protocol

from hydra.errors import MissingConfigException, OverrideParseException

from sdbatch.cell import STACKS
from sdbatch.config import schema, weight
from sdbatch.config.composition import Composition, plainly
from sdbatch.config.schema import FILE_GROUPS
from sdbatch.errors import SdbatchError, did_you_mean
from sdbatch.families.samplers import names_of
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.elsewhere import tell_elsewhere

KEY = re.compile(r"full_key: (\S+)")
IN_FILE = re.compile(r"In '(.+?)': \w+ raised while composing config:\n(.+)\n +full_key: (\S+)")
GLOBAL_GROUPS = ("model", "experiment")
"""Groups whose options set keys anywhere."""
CLASSES = {name: kind for module in (schema, weight) for name, kind in vars(module).items() if is_dataclass(kind)}
"""What OmegaConf calls a node's type in its errors."""


class Vocabulary(Protocol):
    """What could have been written (`sdbatch.config.compose.Composer`)."""

    catalog: Catalog

    def is_group(self, key: str) -> bool:
        """Whether the key chooses an option."""
        ...

    def options(self, group: str) -> list[str]:
        """The options of a group."""
        ...

    def jobs(self) -> list[str]:
        """What `-cn` can name."""
        ...

    def groups(self) -> list[str]:
        """The groups at the root."""
        ...

    def compose(self, overrides: Sequence[str]) -> Composition:
        """Compose with these overrides."""
        ...


def explain(error: Exception, vocabulary: Vocabulary, overrides: Sequence[str] = ()) -> str:
    """One message: what was asked, what was found, what to do."""
    cause = error.__cause__ if error.__cause__ is not None else error
    text = str(error)
    if isinstance(error, MissingConfigException):
        return _missing_option(text, vocabulary)
    if isinstance(error, OverrideParseException):
        override = error.override
        return f"{override}: not in Hydra's override grammar. Quote text with commas, brackets or colons twice: {_quoted(override)}"
    if match := re.search(r"Ambiguous value for argument '(.+)'", text):
        key = match[1].partition("=")[0]
        return f"{match[1]}: this sweeps {key}, where one value is needed. Text with commas is quoted twice: {_quoted(match[1])}"
    if match := re.search(r"Could not override '(.+?)'", text):
        return _unknown_key(match[1], vocabulary, overrides)
    if "Could not find" in text or "No match in the defaults list" in text:
        return text.splitlines()[0]
    if match := IN_FILE.match(text):
        return _wrong_file(match[1], match[2], match[3])
    if match := KEY.search(str(cause)):
        return _wrong_value(match[1], str(cause), vocabulary)
    return "\n".join(dict.fromkeys(line for line in (text.splitlines()[0] if text else "", str(cause).splitlines()[0]) if line))


def _wrong_value(key: str, text: str, vocabulary: Vocabulary) -> str:
    """What OmegaConf says of a value that a key does not take."""
    if key in STACKS and "ListConfig" in text:
        # Without a single file there is no such group, so Hydra takes the stack for a value.
        return f"{key}: there is no {key} file in the models folders. Put one into {vocabulary.catalog.target(key)}."
    # What a resolver of ours says stands after OmegaConf's own words.
    said = plainly(text).rpartition("ConfigError raised while resolving interpolation: ")[2]
    if node := re.match(r"Invalid type assigned: \w+ is not a subclass of (\w+)\.", said):
        return f"{key}: takes no value itself; its keys are {', '.join(f'{key}.{field.name}' for field in fields(CLASSES[node[1]]))}."
    if missing := re.match(r"Interpolation key '(.+?)' not found", said):
        named = f"${{{missing[1]}}}"
        return f"{key}: {named} refers to a key that there is not. Where the characters themselves are meant: \\{named}"
    return f"{key}: {said}"


def _wrong_file(name: str, text: str, key: str) -> str:
    """What is wrong in a YAML file."""
    group, _, option = name.rpartition("/")
    package = f"{group}.{option}" if group in STACKS else "_global_"
    if group in (*STACKS, *GLOBAL_GROUPS) and key.partition(".")[0] == group and not key.startswith(f"{package}."):
        return f"{name}.yaml: {key}: there is no such key. The file's first line must be: # @package {package}"
    if match := re.match(r"Key '.*' not in '(\w+)'", text):
        parent = key.rpartition(".")[0]
        names = [f"{parent}.{field.name}".lstrip(".") for field in fields(CLASSES[match[1]])] if match[1] in CLASSES else []
        text = f"there is no such key. {did_you_mean(key, names)}"
    return f"{name}.yaml: {key}: {plainly(text)}"


def _quoted(override: str) -> str:
    key, _, value = override.partition("=")
    text = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    escaped = text.replace('"', '\\"')
    return shlex.quote(f'{key}="{escaped}"')


def _missing_option(text: str, vocabulary: Vocabulary) -> str:
    if match := re.search(r"Could not (?:find|load) '(.+?)'", text):
        group, _, option = match[1].rpartition("/")
        if group and vocabulary.is_group(group):
            told = _known_elsewhere(group, option, vocabulary) or did_you_mean(option, vocabulary.options(group))
            return f"{group}={option}: there is no such {group}. {told}"
        if group := next((name for name in FILE_GROUPS if match[1].startswith(f"{name}/")), None):
            path, name = match[1].removeprefix(f"{group}/"), f"{group}.NAME" if group in STACKS else group
            return f"{group}={path}: there is no such {group}. A file by its path is {name}.file={path}."
        return f"{match[1]}: no such option or configuration. Groups: {', '.join(vocabulary.groups())}."
    if match := re.search(r"Cannot find primary config '(.+?)'", text):
        return f"-cn {match[1]}: no such job. {did_you_mean(match[1], vocabulary.jobs())} Your own are found in the folder given by -cd."
    return text.splitlines()[0]


def _known_elsewhere(group: str, option: str, vocabulary: Vocabulary) -> str:
    """What a word is that is no option here: another kind's file, or a sampler by A1111's or diffusers' name."""
    if group == "sampler" and (names := names_of(option)):
        return f"It is sampler={' or '.join(names)} here."
    return tell_elsewhere(vocabulary.catalog, group, option) if group in FILE_GROUPS else ""


def _unknown_key(key: str, vocabulary: Vocabulary, overrides: Sequence[str]) -> str:
    """Compose the options without their values to know what is there."""
    options = [override for override in overrides if vocabulary.is_group(override.partition("=")[0])]
    try:
        return vocabulary.compose(options).unknown(key)
    except SdbatchError:
        return f"{key}: there is no such key."
