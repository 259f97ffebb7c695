"""A dataset from the command line: packed as it is made, looked at, compacted, gone on with."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from sdbatch.results.folder import SweepFolder
from tests.conftest import BASE, Sdbatch

SWEEP = (*BASE, "engine=rehearsal", "tracking=none", "output=webdataset", "width=16", "height=16", "batch_size=8", "out=sweep", "-m")


def test_a_dataset_is_written_as_it_is_made(workspace: Path, sdbatch: Sdbatch) -> None:
    made = sdbatch(*SWEEP, "lora=red,blue", "seed=range(0,40)")
    assert made.returncode == 0, made.stderr
    assert "dataset  sweep/blocks/  (webdataset)" in made.stdout
    folder = SweepFolder(workspace / "sweep")
    assert len(folder.block_files()) == 4 and not list(folder.images.iterdir())
    status = sdbatch("status", "sweep", "--json", "--full")
    assert status.returncode == 0, status.stderr
    facts = json.loads(status.stdout)
    assert (facts["ok"], facts["left"], facts["looked_at_images"], facts["repeated"]) == (80, 0, True, 0)
    assert sum(worker["ok"] for worker in facts["workers"].values()) == 80
    assert sorted(recipe["ok"] for recipe in facts["recipes"].values()) == [40, 40]
    assert "4 blocks of images are 1" in sdbatch("compact", "sweep").stdout
    (block,) = folder.block_files()
    with tarfile.open(block) as tar:
        assert len(tar.getnames()) == 240
    assert sdbatch("verify", "sweep", "full=true").returncode == 0
    block.unlink()
    shown = sdbatch("status", "sweep")
    assert shown.returncode == 1
    assert "0 of 80 images made" in shown.stdout and "80 images have a row but their file is gone" in shown.stdout
    again = sdbatch("resume", "sweep")
    assert again.returncode == 0 and "80 images made" in again.stdout, again.stderr
    assert sdbatch("status", "sweep", "--watch").returncode == 0


def test_compact_refuses_what_it_cannot_mean(sdbatch: Sdbatch) -> None:
    refused = sdbatch("compact", "sweep", "mb=0")
    assert refused.returncode == 2 and "mb=256" in refused.stderr
    assert "no sweep here" in sdbatch("compact", "nowhere").stderr
