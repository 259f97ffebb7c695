"""Putting a sweep folder in order: rows taken back, small parts merged, damaged files put aside.

Parts are immutable, so rows move by a new part that is published and flushed before the old ones go. A crash between
the two leaves rows twice, which readers count once; doing it again ends the work. Only the driver that holds the
folder's lock may do this, and only on shards nobody is writing.
"""

# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and fills pyarrow.compute when it is imported.

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from sdbatch.errors import FolderError
from sdbatch.results.arrow import strings
from sdbatch.results.commit import part_bytes, read_part
from sdbatch.results.disk import explained, publish, sync_folders, write_temporary
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import Committed, committed

MERGED_ROWS = 20_000
"""Most rows of a merged part: a few dozen megabytes in memory."""


def recover(folder: SweepFolder, retry_faulty: bool = False) -> Committed:
    """Put in order what a crash or a user left behind, and return what is committed now: the start of every resume.

    Removes temporary files of dead processes, puts unreadable parts aside, and takes back the rows of images that are
    gone or cut short; of faulty ones too with `retry_faulty`. What is then in neither `done` nor `faulty` is to be made.
    """
    folder.remove_strays()
    found = committed(folder)
    set_aside(folder, list(found.unreadable))
    again = set(found.lost) | (found.faulty if retry_faulty else set[str]())
    drop_rows(folder, again)
    statuses = {image_id: status for image_id, status in found.statuses.items() if image_id not in again}
    return Committed(statuses, found.lost, found.unreadable)


def drop_rows(folder: SweepFolder, image_ids: Collection[str]) -> int:
    """Take back the commit of these images, so that they are made again; returns how many rows went.

    Called before anything is made again, it keeps one row per image for every reader, ours or not.
    """
    if not image_ids:
        return 0
    wanted = strings(image_ids)
    dropped = 0
    free = _free_blocks(folder)
    for part in folder.parts():
        ids = _read(part, ["image_id"])
        if ids is None:
            continue
        hit = pc.is_in(ids["image_id"], value_set=wanted)
        if not (count := pc.sum(hit).as_py()):
            continue
        table = _read(part)
        if table is None:
            set_aside(folder, [part])  # damaged in another column: none of its rows can be kept
            dropped += len(hit)
        else:
            _supersede(folder, [part], table.filter(pc.invert(hit)), free)
            dropped += count
    return dropped


def merge_parts(folder: SweepFolder, shard: int | None = None) -> int:
    """Merge the small parts of one shard, or of each, into large ones of that shard; returns how many parts went.

    A part is a block of some images: a long sweep leaves ten thousands, and each costs a millisecond to open.
    """
    gone = 0
    free = _free_blocks(folder)
    for number, parts in itertools.groupby(folder.parts(), key=lambda part: folder.place(part)[0]):
        if shard in (None, number):
            for run, table in _mergeable(parts):
                _supersede(folder, run, table, free)
                gone += len(run)
    return gone


def _mergeable(parts: Iterable[Path]) -> Iterator[tuple[list[Path], pa.Table]]:
    """Runs of parts that fit into one, with their rows. Parts that are damaged or of another version stay as they are."""
    run: list[Path] = []
    tables: list[pa.Table] = []
    for part in parts:
        table = _read(part)
        if table is None:
            continue
        if tables and (sum(map(len, tables)) + len(table) > MERGED_ROWS or not table.schema.equals(tables[0].schema)):
            if len(run) > 1:
                yield run, pa.concat_tables(tables)
            run, tables = [], []
        run.append(part)
        tables.append(table)
    if len(run) > 1:
        yield run, pa.concat_tables(tables)


def set_aside(folder: SweepFolder, files: Sequence[Path]) -> list[Path]:
    """Move damaged files into `damaged/`, where a user can look at them, and return where they are now."""
    if not files:
        return []
    aside = folder.damaged
    moved: list[Path] = []
    for file in files:
        with explained("cannot move", file):
            aside.mkdir(exist_ok=True)
            target = aside / file.name
            number = 1
            while target.exists():
                target = aside / f"{file.stem}-{number}{file.suffix}"
                number += 1
            moved.append(file.rename(target))
    sync_folders([aside, folder.path, *(file.parent for file in files)])
    return moved


def _supersede(folder: SweepFolder, old: Sequence[Path], table: pa.Table, free: dict[int, int]) -> None:
    """Put one part in the place of some others; none at all when the table is empty. Counts `free` up."""
    if table.num_rows:
        shard, _ = folder.place(old[0])
        final = folder.part(shard, free[shard])
        if not publish(write_temporary(final, part_bytes(table)), final):
            raise FolderError(f"{final}: another process writes to this sweep. Stop it, then run the same command again.")
        free[shard] += 1
        sync_folders([folder.rows])
    for part in old:
        with explained("cannot remove", part):
            part.unlink(missing_ok=True)
    sync_folders([folder.rows])


def _free_blocks(folder: SweepFolder) -> dict[int, int]:
    """The first free block of every shard, from one look at the folder."""
    free: dict[int, int] = {}
    for shard, block in map(folder.place, folder.parts()):
        free[shard] = max(free.get(shard, 0), block + 1)
    return free


def _read(part: Path, columns: Sequence[str] | None = None) -> pa.Table | None:
    """The rows of a part; None when it is damaged, so that nothing is merged or thrown away unread."""
    try:
        return read_part(part, columns)
    except (pa.ArrowException, OSError):
        return None
