"""Who works on which shard: one small file per shard, made atomically, so that any number of workers share a plan.

A claim is a lease: its owner touches it every few seconds (the heartbeat), and a worker that sees it unchanged for long
enough takes it over. Age is judged by the observer's own monotonic clock, so no two clocks need to agree, and by
nothing but create, rename, link and stat, so network folders will do. A claim only saves double work: what two workers
make is committed once, by the results layer.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sdbatch.results.disk import Process, explained, temporary_name
from sdbatch.results.folder import GROUP_SHARDS
from sdbatch.run.beside import repeating
from sdbatch.run.lease import Clock, Observer, Owner, Seen, create, signature_of

FINISHED = "finished.json"
"""Ranges of shards that needed no work when the run began."""
HEARTBEAT_S = 15.0
LEASE_S = 120.0
"""A claim unchanged for so long has no owner any more: eight heartbeats, and more than network file systems cache."""


@dataclass(frozen=True, slots=True)
class GroupState:
    """The shards of one group that have a file."""

    held: frozenset[int]
    done: frozenset[int]


class Claims:
    """The claims of a sweep folder, as one worker sees them. Safe from several threads."""

    def __init__(self, folder: Path, worker: str, lease_s: float = LEASE_S, clock: Clock = time.monotonic) -> None:
        self.folder = folder
        self.worker = worker
        self.lease_s = lease_s
        self._observer = Observer(clock)
        self._name = str(Owner(worker, Process.own())).encode()
        self._held: dict[int, int] = {}
        """Shard -> open file of its claim, which stays ours to touch even when its name was taken over."""
        self._lock = threading.Lock()

    def _open(self, shard: int) -> Path:
        return claim_path(self.folder, shard)

    def _done(self, shard: int) -> Path:
        return self.folder / f"{shard // GROUP_SHARDS:04d}/{shard:06d}.done"

    @property
    def are_open(self) -> bool:
        """Whether the sweep goes on: its claims go when it has ended."""
        return self.folder.is_dir()

    def take(self, shard: int) -> bool:
        """Claim a shard that is free. False when it is held or finished, and when the sweep has ended."""
        with explained("cannot claim work in", self.folder):
            try:
                handle = self._write(self._open(shard))
            except (FileExistsError, FileNotFoundError):
                return False
            return self._keep(shard, handle)

    def _write(self, path: Path) -> int:
        handle = create(path)
        os.write(handle, self._name)
        return handle

    def _keep(self, shard: int, handle: int) -> bool:
        with self._lock:
            self._held[shard] = handle
        # Looked at last: a shard may be finished between a look and the claim, but never after it.
        if self._done(shard).exists():
            self.drop(shard)
            return False
        return True

    def take_over(self, shard: int) -> bool:
        """Claim a shard whose owner is dead or has not touched it for the length of a lease, as seen by repeated calls."""
        path = self._open(shard)
        with explained("cannot claim work in", self.folder):
            seen = self._observer.look(path)
            if seen is None:
                return self.take(shard)
            if not self._is_stale(seen) or not self._enter(path):
                return False
            try:
                if signature_of(path.stat()) != seen.signature:
                    return False  # another took it over since the look, or its owner came back
                aside = path.with_name(temporary_name(path.name))
                handle = self._write(aside)
                aside.replace(path)  # in one step: there is no moment in which the shard looks free
            except FileNotFoundError:
                return False
            finally:
                _door(path).unlink(missing_ok=True)
            return self._keep(shard, handle)

    def _enter(self, path: Path) -> bool:
        """Become the only one who takes over this claim now. The door of one who died behind it is opened after a lease."""
        door = _door(path)
        try:
            os.close(create(door))
        except FileExistsError:
            seen = self._observer.look(door)
            if seen is not None and self._observer.age_s(seen) >= self.lease_s:
                door.unlink(missing_ok=True)
            return False
        return True

    def _is_stale(self, seen: Seen) -> bool:
        return seen.owner.is_dead or self._observer.age_s(seen) >= self.lease_s

    def is_waited_for(self, shard: int) -> bool:
        """Whether it takes a wait to know that the owner lives: no, for a process of this machine that does."""
        seen = self._observer.look(self._open(shard))
        return seen is not None and seen.owner.is_elsewhere

    def beat(self) -> list[int]:
        """Touch all claims that are held; returns the shards that others have taken over meanwhile."""
        with self._lock:
            # Copies, and no lock while the file system takes its time: the worker asks what it holds between batches.
            held = {shard: os.dup(handle) for shard, handle in self._held.items()}
        lost: list[int] = []
        for shard, copy in held.items():
            inode = os.fstat(copy).st_ino
            if self._touch(shard, copy):
                continue
            with self._lock:
                handle = self._held.get(shard)
                # Else it was finished or given back in this moment, and perhaps taken again.
                if handle is not None and os.fstat(handle).st_ino == inode:
                    lost.append(shard)
                    os.close(self._held.pop(shard))
        return lost

    def _touch(self, shard: int, handle: int) -> bool:
        """Whether the claim is still ours; closes the handle."""
        try:
            os.utime(handle)
            return self._open(shard).stat().st_ino == os.fstat(handle).st_ino
        except FileNotFoundError:
            return False
        except OSError as error:
            # A network file system that stumbles: the next beat may get through.
            return error.errno != errno.ESTALE
        finally:
            os.close(handle)

    def holds(self, shard: int) -> bool:
        """Whether the shard is this worker's, as of the last heartbeat."""
        with self._lock:
            return shard in self._held

    def finish(self, shard: int) -> None:
        """All cells of the shard are committed. True whoever holds the claim now."""
        with explained("cannot finish work in", self.folder):
            try:
                self._open(shard).replace(self._done(shard))
            except FileNotFoundError:
                with suppress(FileNotFoundError):  # the sweep has ended: who closed it saw the rows
                    os.close(os.open(self._done(shard), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
        self._forget(shard)

    def drop(self, shard: int) -> None:
        """Give a shard back unfinished, unless another has it by now."""
        with suppress(OSError):
            with self._lock:
                handle = self._held.get(shard)
                is_ours = handle is not None and os.fstat(handle).st_ino == self._open(shard).stat().st_ino
            if is_ours:
                self._open(shard).unlink(missing_ok=True)
        self._forget(shard)

    def _forget(self, shard: int) -> None:
        with self._lock:
            handle = self._held.pop(shard, None)
        if handle is not None:
            os.close(handle)

    def read_group(self, group: int) -> GroupState:
        """The state of one group of shards, by one look at its folder."""
        held: set[int] = set()
        done: set[int] = set()
        with explained("cannot read", self.folder):
            names = names_in(self.folder / f"{group:04d}")
        for name in names:
            stem, dot, _ = name.partition(".")
            if stem.isdigit():
                (done if dot else held).add(int(stem))
        done |= self._finished.intersection(range(group * GROUP_SHARDS, (group + 1) * GROUP_SHARDS))
        return GroupState(frozenset(held - done), frozenset(done))

    @cached_property
    def _finished(self) -> frozenset[int]:
        try:
            ranges = json.loads((self.folder / FINISHED).read_text())
        except FileNotFoundError:
            ranges = []
        return frozenset(shard for first, last in ranges for shard in range(first, last + 1))

    def beating(self, every_s: float = HEARTBEAT_S) -> AbstractContextManager[None]:
        """Touch the held claims from a thread of its own until the block is left."""
        return repeating(self.beat, every_s, "sdbatch-heartbeat")


def claim_path(folder: Path, shard: int) -> Path:
    """The file that says who holds a shard."""
    return folder / f"{shard // GROUP_SHARDS:04d}/{shard:06d}"


def names_in(folder: Path) -> list[str]:
    """Of the files and folders in a folder, which need not be there."""
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are all that is needed
    except (FileNotFoundError, NotADirectoryError):
        return []


def _door(path: Path) -> Path:
    """Held by who takes over a claim, for that moment."""
    return path.with_name(f".taking-{path.name}")
