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
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sdbatch.results.disk import Process, explained, temporary_name, write_file
from sdbatch.results.folder import GROUP_SHARDS

FINISHED = "finished.json"
"""Ranges of shards that needed no work when the run began."""
HEARTBEAT_S = 15.0
LEASE_S = 120.0
"""A claim unchanged for so long has no owner any more: eight heartbeats, and more than network file systems cache."""

Clock = Callable[[], float]
_Signature = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a claim, as its file says."""

    worker: str
    process: Process | None
    """None: the file says nothing (yet)."""

    def __str__(self) -> str:
        return f"{self.worker}\n{self.process or ''}\n"

    @staticmethod
    def parse(text: str) -> Owner:
        """The owner that a claim names; one without a process for a claim that was cut short."""
        worker, _, rest = text.partition("\n")
        return Owner(worker, Process.parse(rest.strip()))


@dataclass(slots=True)
class _Seen:
    """A claim of another worker as it was last seen."""

    signature: _Signature
    owner: Owner
    since_s: float
    """When it was first seen so, by this worker's clock."""


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
        self._clock = clock
        self._name = str(Owner(worker, Process.own())).encode()
        self._held: dict[int, int] = {}
        """Shard -> open file of its claim, which stays ours to touch even when its name was taken over."""
        self._seen: dict[str, _Seen] = {}
        self._lock = threading.Lock()

    def _open(self, shard: int) -> Path:
        return self.folder / f"{shard // GROUP_SHARDS:04d}/{shard:06d}"

    def _done(self, shard: int) -> Path:
        return self.folder / f"{shard // GROUP_SHARDS:04d}/{shard:06d}.done"

    def take(self, shard: int) -> bool:
        """Claim a shard that is free. False when it is held or finished."""
        with explained("cannot claim work in", self.folder):
            try:
                handle = self._write(self._open(shard))
            except FileExistsError:
                return False
            return self._keep(shard, handle)

    def _write(self, path: Path) -> int:
        handle = _create(path)
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
            seen = self._observe(path)
            if seen is None:
                return self.take(shard)
            if not self._is_stale(seen) or not self._enter(path):
                return False
            try:
                if _signature(path.stat()) != seen.signature:
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
            os.close(_create(door))
        except FileExistsError:
            seen = self._observe(door)
            if seen is not None and self._clock() - seen.since_s >= self.lease_s:
                door.unlink(missing_ok=True)
            return False
        return True

    def _observe(self, path: Path) -> _Seen | None:
        """The file of a claim as it is, with the time since it is so; None when there is none."""
        try:
            signature = _signature(path.stat())
            known = self._seen.get(path.name)
            if known is None or known.signature != signature:
                known = self._seen[path.name] = _Seen(signature, Owner.parse(path.read_text()), self._clock())
        except FileNotFoundError:
            self._seen.pop(path.name, None)
            return None
        return known

    def _is_stale(self, seen: _Seen) -> bool:
        return _is_dead(seen.owner) or self._clock() - seen.since_s >= self.lease_s

    def is_waited_for(self, shard: int) -> bool:
        """Whether it takes a wait to know that the owner lives: no, for a process of this machine that does."""
        seen = self._observe(self._open(shard))
        return seen is not None and not (seen.owner.process is not None and seen.owner.process.is_here)

    def beat(self) -> list[int]:
        """Touch all claims that are held; returns the shards that others have taken over meanwhile."""
        lost: list[int] = []
        with self._lock:
            for shard, handle in list(self._held.items()):
                try:
                    os.utime(handle)
                    there = self._open(shard).stat()
                    is_ours = there.st_ino == os.fstat(handle).st_ino
                except FileNotFoundError:
                    is_ours = False
                except OSError as error:
                    # A network file system that stumbles: the next beat may get through.
                    is_ours = error.errno != errno.ESTALE
                if not is_ours:
                    lost.append(shard)
                    os.close(self._held.pop(shard))
        return lost

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
            names = _names(self.folder / f"{group:04d}")
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

    @contextmanager
    def beating(self, every_s: float = HEARTBEAT_S, on_lost: Callable[[int], None] | None = None) -> Generator[None]:
        """Touch the held claims from a thread of its own until the block is left."""
        over = threading.Event()

        def run() -> None:
            while not over.wait(every_s):
                for shard in self.beat():
                    if on_lost is not None:
                        on_lost(shard)

        thread = threading.Thread(target=run, name="sdbatch-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def iter_owners(folder: Path) -> Iterator[tuple[int, Owner]]:
    """Every claim that is held, with its owner."""
    for group in sorted(name for name in _names(folder) if name.isdigit()):
        for name in sorted(name for name in _names(folder / group) if name.isdigit()):
            yield int(name), _owner(folder / group / name)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are all that is needed
    except (FileNotFoundError, NotADirectoryError):
        return []


def drop_dead(folder: Path) -> list[int]:
    """Give back every shard whose owner was a process of this machine that is gone; others have to be watched for that."""
    dropped: list[int] = []
    for shard, owner in iter_owners(folder):
        if _is_dead(owner):
            (folder / f"{shard // GROUP_SHARDS:04d}" / f"{shard:06d}").unlink(missing_ok=True)
            dropped.append(shard)
    return dropped


def watch_alive(folder: Path, watch_s: float = 2 * HEARTBEAT_S, pause: Callable[[float], None] = time.sleep) -> list[str]:
    """Workers that are alive: at once for this machine, by their heartbeats within `watch_s` for others."""
    alive: dict[str, None] = {}
    unknown: list[tuple[Path, _Signature, str]] = []
    for shard, owner in iter_owners(folder):
        path = folder / f"{shard // GROUP_SHARDS:04d}" / f"{shard:06d}"
        if owner.process is not None and owner.process.is_here:
            if owner.process.is_alive:
                alive[owner.worker] = None
        else:
            with suppress(FileNotFoundError):
                unknown.append((path, _signature(path.stat()), owner.worker))
    if unknown:
        pause(watch_s)
    for path, signature, worker in unknown:
        with suppress(FileNotFoundError):
            if _signature(path.stat()) != signature:
                alive[worker] = None
    return list(alive)


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


def _create(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(exist_ok=True)
        return os.open(path, flags, 0o666)


def _door(path: Path) -> Path:
    """Held by who takes over a claim, for that moment."""
    return path.with_name(f".taking-{path.name}")


def _signature(found: os.stat_result) -> _Signature:
    """What a heartbeat or another owner changes."""
    return found.st_ino, found.st_mtime_ns


def _owner(path: Path) -> Owner:
    try:
        return Owner.parse(path.read_text())
    except FileNotFoundError:
        return Owner("", None)


def _is_dead(owner: Owner) -> bool:
    """Whether the owner is known to be dead without a wait: a process of this machine that is gone."""
    return owner.process is not None and owner.process.is_here and not owner.process.is_alive
