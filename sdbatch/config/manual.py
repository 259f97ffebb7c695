"""What the schema says of its keys: the line below each field, for `sdbatch --help`."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeGuard, get_type_hints

from omegaconf import MISSING

from sdbatch.cell import STACKS
from sdbatch.config.launcher import LAUNCHERS
from sdbatch.config.schema import Config
from sdbatch.config.weight import FileConf

HIDDEN = ("preset", "name")
"""Keys of a group that its YAML files set, not people."""


class Key(NamedTuple):
    """A key that people type."""

    path: str
    """`NAME` in it stands for an item of a stack."""
    default: str
    about: str


def launcher_keys() -> dict[str, list[Key]]:
    """The keys of each launcher."""
    return {name: list(_keys(kind, "hydra.launcher.")) for name, kind in LAUNCHERS.items()}


def group_keys(group: str) -> list[Key]:
    """The keys of a group; none for one that only chooses others, such as `experiment`."""
    hint: Any = get_type_hints(Config).get(group)
    if group in STACKS:
        return list(_keys(hint.__args__[1], f"{group}.NAME."))
    return list(_keys(hint, f"{group}.")) if _is_class(hint) else []


def plain_keys() -> list[Key]:
    """The keys at the root."""
    groups = [name for name, hint in get_type_hints(Config).items() if name in STACKS or _is_class(hint)]
    return list(_keys(Config, "", hidden=groups))


def _keys(kind: type, prefix: str, hidden: Sequence[str] = HIDDEN) -> Iterator[Key]:
    hints, about = get_type_hints(kind), _about(kind)
    late = [item.name for item in fields(FileConf)]
    for item in sorted(fields(kind), key=lambda item: item.name in late):
        hint = hints[item.name]
        if item.name in hidden:
            continue
        if _is_class(hint):
            yield from _keys(hint, f"{prefix}{item.name}.")
        else:
            default = item.default if item.default_factory is NO_DEFAULT else item.default_factory()
            yield Key(f"{prefix}{item.name}", _spelled(default), _told(about.get(item.name), hint))


def _is_class(hint: Any) -> TypeGuard[type]:
    return isinstance(hint, type) and is_dataclass(hint)


def _told(about: str | None, hint: Any) -> str:
    """The line below the field; of a key that takes few words, these too."""
    kind = next((kind for kind in (hint, *getattr(hint, "__args__", ())) if isinstance(kind, type) and issubclass(kind, Enum)), None)
    if kind is None:
        return about or ""
    return f"{about or inspect.getdoc(kind)} One of: {', '.join(item.name for item in kind)}."


def _spelled(value: Any) -> str:
    match value:
        case None:
            return ""
        case Enum():
            return value.name
        case bool():
            return str(value).lower()
        case _:
            return "" if value in (MISSING, [], {}) else str(value)


def _about(kind: type) -> dict[str, str]:
    """Field -> the first line of the text below it, in the class or those it extends."""
    found: dict[str, str] = {}
    for own in reversed(kind.__mro__[:-1]):
        body = ast.parse(inspect.getsource(own)).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(line))):
                    found[name] = line.strip().splitlines()[0].replace("`", "")
                case _:
                    pass
    return found
