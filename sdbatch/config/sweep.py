"""The sweep of the command line and the `matrix` of YAML become axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from glob import escape, glob
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.types import Glob, IntervalSweep, Override, OverrideType, RangeSweep, Sweep, ValueType
from hydra.types import RunMode

from sdbatch.cell import STACKS
from sdbatch.config.compose import Composer
from sdbatch.config.composition import LITERAL_KEYS, Composition
from sdbatch.config.source import prompt_axis
from sdbatch.errors import ConfigError
from sdbatch.plan.axis import Axis, Draws, Interval, Space
from sdbatch.plan.tree import get, has

OPEN_KEYS = ("matrix.product", "matrix.zip", "sampler.options")
"""Dictionaries that take any key."""
HYDRA_KEYS = ("hydra.launcher", "hydra.sweeper", "hydra.searchpath", "hydra.mode")
"""What of Hydra's own configuration is read; groups such as `hydra/launcher` are checked where they are."""


@dataclass
class Request:
    """A command line, sorted: what is fixed, what is swept, what is taken literally."""

    fixed: list[str] = field(default_factory=list[str])
    """Overrides for Hydra's composition."""
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    """Fixed values of stack items, checked against each composed stack."""
    literals: dict[str, str] = field(default_factory=dict[str, str])
    """Prompts, which never pass through OmegaConf."""
    keys: set[str] = field(default_factory=set[str])
    """All keys that are given."""
    axes: list[Axis] = field(default_factory=list[Axis])
    intervals: list[Interval] = field(default_factory=list[Interval])


def read_request(composer: Composer, overrides: Sequence[str], mode: RunMode) -> Request:
    """Sort the overrides of a command line. Raises ConfigError.

    Without -m a prompt is data, commas and brackets included; with -m it is Hydra's sweep grammar, as every other key.
    """
    request = Request()
    parsed: list[str] = []
    for text in overrides:
        key, _, value = text.partition("=")
        if mode == RunMode.RUN and key in LITERAL_KEYS and value[:1] not in ("'", '"'):
            request.literals[key] = value
            request.keys.add(key)
        else:
            parsed.append(text)
    swept: set[str] = set()
    for override in composer.parse(parsed):
        if override.key_or_group in swept:
            raise ConfigError(f"{override.input_line}: {override.key_or_group} is swept before. Give it once.")
        if override.is_sweep_override():
            swept.add(override.key_or_group)
        request.keys.add(override.key_or_group)
        _sort(composer, request, override, mode)
    return request


def _sort(composer: Composer, request: Request, override: Override, mode: RunMode) -> None:
    key = override.key_or_group
    if key.startswith("hydra.") and not key.startswith(HYDRA_KEYS):
        raise ConfigError(f"{override.input_line}: has no effect in sdbatch. A sweep's folder is out=, its name name=.")
    value: Any = None if override.is_delete() else override.value()
    if isinstance(value, list) and any(isinstance(item, Sweep | Glob) for item in cast(list[Any], value)):
        raise ConfigError(f"{override.input_line}: a sweep cannot stand in brackets. Without them, {key} takes one value after the other.")
    if override.is_sweep_override():
        if mode == RunMode.RUN and not key.startswith("hydra"):
            raise ConfigError(f"{override.input_line}: this sweeps {key}. Add -m to run a sweep, or quote the value.")
        _add_sweep(composer, request, override)
    elif key in LITERAL_KEYS and not override.is_delete():
        request.literals[key] = value if isinstance(value, str) else override.get_value_string()
    elif key.count(".") >= 2 and key.partition(".")[0] in STACKS and not override.is_add():
        request.values[key] = value
    else:
        # Dictionaries of any keys: Hydra wants pluses to add one, people do not think of it as adding.
        is_open = key.startswith(OPEN_KEYS) and override.type == OverrideType.CHANGE
        request.fixed.append(f"++{override.input_line}" if is_open else str(override.input_line))


def _add_sweep(composer: Composer, request: Request, override: Override, beside: Path | None = None) -> None:
    key = override.get_key_element()
    sweep: Any = override.value()
    if override.value_type == ValueType.INTERVAL_SWEEP:
        interval = cast(IntervalSweep, sweep)
        request.intervals.append(Interval(key, float(cast(float, interval.start)), float(cast(float, interval.end))))
        return
    structural = composer.is_group(key) or key.startswith(("+", "~"))
    if isinstance(sweep, Glob) and not structural:
        request.axes.append(Axis.single(key, matching_files(key, sweep, beside)))
    elif structural:
        request.axes.append(Axis.single(key, [str(text) for text in override.sweep_string_iterator()]))
    else:
        request.axes.append(Axis.single(key, sweep_values(override)))


def matching_files(key: str, pattern: Glob, beside: Path | None) -> list[str]:
    """The files that a glob on a plain key names, such as `task.image=glob(photos/*.jpg)`, sorted. Raises ConfigError for none.

    Those beside the job that asks, if there are any, else those from where the program is run.
    """
    for folder in (Path() if beside is None else beside, Path()):
        found = _matching(pattern.include, folder) - _matching(pattern.exclude, folder)
        if files := sorted(path for path in found if Path(path).is_file()):
            return files
    raise ConfigError(f"{key}: no file matches {', '.join(pattern.include)}.")


def _matching(patterns: Sequence[str], folder: Path) -> set[str]:
    # Not by pathlib, whose patterns are all relative.
    whole = [str(Path(escape(str(folder))) / Path(pattern).expanduser()) for pattern in patterns]
    return {path for pattern in whole for path in glob(pattern, recursive=True)}  # noqa: PTH207


def sweep_values(override: Override) -> Sequence[Any]:
    """The values of a discrete sweep, in order. Integer ranges stay ranges: a million seeds cost nothing."""
    sweep: Any = override.value()
    if isinstance(sweep, RangeSweep) and not sweep.shuffle:
        start, stop, step = sweep.start, sweep.stop, sweep.step
        if all(isinstance(number, int) for number in (start, stop, step)):
            return range(cast(int, start), cast(int, stop), cast(int, step))
    return [_plain(value) for value in override.sweep_iterator()]


def _plain(value: Any) -> Any:
    """A parsed element without Hydra's quoting."""
    return getattr(value, "text", value)


def read_space(composer: Composer, request: Request, base: Composition) -> tuple[Space, list[dict[str, Any]]]:
    """All axes (command line, hydra.sweeper.params, matrix) and the excluded points. Raises ConfigError."""
    matrix = cast(dict[str, Any], base.plain["matrix"])
    axes = _without(_sweeper_axes(composer, base), request.keys) + list(request.axes)
    intervals = list(request.intervals)
    for key, values in _flat(matrix["product"]).items():
        axis = _matrix_axis(composer, f"matrix.product.{key}", key, values)
        if isinstance(axis, Axis):
            axes += _without([axis], _replaced(request, "product"))
        elif key not in _replaced(request, "product"):
            intervals.append(axis)
    if matrix["zip"]:
        axes += _without([_zip_axis(composer, _flat(matrix["zip"]))], _replaced(request, "zip"))
    if matrix["list"]:
        points = Axis.points([_group_strings(composer, item) for item in cast(list[dict[str, Any]], matrix["list"])])
        axes += _without([points], _replaced(request, "list"))
    if (prompts := prompt_axis(cast(dict[str, Any], matrix["prompts"]), composer.job_folder)) is not None:
        _check_columns(composer, base, prompts.keys)
        axes += _without([prompts], _replaced(request, "prompts"))
    for axis in axes:
        if not len(axis):
            raise ConfigError(f"{', '.join(axis.keys)}: this axis has no values, so there is nothing to make.")
    _refuse_double(axes, intervals)
    draws = Draws(int(matrix["draws"]), int(matrix["draw_seed"])) if matrix["draws"] is not None else None
    return Space(tuple(axes), tuple(intervals), draws), cast(list[dict[str, Any]], matrix["exclude"])


def _check_columns(composer: Composer, base: Composition, keys: Sequence[str]) -> None:
    """Raises ConfigError for a column of a prompt file that is no key; those of stacks are checked with the stack."""
    for key in keys:
        if not (composer.is_group(key) or has(base.plain, key) or key.partition(".")[0] in STACKS):
            raise ConfigError(
                f"matrix.prompts.file={get(base.plain, 'matrix.prompts.file')}: its column {key!r} is no key. Columns are keys of the "
                "configuration, such as prompt, negative_prompt, seed or lora.NAME.weight: rename it, or leave it out."
            )


def _flat(node: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Key paths to their values. `matrix.product.task.image=[...]` on a command line comes as dictionaries in each other."""
    found: dict[str, Any] = {}
    for key, values in sorted(node.items(), key=lambda item: isinstance(item[1], dict)):
        found |= _flat(cast(dict[str, Any], values), f"{path}{key}.") if isinstance(values, dict) and values else {f"{path}{key}": values}
    return found


def _sweeper_axes(composer: Composer, base: Composition) -> list[Axis]:
    """`hydra.sweeper.params`, Hydra's own way to write a sweep in YAML."""
    params = cast(dict[str, Any], (base.hydra.get("sweeper") or {}).get("params") or {})
    request = Request()
    for override in composer.parse([f"{key}={value}" for key, value in params.items()]):
        _add_sweep(composer, request, override) if override.is_sweep_override() else request.axes.append(
            Axis.single(override.get_key_element(), [override.value()])
        )
    return request.axes


def _replaced(request: Request, section: str) -> set[str]:
    """Keys that the command line takes from this section of a job's matrix; none from what it writes there itself."""
    own = f"matrix.{section}"
    written = {key.removeprefix(f"{own}.") for key in request.keys if key.startswith(f"{own}.")}
    return set[str]() if own in request.keys or (section == "prompts" and written) else request.keys - written


def _without(axes: Sequence[Axis], keys: Set[str]) -> list[Axis]:
    """The axes without these keys; those that have others go on with them."""
    kept = [[number for number, key in enumerate(axis.keys) if key not in keys] for axis in axes]
    return [
        Axis(tuple(axis.keys[place] for place in places), tuple(axis.columns[place] for place in places))
        for axis, places in zip(axes, kept, strict=True)
        if places
    ]


def _matrix_axis(composer: Composer, where: str, key: str, values: Any) -> Axis | Interval:
    if isinstance(values, str):
        override = composer.parse([f"{key}={values}"])[0]
        if not override.is_sweep_override():
            raise ConfigError(f"{where}: {values!r} is one value. Give a list, or a sweep such as range(0,64).")
        request = Request()
        _add_sweep(composer, request, override, composer.job_folder)
        return request.intervals[0] if request.intervals else request.axes[0]
    if not isinstance(values, list):
        raise ConfigError(f"{where}: give a list of values, or a sweep such as range(0,64); found {values!r}.")
    return Axis.points([_group_strings(composer, {key: value}) for value in cast(list[Any], values)])


def _zip_axis(composer: Composer, columns: Mapping[str, Any]) -> Axis:
    axes = [_matrix_axis(composer, f"matrix.zip.{key}", key, values) for key, values in columns.items()]
    lists = [axis for axis in axes if isinstance(axis, Axis)]
    lengths = {key: len(axis) for key, axis in zip(columns, lists, strict=False)}
    if len(lists) < len(axes) or len(set(lengths.values())) > 1:
        found = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise ConfigError(f"matrix.zip: all lists must have one length; {found}.")
    return Axis(tuple(axis.keys[0] for axis in lists), tuple(axis.columns[0] for axis in lists))


def _group_strings(composer: Composer, point: Mapping[str, Any]) -> dict[str, Any]:
    """Group choices as Hydra writes them (`[a,b]`); values as they are."""
    return {key: _choice(value) if composer.is_group(key) else value for key, value in point.items()}


def _choice(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(str(item) for item in cast(list[Any], value))}]"
    return "null" if value is None else str(value)


def _refuse_double(axes: Sequence[Axis], intervals: Sequence[Interval]) -> None:
    seen: set[str] = set()
    for key in [key for axis in axes for key in axis.keys] + [interval.key for interval in intervals]:
        if key in seen:
            raise ConfigError(f"{key} is swept twice. Sweep it on the command line or in matrix, once.")
        seen.add(key)
