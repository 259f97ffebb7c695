"""Temporary files whose writer is gone: known at once on this machine, and elsewhere by who holds claims."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from sdbatch.results.disk import TEMPORARY, Process, is_stray, owner_of
from sdbatch.results.folder import SweepFolder


def list_temporary(folder: SweepFolder) -> list[Path]:
    """Our temporary files that are there now, whoever writes or wrote them. Foreign files are none of ours."""
    tops = (folder.rows, folder.images, folder.blocks, folder.settled)
    walks = (walk for top in tops for walk in os.walk(top))  # a million names: Path.rglob is ten times as slow
    found = [Path(above, name) for above, _, names in walks for name in names if name.startswith(TEMPORARY)]
    return [path for path in [*folder.path.glob(f"{TEMPORARY}*"), *found] if owner_of(path.name)]


def remove_strays(folder: SweepFolder) -> int:
    """Remove the temporary files that dead processes of this machine left, and return how many."""
    return _remove([path for path in list_temporary(folder) if is_stray(path.name)])


def remove_abandoned(listed: Sequence[Path], living: Collection[Process]) -> int:
    """Of the files of `list_temporary`, listed before it was found out who is `living`, remove those of all others.

    In this order nothing is removed that is being written: its writer had a claim when it was listed, and has it still
    when the living are asked for, or has finished the file. No clock is asked.
    """
    return _remove([path for path in listed if _is_abandoned(owner_of(path.name), living)])


def _is_abandoned(owner: Process | None, living: Collection[Process]) -> bool:
    if owner is None:
        return False
    return not owner.is_alive if owner.is_here else owner not in living


def _remove(files: Sequence[Path]) -> int:
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)
