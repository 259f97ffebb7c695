"""All claims of a sweep together: who is at work, who is dead, and beginning and ending with none."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sdbatch.errors import FolderError
from sdbatch.plan.store import PlanFile
from sdbatch.results.disk import explained, write_file
from sdbatch.results.folder import GROUP_SHARDS, SweepFolder
from sdbatch.results.stray import list_temporary, remove_abandoned
from sdbatch.run.claim import FINISHED, HEARTBEAT_S, Claims, claim_path, names_in
from sdbatch.run.lease import Owner, Signature, signature_of


def iter_owners(folder: Path) -> Iterator[tuple[int, Owner]]:
    """Every claim that is held, with its owner."""
    for group in sorted(name for name in names_in(folder) if name.isdigit()):
        for name in sorted(name for name in names_in(folder / group) if name.isdigit()):
            yield int(name), _owner(folder / group / name)


def drop_dead(folder: Path) -> list[int]:
    """Give back every shard whose owner was a process of this machine that is gone; others have to be watched for that."""
    dropped: list[int] = []
    for shard, owner in iter_owners(folder):
        if owner.is_dead:
            claim_path(folder, shard).unlink(missing_ok=True)
            dropped.append(shard)
    return dropped


def watch_alive(folder: Path, watch_s: float = 2 * HEARTBEAT_S, pause: Callable[[float], None] = time.sleep) -> list[Owner]:
    """Workers that are alive, each once: at once for this machine, by their heartbeats within `watch_s` for others."""
    alive: dict[Owner, None] = {}
    unknown: list[tuple[Path, Signature, Owner]] = []
    for shard, owner in iter_owners(folder):
        path = claim_path(folder, shard)
        if owner.is_elsewhere:
            with suppress(FileNotFoundError):
                unknown.append((path, signature_of(path.stat()), owner))
        elif not owner.is_dead:
            alive[owner] = None
    if unknown:
        pause(watch_s)
    for path, signature, owner in unknown:
        with suppress(FileNotFoundError):
            if signature_of(path.stat()) != signature:
                alive[owner] = None
    return list(alive)


def tell_and_wait(seconds: float) -> None:
    """The pause of `watch_alive`, for a verb that somebody waits for."""
    sys.stderr.write(f"watching for {seconds:.0f} s whether workers on other machines are alive\n")
    time.sleep(seconds)


@contextmanager
def alone(folder: SweepFolder) -> Generator[int]:
    """Hold the folder's lock, nobody at work, and rid of what dead workers of any machine left in the making: so many files.

    Raises: FolderError when workers are busy with the sweep, or another process holds the lock.
    """
    with folder.lock():
        temporary = list_temporary(folder)
        if busy := watch_alive(folder.claims, pause=tell_and_wait):
            count = "1 worker is" if len(busy) == 1 else f"{len(busy)} workers are"
            raise FolderError(f"{folder.path}: {count} busy with it. Wait for them, or stop them: sdbatch stop {folder.path}")
        yield remove_abandoned(temporary, ())


def is_finished(folder: SweepFolder) -> bool:
    """Whether every shard is done, as the claims say; also when they are gone because the sweep has ended."""
    if not folder.claims.is_dir():
        return True
    shards = PlanFile(folder.plan).shards
    claims = Claims(folder.claims, "")
    return sum(len(claims.read_group(group).done) for group in range(-(-shards // GROUP_SHARDS))) >= shards


def clear(folder: Path, finished: Sequence[int] = ()) -> None:
    """Start with no claims; `finished` shards, in rising order, need no work. Only while nobody works on the sweep."""
    with explained("cannot write in", folder):
        folder.mkdir(exist_ok=True)
        _empty(folder)
    if finished:
        ranges: list[list[int]] = []
        for shard in finished:
            if ranges and ranges[-1][1] == shard - 1:
                ranges[-1][1] = shard
            else:
                ranges.append([shard, shard])
        write_file(folder / FINISHED, json.dumps(ranges).encode())


def remove(folder: Path) -> None:
    """Remove the claims of a sweep that ended."""
    with suppress(OSError):
        _empty(folder)
        folder.rmdir()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            _empty(path)
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


def _owner(path: Path) -> Owner:
    try:
        return Owner.parse(path.read_text())
    except FileNotFoundError:
        return Owner("", None)
