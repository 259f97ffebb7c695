"""Folders that cannot hold a sweep: real file systems, and calls that fail under strace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sdbatch.doctor import behaviour
from sdbatch.doctor import folder as folder_module
from sdbatch.doctor.finding import Finding, Level, Site
from sdbatch.doctor.folder import check_folder, check_kind, mount_of
from tests.mounts import remount, tmpfs

PROBE = """
import sys, json, dataclasses; from pathlib import Path; from sdbatch.doctor.behaviour import check_behaviour
print(json.dumps([dataclasses.asdict(finding) for finding in check_behaviour(Path(sys.argv[1]))]))
"""


def findings(folder: Path) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_folder(Site(folder))}


def test_a_good_folder_has_no_fault_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    found = findings(tmp_path)
    assert {name for name, finding in found.items() if finding.level is Level.fault} == set()
    assert {"folder.rename", "folder.link", "folder.fsync", "folder.lock", "folder.clock", "folder.space"} <= set(found)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_judged_by_its_nearest_parent(tmp_path: Path) -> None:
    assert "is not there yet" in findings(tmp_path / "a/b")["folder"].found
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    assert findings(tmp_path / "file/sub")["folder"].level is Level.fault


def test_a_full_disk_is_told_before_a_run_finds_out(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "m", "size=64k") as point:
        (point / "filler").write_bytes(b"x" * 60_000)
        found = findings(point)
        assert "the disk is full" in found["folder.write"].found
        assert not list(point.glob(".tmp-*"))
        assert found["folder.space"].level is Level.fault
        assert "MB free" in found["folder.space"].found
        assert found["folder.kind"].level is Level.warning


def test_no_inodes_is_told_apart_from_no_space(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "m", "size=500m", "nr_inodes=3") as point:
        for name in ("a", "b"):
            (point / name).touch()
        found = findings(point)
        assert found["folder.space"].level is not Level.fault
        assert found["folder.inodes"].level is Level.fault
        assert "room for 0 more files" in found["folder.inodes"].found
        assert "no inodes left" in found["folder.write"].found


def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "m") as point:
        remount(point, "ro")
        assert "read-only" in findings(point)["folder.write"].found


@pytest.mark.parametrize(
    ("call", "error", "check", "level"),
    [
        ("link", "EPERM", "folder.link", Level.warning),
        ("flock", "ENOLCK", "folder.lock", Level.warning),
        ("fsync", "EIO", "folder.fsync", Level.fault),
        ("rename", "EIO", "folder.rename", Level.fault),
    ],
)
def test_a_behaviour_that_is_missing_is_named(call: str, error: str, check: str, level: Level, tmp_path: Path) -> None:
    if not shutil.which("strace"):
        pytest.skip("strace is not installed: apt-get install -y strace")
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:error={error}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [*strace, sys.executable, "-c", PROBE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    levels = {finding["check"]: finding["level"] for finding in json.loads(done.stdout)}
    assert levels.pop(check) == level
    assert set(levels.values()) == {"ok"}


def test_a_rename_with_a_gap_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest: Callable[[Path, Path], Path] = Path.replace

    def with_a_gap(self: Path, target: Path) -> Path:
        target.unlink()
        for _ in range(2000):
            os.getppid()
        return honest(self, target)

    monkeypatch.setattr(Path, "replace", with_a_gap)
    assert "missing" in behaviour.check_rename("folder.rename", tmp_path).found


MOUNTS = """21 1 8:1 / / rw - ext4 /dev/sda1 rw
22 21 0:30 / /data rw - fuse.s3fs s3fs rw
23 21 0:31 / /home rw - nfs4 server:/home rw,vers=4.2,hard
24 21 0:32 / /old rw - nfs server:/old rw,nolock,vers=3
25 21 0:33 / /my\\040disk rw - xfs /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"), [("/x", "ext4"), ("/data/a", "fuse.s3fs"), ("/home/me/sweeps", "nfs4"), ("/old/a", "nfs"), ("/my disk/a", "xfs")]
)
def test_the_mount_of_a_folder_is_the_innermost(folder: str, kind: str) -> None:
    assert mount_of(Path(folder), MOUNTS)[0] == kind


@pytest.mark.parametrize(("folder", "level"), [("/data", Level.fault), ("/old", Level.warning), ("/home", Level.ok), ("/x", Level.ok)])
def test_object_stores_and_locks_that_others_do_not_see_are_told(folder: str, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretended(path: Path) -> tuple[str, str, tuple[str, ...]]:
        return mount_of(path, MOUNTS)

    monkeypatch.setattr(folder_module, "mount_of", pretended)
    assert check_kind(Path(folder)).level is level
