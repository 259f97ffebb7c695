"""Small, read-only and full file systems, mounted for a test that runs as root and skipped where that cannot be."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


def mount(point: Path, *options: str) -> None:
    """Mount, or skip the test with the reason."""
    point.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, str(point)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount {' '.join(options)} here: {done.stderr.strip() or 'not root'}")


@contextmanager
def tmpfs(point: Path, *options: str) -> Generator[Path]:
    """A file system in memory, such as `tmpfs(path, "size=64k", "nr_inodes=10")`."""
    mount(point, "-t", "tmpfs", "-o", ",".join(options) or "size=8m", "tmpfs")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=False)


def remount(point: Path, options: str) -> None:
    """Change a mounted file system: `ro`, `size=10m`."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(point)], check=True)


@contextmanager
def disk_image(image: Path, point: Path, megabytes: int = 16) -> Generator[Path]:
    """A new ext4 file system in a file, mounted through a loop device."""
    with image.open("wb") as handle:
        handle.truncate(megabytes * 1_000_000)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot make a disk image here: {made.stderr.strip()}")
    with mounted_image(image, point) as there:
        yield there


@contextmanager
def mounted_image(image: Path, point: Path) -> Generator[Path]:
    """A file system image, as it is on the disk now; on an error of the disk the kernel makes it read-only."""
    mount(point, "-o", "loop,errors=remount-ro", str(image))
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=False)


def break_disk(point: Path) -> None:
    """Let the kernel find an error on the mounted image, after which nothing can be written to it."""
    device = subprocess.run(["findmnt", "-n", "-o", "SOURCE", str(point)], capture_output=True, text=True, check=True).stdout.strip()
    trigger = Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"
    if not trigger.exists():
        pytest.skip(f"this kernel has no {trigger}")
    trigger.write_text("a test")


def mend(image: Path) -> None:
    """Repair an image that is not mounted, as an administrator would."""
    done = subprocess.run(["e2fsck", "-fy", str(image)], capture_output=True, text=True, check=False)
    assert done.returncode <= 1, done.stdout
