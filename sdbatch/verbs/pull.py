"""`sdbatch pull MODEL|GROUP=NAME|KEY=VALUE ...`: fetch what a configuration needs from the Hugging Face Hub, ahead of a run.

sdbatch pull dreamshaper sdxl_base                        the files of two models
sdbatch pull vae=sdxl_vae 'embedding=[EasyNegative]'      of any group
sdbatch pull checkpoint.repo=stabilityai/sdxl-turbo       a repository, into the Hub's cache
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdbatch.errors import ConfigError, SdbatchError


def main(arguments: Sequence[str]) -> int:
    """Fetch. Returns 0 when all that was asked for is there, 1 otherwise."""
    if not arguments:
        raise ConfigError("give what to fetch: sdbatch pull MODEL|GROUP=NAME|KEY=VALUE ...")
    from sdbatch.config.compose import Composer
    from sdbatch.plan.pin import file_nodes

    overrides = [word for word in arguments if "=" in word]
    composer = Composer(overrides=overrides)
    done: set[tuple[str, str]] = set()
    code = 0
    for words in _configurations(composer, [word for word in arguments if "=" not in word], overrides):
        for key, group, node in file_nodes(composer.compose(words).plain):
            if (group, str(node["file"])) in done:
                continue
            done.add((group, str(node["file"])))
            try:
                told = _pull(composer.catalog, key, group, node)
            except SdbatchError as error:
                sys.stderr.write(f"sdbatch: {key}: {error}\n")
                code = 1
                continue
            sys.stdout.write(f"{told}\n" if told else "")
    return code


def _configurations(composer: Any, models: Sequence[str], overrides: Sequence[str]) -> Iterator[list[str]]:
    """The override lists of every model named, and of every value of a sweep."""
    choices: list[list[str]] = []
    for override in composer.parse(overrides):
        if override.is_sweep_override():
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([override.input_line])
    for words in itertools.product([f"model={name}" for name in models] or [""], *choices):
        yield [word for word in words if word]


def _pull(catalog: Any, key: str, group: str, node: Mapping[str, Any]) -> str | None:
    """Fetch one file, or say that it is there; None for what has no source to fetch from. Raises SdbatchError."""
    from sdbatch.hub import download, snapshot
    from sdbatch.hub.address import is_address, read_address, to_address
    from sdbatch.plan.pin import tell_absent

    asked, preset = node["file"], node.get("preset")
    if asked is not None and is_address(asked):
        address = read_address(asked)
        path = snapshot.fetch(address)
        return f"{key}: {snapshot.to_name(address, path)} is in the cache ({path})"
    if preset is None:
        return None
    if asked != preset["name"] or asked in catalog.options(group):
        return f"{key}: {preset['name']} is here: {catalog.find(group, asked)}"
    if not preset["repo"]:
        raise SdbatchError(tell_absent(group, preset, catalog))
    address = read_address(to_address(preset["repo"], preset["revision"]))
    target: Path = catalog.target(group) / preset["known"][0]
    sys.stderr.write(f"{key}: fetching {address.file} from {address.page}\n")
    return f"{key}: {preset['name']} is here: {download.fetch_file(address, target, preset['sha256'])}"
