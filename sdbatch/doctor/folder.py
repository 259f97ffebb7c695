"""The folder sweeps are written to: room, kind of file system, clock."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from sdbatch.doctor.behaviour import check_behaviour
from sdbatch.doctor.finding import Finding, Site, fault, ok, warning
from sdbatch.errors import FolderError
from sdbatch.results.disk import explained, write_file

LEAST_GB, ROOMY_GB = 0.1, 5.0
"""Below the first a block of images does not fit; a dataset wants the second."""
LEAST_INODES, ROOMY_INODES = 100, 20_000
"""An image is a file, and so is a block of rows."""
BLOCK_BYTES = 64 * 1024
"""Written to see whether anything can be."""
SKEW_S = 2.0
"""A file server's clock that differs by more makes the age of claims and caches wrong."""

OBJECT_STORES = ("s3fs", "goofys", "geesefs", "gcsfuse", "blobfuse", "blobfuse2", "rclone", "mount-s3", "mountpoint-s3")
"""Object stores behind a mount: a rename copies, and is neither whole nor at once."""
VOLATILE = ("tmpfs", "ramfs", "overlay")
"""Gone with the machine or the container."""


def check_folder(site: Site) -> Iterator[Finding]:
    """Everything about the folder; the checks that write are done in its nearest folder that is there."""
    there = nearest(site.folder)
    if not there.is_dir():
        yield fault("folder", f"{there} is a file", "Choose another folder.")
        return
    if there != site.folder:
        yield ok("folder", f"{site.folder} is not there yet; {there} is examined")
    yield check_kind(there)
    yield from check_room(there)
    probe = there / f".tmp-doctor-{os.getpid()}"
    try:
        with explained("cannot write in", there):
            probe.mkdir(exist_ok=True)
        before_s = time.time()
        write_file(probe / "first", b"x" * BLOCK_BYTES)
        yield _check_clock(before_s, (probe / "first").stat().st_mtime)
        yield from check_behaviour(probe)
    except FolderError as error:
        yield fault("folder.write", str(error), "No sweep can be made here before that.")
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest of its parents that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def check_room(folder: Path) -> Iterator[Finding]:
    """Free space and free inodes."""
    room = os.statvfs(folder)
    free_gb = room.f_bavail * room.f_frsize / 1e9
    if free_gb < LEAST_GB:
        yield fault(
            "folder.space", f"{free_gb * 1000:.1f} MB free", "Free some space, or choose another folder with out= or paths.outputs=."
        )
    elif free_gb < ROOMY_GB:
        yield warning(
            "folder.space", f"{free_gb:.1f} GB free", "`sdbatch plan` says what a run needs; a million 512 px images need 500 GB."
        )
    else:
        yield ok("folder.space", f"{free_gb:.0f} GB free")
    if not room.f_files:
        yield ok("folder.inodes", "this file system does not count files")
    elif room.f_favail < LEAST_INODES:
        yield fault("folder.inodes", f"room for {room.f_favail} more files, whatever their size", "Delete files, or choose another folder.")
    elif room.f_favail < ROOMY_INODES:
        todo = "Images of a large run do not fit as files; output=webdataset or output=parquet packs them."
        yield warning("folder.inodes", f"room for {room.f_favail} more files", todo)
    else:
        yield ok("folder.inodes", f"room for {room.f_favail} more files")


def check_kind(folder: Path) -> Finding:
    """The file system, and what its kind and options promise."""
    kind, source, options = mount_of(folder)
    said = f"{kind} ({source})" if source not in ("none", kind) else kind
    driver = kind.removeprefix("fuse.")
    if driver in OBJECT_STORES or source.split(":")[0] in OBJECT_STORES:
        todo = "Write to a real file system (local disk, NFS, Lustre, GPFS) and copy afterwards."
        return fault("folder.kind", f"{said}: an object store behind a mount, where a rename is neither whole nor at once", todo)
    if kind.startswith("nfs") and ("nolock" in options or any(option in ("local_lock=all", "local_lock=flock") for option in options)):
        todo = "Mount it without nolock and local_lock; until then start one run on a folder at a time."
        return warning("folder.kind", f"{said}: locks are not seen by other machines", todo)
    if kind.startswith("nfs") and "soft" in options:
        return warning("folder.kind", f"{said}, mounted soft: a slow server makes writes fail", "Mount it with hard.")
    if kind in VOLATILE:
        return warning("folder.kind", f"{said}: gone when the machine or container stops", "Keep sweeps on a disk or a mounted volume.")
    return ok("folder.kind", said)


def mount_of(folder: Path, table: str | None = None) -> tuple[str, str, tuple[str, ...]]:
    """Kind, source and options of the mount a folder lies on; `table` as in /proc/self/mountinfo."""
    if table is None:
        file = Path("/proc/self/mountinfo")
        table = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    best: tuple[str, str, tuple[str, ...]] = ("unknown", "none", ())
    longest = -1
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        point = fields[4].replace("\\040", " ")
        # Of two mounts on one place the later one is seen.
        if folder.resolve().is_relative_to(point) and len(point) >= longest:
            longest = len(point)
            best = (tail[0], tail[1], tuple({*fields[5].split(","), *tail[2].split(",")}))
    return best


def _check_clock(before_s: float, stamp_s: float) -> Finding:
    """The time stamp of a new file against our clock."""
    skew_s = min(0.0, stamp_s - before_s) or max(0.0, stamp_s - time.time())
    if abs(skew_s) > SKEW_S:
        said = f"files are dated {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's clock"
        todo = "Run NTP (chrony) on this machine and the file server: nothing is lost by it, but rates and dates will be wrong."
        return warning("folder.clock", said, todo)
    return ok("folder.clock", "files are dated by this machine's clock")
