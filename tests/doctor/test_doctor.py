"""The verb as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Sdbatch


def test_a_machine_without_faults(workspace: Path, sdbatch: Sdbatch) -> None:
    done = sdbatch("doctor", "checkpoint=base", "family.config=configs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "outputs: 0 faults" in done.stdout
    assert not (workspace / "outputs").exists()
    found = json.loads(sdbatch("doctor", str(workspace), "json=true").stdout)
    assert (found["folder"], found["faults"]) == (str(workspace), 0)
    assert {"config", "folder.rename", "library", "tracking"} <= {finding["check"] for finding in found["findings"]}


def test_what_is_wrong_is_told_with_what_to_do_and_exit_1(workspace: Path, sdbatch: Sdbatch) -> None:
    (workspace / "models/loras/page.safetensors").write_text("<!doctype html><title>Log in</title>")
    (workspace / "file").write_text("")
    done = sdbatch("doctor", "file/sweeps", "stpes=3")
    assert done.returncode == 1
    assert "Did you mean steps" in done.stdout
    assert "file is a file" in done.stdout
    assert "lora=page" in done.stdout and "HTML page" in done.stdout
    assert "2 faults" in done.stdout


def test_secrets_of_the_tracking_server_are_not_shown(sdbatch: Sdbatch) -> None:
    done = sdbatch("doctor", "tracking.uri=http://me:hunter2@127.0.0.1:9/?token=hunter2")
    assert "127.0.0.1:9" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr
