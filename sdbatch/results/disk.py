"""Writing a file so that it is there whole or not at all, and saying clearly why it could not be written.

A file is written under a temporary name, flushed to the disk, and only then given its own name. The temporary name
starts with `.tmp-` (Parquet readers skip such names; a suffix would break them) and names its owner, so that what a
crash leaves behind can be told from what another process is writing now.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import socket
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sdbatch.errors import FolderError

TEMPORARY = ".tmp-"
"""Prefix of every temporary file of ours; the full form is `.tmp-<machine>-<pid>-<start>-<serial>-<name>`."""

_OWNED = re.compile(r"\.tmp-(?P<machine>[A-Za-z0-9_.]*)-(?P<pid>\d+)-(?P<start>\d+)-\d+-.+")
_serial = itertools.count()

FEW_FILES = 32
"""With fewer inodes left, and blocks for as many files, these are what is missing."""

_REASONS = {
    errno.EROFS: "the file system is read-only. Choose another folder with out=",
    errno.EACCES: "no permission to write there. Choose another folder with out=, or change its permissions",
    errno.EPERM: "no permission to write there. Choose another folder with out=, or change its permissions",
    errno.EDQUOT: "your disk quota is used up. Free some of it, then run the same command again to go on",
    errno.ENOTDIR: "a file is in the way of a folder. Move it, or choose another folder with out=",
    errno.EISDIR: "a folder is in the way of a file. Move it, or choose another folder with out=",
    errno.EEXIST: "something of that name is in the way. Move it, or choose another folder with out=",
    errno.ENAMETOOLONG: "the name is too long for the file system. Choose a shorter one with name= or out=",
    errno.EMFILE: "this process has too many open files. Raise the limit with ulimit -n",
    errno.EFBIG: "the file is larger than the limit of this process. Raise it with ulimit -f",
    errno.EIO: "the disk reports an input/output error. Nothing of it counts as saved; check the disk, then run again to go on",
    errno.ESTALE: "the network file system lost the folder. Nothing of it counts as saved; run the same command again to go on",
}


def folder_error(asked: str, path: Path, error: OSError) -> FolderError:
    """The error a user reads when the file system refused: what was asked, what was found, what to do."""
    if error.errno == errno.ENOSPC:
        return FolderError(f"{asked} {path}: {_shortage(path)}, then run the same command again to go on.")
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return FolderError(f"{asked} {path}: {reason}.")


def _shortage(path: Path) -> str:
    """Which of the two things a file system runs out of. Both are reported as "no space left"."""
    there = next((folder for folder in (path, *path.absolute().parents) if folder.is_dir()), Path("/"))
    try:
        room = os.statvfs(there)
    except OSError:
        return "the disk is full. Free some space"
    # A few may be free again by now: what could not be finished has been removed.
    if room.f_files and room.f_favail < FEW_FILES and room.f_bavail * room.f_frsize > FEW_FILES * room.f_bsize:
        return "the file system has no inodes left (it can hold no more files, whatever their size). Delete some files"
    return f"the disk is full ({room.f_bavail * room.f_frsize / 1e6:.1f} MB free). Free some space"


def temporary_name(name: str) -> str:
    """A name for a temporary file of this process that will be called `name`."""
    own = Process.own()
    return f"{TEMPORARY}{own.machine.replace('/', '.')}-{own.pid}-{own.start}-{next(_serial)}-{name}"


def write_temporary(final: Path, data: bytes) -> Path:
    """Write and flush `data` beside `final` under a temporary name, and return that; nothing is left on an error."""
    temporary = final.with_name(temporary_name(final.name))
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise folder_error("cannot write", final, error) from error
        raise
    return temporary


def replace(temporary: Path, final: Path) -> None:
    """Give a temporary file its own name, over whatever had it."""
    try:
        temporary.replace(final)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise folder_error("cannot write", final, error) from error


def publish(temporary: Path, final: Path) -> bool:
    """Give a temporary file its own name unless that is taken. Returns False when it was: the first writer wins.

    File systems without hard links get a rename after a look, which leaves a moment in which the second writer wins.
    """
    try:
        os.link(temporary, final)
    except FileExistsError:
        temporary.unlink()
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            with suppress(OSError):
                temporary.unlink()
            raise folder_error("cannot write", final, error) from error
        if final.exists():
            temporary.unlink()
            return False
        replace(temporary, final)
        return True
    temporary.unlink()
    return True


def sync_folders(folders: Iterable[Path]) -> None:
    """Make the names in these folders survive a loss of power."""
    for folder in sorted(set(folders)):
        with explained("cannot flush", folder):
            handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def write_file(final: Path, data: bytes) -> None:
    """Replace a file by `data`, whole or not at all."""
    replace(write_temporary(final, data), final)
    sync_folders([final.parent])


@contextmanager
def explained(asked: str, path: Path) -> Generator[None]:
    """Turn an error of the file system inside into one a user can read."""
    try:
        yield
    except OSError as error:
        raise folder_error(asked, path, error) from error


def owner_of(name: str) -> Process | None:
    """The process that writes, or wrote, a temporary file; None for a file that is not ours."""
    found = _OWNED.fullmatch(name)
    if found is None:
        return None
    host, *rest = found["machine"].rsplit(".", 2)
    return Process("/".join([host, *rest]), int(found["pid"]), found["start"])


def is_stray(name: str) -> bool:
    """Whether this is a temporary file of ours whose owner is gone. One of another machine counts as alive."""
    owner = owner_of(name)
    return owner is not None and owner.is_here and not owner.is_alive


def is_alive(pid: int, start: str = "0") -> bool:
    """Whether the process still runs; `start` tells it from a later one with the same number (0: not known)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return start == "0" or start_of(pid) in ("0", start)


def start_of(pid: int) -> str:
    """When a process started, in the kernel's ticks; `0` where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname())


@dataclass(frozen=True, slots=True)
class Process:
    """A process that can be told from all others, of this machine or another."""

    machine: str
    """Host, boot and process namespace: where the number means something."""
    pid: int
    start: str
    """In the kernel's ticks; tells it from a later one with the same number."""

    def __str__(self) -> str:
        return f"{self.machine} {self.pid} {self.start}"

    @staticmethod
    def own() -> Process:
        """This process."""
        return _own(os.getpid())

    @staticmethod
    def parse(text: str) -> Process | None:
        """What `str` wrote; None for anything else."""
        found = re.fullmatch(r"(\S+) (\d+) (\d+)", text)
        return Process(found[1], int(found[2]), found[3]) if found else None

    @property
    def is_here(self) -> bool:
        """Whether this machine can say if it lives."""
        return self.machine == _machine()

    @property
    def is_alive(self) -> bool:
        """Whether it still runs; only where it `is_here`."""
        return is_alive(self.pid, self.start)


@cache
def _own(pid: int) -> Process:
    return Process(_machine(), pid, start_of(pid))


@cache
def _machine() -> str:
    """Equal for processes that can see each other: two containers may share a host name, two boots a process number."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        boot, namespace = "0", "0"
    return f"{_host()}/{boot}/{re.sub(r'[^0-9]', '', namespace) or '0'}"
