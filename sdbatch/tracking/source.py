"""The way back: from a tracking store, an experiment and a filter to rows and images, for grids."""

from __future__ import annotations

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from sdbatch.errors import FolderError, did_you_mean
from sdbatch.results.arrow import iter_texts
from sdbatch.results.block import ImageReader, container_of
from sdbatch.results.disk import write_file
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import load_rows, read_index
from sdbatch.results.row import axes_of
from sdbatch.results.schema import SCHEMA
from sdbatch.tracking.cursor import knows_run
from sdbatch.tracking.shipment import ROWS, SAMPLES
from sdbatch.tracking.store import Store, open_store, quoted
from sdbatch.tracking.tally import WITHIN_GROUP, group_id
from sdbatch.tracking.target import Target, TrackingError

if TYPE_CHECKING:
    from mlflow.entities import Run

LATEST = "latest"
MOST_SWEEPS = 50
"""A filter may find so many sweeps; more are no comparison."""

MOST_ROWS = 100_000
"""Of a sweep that is compared: all are held in memory."""

UNUSED = ("config", "versions", "scheduler_options", "embeddings", "controlnets", "ip_adapters", "image_encoders")
COLUMNS = tuple(name for name in SCHEMA.names if name not in UNUSED and not name.endswith("_sha256"))
"""Rows without what no comparison shows and makes up most of their size."""

_IS_FILTER = re.compile(r"[=<>]|\b(?:like|ilike|in)\b", re.IGNORECASE)

Finder = Callable[[str, str], Path | None]
"""From an image id and the image's path in its sweep folder to a file on this machine."""


@dataclass(slots=True)
class Source:
    """Rows to compare, and their images. A context manager: leaving it removes what was downloaded."""

    table: pa.Table
    title: str
    """Names of the sweeps."""
    folders: tuple[Path, ...]
    """The sweep folders that are on this machine."""
    finders: dict[str, Finder] = field(default_factory=dict[str, Finder], repr=False)
    """By image id."""
    scratch: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)
    run_ids: tuple[str, ...] = ()
    """The sweeps' runs; none when read from a folder."""

    def path(self, image_id: str, image: str) -> Path | None:
        """The file of an image, downloaded where only the store has it; None when neither has."""
        finder = self.finders.get(image_id)
        return finder(image_id, image) if finder and image else None

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.scratch is not None:
            self.scratch.cleanup()


def read_folder(folder: Path) -> Source:
    """The rows and images of one sweep folder, without a tracking store.

    Raises: FolderError when it is none.
    """
    sweep = SweepFolder(folder)
    if not sweep.is_sweep:
        raise FolderError(f"{folder}: not a sweep folder (no sweep.json, no plan.parquet). Give the folder that a sweep wrote, its out=.")
    _refuse_large(sweep)
    table = load_rows(sweep, COLUMNS)
    title = str(sweep.read_about().get("name") or folder.name)
    return Source(table, title, (folder.absolute(),), _finders(table, _local_finder(folder.absolute(), table)))


def read_runs(target: Target, which: str = LATEST) -> Source:
    """The rows of the sweeps that `which` names: `latest`, the name of a sweep, or an MLflow search filter.

    A filter that finds child runs, such as `params.sampler = 'ddim'`, gives their rows only. Rows and images come from
    the sweep folder where it is on this machine, otherwise from the run's artifacts, which have a few images per group.

    Raises: TrackingError when the store does not answer or has no such sweep.
    """
    store = open_store(target)
    chosen = _choose(store, which)
    scratch = tempfile.TemporaryDirectory(prefix="sdbatch-")
    parts: list[_Part] = []
    try:
        for parent, groups in chosen.values():
            parts.append(_read_run(store, parent, groups, Path(scratch.name)))
    except BaseException:
        scratch.cleanup()
        raise
    finders: dict[str, Finder] = {}
    for part in reversed(parts):
        finders |= _finders(part.table, part.finder)
    names = dict.fromkeys(parent.info.run_name or "sweep" for parent, _ in chosen.values())
    folders = tuple(part.folder for part in parts if part.folder)
    return Source(pa.concat_tables([part.table for part in parts]), ", ".join(names), folders, finders, scratch, tuple(chosen))


@dataclass(frozen=True, slots=True)
class _Part:
    """What one run adds to a comparison."""

    table: pa.Table
    folder: Path | None
    finder: Finder


_Chosen = dict[str, tuple["Run", set[str] | None]]
"""By run id: the sweep's run, and the groups to take of it (None: all)."""


def _choose(store: Store, which: str) -> _Chosen:
    """The sweeps that were asked for, latest first."""
    if _IS_FILTER.search(which) is None:
        named = "" if which == LATEST else f" and tags.`sdbatch.sweep` = {quoted(which)}"
        found = store.find_runs(f"tags.`sdbatch.role` = 'sweep'{named}", most=1)
    else:
        found = store.find_runs(which)
    chosen: _Chosen = {}
    for run in found:
        parent_id = run.data.tags.get("mlflow.parentRunId")
        if "sdbatch.role" not in run.data.tags:
            continue
        if parent_id is None:
            chosen[run.info.run_id] = (run, None)
            continue
        if parent_id not in chosen:
            chosen[parent_id] = (store.call(store.client.get_run, parent_id), set())
        groups = chosen[parent_id][1]
        if groups is not None:
            groups.add(run.data.tags.get("sdbatch.group", ""))
    if not chosen:
        raise TrackingError(_say_nothing_found(store, which))
    if len(chosen) > MOST_SWEEPS:
        raise TrackingError(f"{which!r} finds {len(chosen)} sweeps, more than the {MOST_SWEEPS} of one comparison. Narrow the filter.")
    return chosen


def _say_nothing_found(store: Store, which: str) -> str:
    names = {run.data.tags.get("sdbatch.sweep", "") for run in store.find_runs("tags.`sdbatch.role` = 'sweep'", most=1000)}
    where = f"experiment {store.target.experiment!r} at {store.target.name}"
    if not names:
        return f"{where} has no sweeps yet. `sdbatch track OUT` sends one."
    if _IS_FILTER.search(which):
        return f"the filter {which!r} finds no sweep in {where}, which has {len(names)}. {did_you_mean('', names)}"
    return f"there is no sweep {which!r} in {where}. {did_you_mean(which, names)}"


def _read_run(store: Store, parent: Run, groups: set[str] | None, scratch: Path) -> _Part:
    folder = _local_folder(parent)
    if folder is not None:
        _refuse_large(SweepFolder(folder))
        table = load_rows(SweepFolder(folder), COLUMNS)
        finder = _local_finder(folder, table)
    else:
        place = scratch / parent.info.run_id
        place.mkdir()
        file = store.call(store.client.download_artifacts, parent.info.run_id, ROWS, str(place))
        table = pq.read_table(file, columns=list(COLUMNS)).cast(pa.schema([SCHEMA.field(name) for name in COLUMNS]))
        finder = _remote_finder(store, parent, table, place)
    if groups is not None:
        kept = [number for number, row in enumerate(table.select(["axes"]).to_pylist()) if _group_of(row) in groups]
        table = table.take(kept)
    return _Part(table, folder, finder)


def _local_folder(parent: Run) -> Path | None:
    """The run's sweep folder, when it is on this machine and still holds that sweep."""
    folder = Path(parent.data.tags.get("sdbatch.out") or "/nonexistent")
    sweep = SweepFolder(folder)
    if not sweep.is_sweep or not sweep.parts():
        return None
    same_plan = sweep.read_about().get("plan_id", "") == parent.data.tags.get("sdbatch.plan_id", "")
    return folder if same_plan or knows_run(folder, parent.info.run_id) else None


def _group_of(row: dict[str, Any]) -> str:
    return group_id({key: value for key, value in axes_of(row).items() if key not in WITHIN_GROUP})


def _refuse_large(sweep: SweepFolder) -> None:
    if (count := len(read_index(sweep))) > MOST_ROWS:
        raise FolderError(
            f"{sweep.path}: holds {count} images, and a comparison takes at most {MOST_ROWS}. "
            f"Compare some of them: pandas.read_parquet('{sweep.rows}', filters=...), or a smaller sweep."
        )


def _finders(table: pa.Table, finder: Finder) -> dict[str, Finder]:
    return dict.fromkeys(cast(list[str], table["image_id"].to_pylist()), finder)


def _local_finder(folder: Path, table: pa.Table) -> Finder:
    packed = _Unpacking(SweepFolder(folder), table)

    def find(image_id: str, image: str) -> Path | None:
        if container_of(image):
            return packed.unpack(image_id)
        path = folder / image
        # A row is data from elsewhere: it must not lead out of its folder.
        return path if path.is_file() and path.resolve().is_relative_to(folder.resolve()) else None

    return find


class _Unpacking:
    """Images out of their blocks, into files that a page can show."""

    def __init__(self, folder: SweepFolder, table: pa.Table) -> None:
        self._folder = folder
        self._table = table
        self._reader = ImageReader(folder)
        self._numbers: dict[str, int] | None = None

    def unpack(self, image_id: str) -> Path | None:
        """The file of an image, written when it is not there; None when its block is not to be read."""
        if self._numbers is None:
            self._numbers = {found: number for number, found in enumerate(iter_texts(self._table["image_id"]))}
        path = self._folder.unpacked / image_id[:2] / f"{image_id}.png"
        if not path.is_file():
            row = self._table.slice(self._numbers[image_id], 1).select(["image", "image_bytes", "image_offset"]).to_pylist()[0]
            try:
                data = self._reader.read(row)
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError:
                return None
            write_file(path, data)
        return path


def _remote_finder(store: Store, parent: Run, table: pa.Table, place: Path) -> Finder:
    """Looks among the sample images of the sweep's runs; lists each run's samples once."""
    children = store.find_runs(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    by_group = {run.data.tags.get("sdbatch.group", ""): run.info.run_id for run in children}
    rows = table.select(["image_id", "axes"]).to_pylist()
    owners = {row["image_id"]: by_group.get(_group_of(row), parent.info.run_id) for row in rows}
    listed: dict[str, set[str]] = {}

    def find(image_id: str, image: str) -> Path | None:
        run_id, name = owners[image_id], f"{SAMPLES}/{PurePosixPath(image).name}"
        if run_id not in listed:
            listed[run_id] = {file.path for file in store.call(store.client.list_artifacts, run_id, SAMPLES)}
        if name not in listed[run_id]:
            return None
        return Path(store.call(store.client.download_artifacts, run_id, name, str(place)))

    return find
