"""Putting a sweep folder in order: rows taken back, small parts merged, damaged files put aside.

Parts are immutable, so rows move by a new part that is published and flushed before the old ones go. A crash between
the two leaves rows twice, which readers count once; doing it again ends the work. Only the driver that holds the
folder's lock may do this, and only on shards nobody is writing.
"""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from sdbatch.errors import FolderError
from sdbatch.results.arrow import integers
from sdbatch.results.block import container_of, size_if_whole
from sdbatch.results.commit import part_bytes, read_part
from sdbatch.results.disk import explained, publish, sync_folders, write_temporary
from sdbatch.results.folder import LATER, SweepFolder
from sdbatch.results.ids import Ids, ids_of_text
from sdbatch.results.keys import read_keys
from sdbatch.results.reader import Index, committed, damage_of
from sdbatch.results.schema import OK, STATUSES
from sdbatch.results.stray import remove_strays

MERGED_ROWS = 20_000
"""Most rows of a merged part: a few dozen megabytes in memory."""


def recover(folder: SweepFolder, retry_faulty: bool = False) -> Index:
    """Put in order what a crash or a user left behind, and return what is committed now: the start of every resume.

    Removes temporary files of this machine's dead processes, puts unreadable parts aside, and takes back the rows of images that are
    gone or cut short; of faulty ones too with `retry_faulty`. What is then in neither `done` nor `faulty` is to be made.
    """
    remove_strays(folder)
    found = committed(folder)
    for part in found.unreadable:
        if damage_of(part) is None:
            raise FolderError(f"{part}: could not be read a moment ago, and can now. Run the same command again to go on.")
    blocks = {place[0] for path in found.lost.values() if (place := container_of(path))}
    broken = [folder.path / block for block in sorted(blocks)]
    folder.set_aside([*found.unreadable, *(block for block in broken if block.exists() and not size_if_whole(block))])
    again = found.gone | (found.status != STATUSES.index(OK) if retry_faulty else False)
    if not again.any():
        return found
    drop_rows(folder, Ids(found.ids[again]))
    return committed(folder)


def drop_rows(folder: SweepFolder, image_ids: Collection[str]) -> int:
    """Take back the commit of these images, so that they are made again; returns how many rows went.

    Called before anything is made again, it keeps one row per image for every reader, ours or not.
    """
    if not image_ids:
        return 0
    wanted = image_ids if isinstance(image_ids, Ids) else Ids(ids_of_text("".join(image_ids).encode()))
    dropped = 0
    for part in folder.parts():
        try:
            hit = wanted.contains(read_keys(part).ids)
        except (pa.ArrowException, OSError):
            continue
        if not (count := int(hit.sum())):
            continue
        table = _read(part)
        if table is None:
            folder.set_aside([part])  # damaged elsewhere: none of its rows can be kept
            dropped += len(hit)
        else:
            kept = integers(np.flatnonzero(~hit))
            supersede(folder, [part], table.take(kept))
            dropped += count
    return dropped


def merge_parts(folder: SweepFolder, shards: Container[int] | None = None) -> int:
    """Merge small neighbouring parts, of these shards or of all, into large ones; returns how many parts went.

    A part is a block of some images: a long sweep leaves ten thousands, and each costs a millisecond to open. Parts in
    different folders stay apart, and so does a shard that is not wanted from its neighbours.
    """
    gone = 0
    for run in iter_runs(folder, shards):
        for parts, table in _mergeable(run):
            supersede(folder, parts, table)
            gone += len(parts)
    return gone


def iter_runs(folder: SweepFolder, shards: Container[int] | None) -> Iterator[list[Path]]:
    """Neighbouring parts that may become one."""
    run: list[Path] = []
    for part in folder.parts():
        first, last = folder.span(part)
        is_wanted = shards is None or all(shard in shards for shard in range(first, last + 1))
        if run and (not is_wanted or part.parent != run[-1].parent):
            yield run
            run = []
        if is_wanted:
            run.append(part)
    if run:
        yield run


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


def supersede(folder: SweepFolder, old: Sequence[Path], table: pa.Table) -> None:
    """Put one part in the place of some neighbours; none at all when the table is empty."""
    if table.num_rows:
        # Above all blocks of the plan: a worker never finds its own place taken by something else.
        taken = max(folder.place(part)[1] for part in old)
        final = folder.merged_part(old[0], old[-1], max(LATER, taken) + 1)
        data = part_bytes(table)
        while not publish(write_temporary(final, data), final):
            taken = folder.place(final)[1]  # left by a crash, or of another of these shards
            final = folder.merged_part(old[0], old[-1], taken + 1)
        sync_folders([final.parent])
    for part in old:
        with explained("cannot remove", part):
            part.unlink(missing_ok=True)
    sync_folders({part.parent for part in old})


def _read(part: Path) -> pa.Table | None:
    """The rows of a part; None when it is damaged, so that nothing is merged or thrown away unread."""
    try:
        return read_part(part)
    except (pa.ArrowException, OSError):
        return None
