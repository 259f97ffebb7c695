"""A Hub on loopback, and the command line that asks it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdbatch.cli import main
from tests.hub.server import Hub, serving

Asking = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as running:
        yield running


@pytest.fixture
def asking(workspace: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Asking:
    """Run a command line in this process, with the real huggingface_hub pointed at the Hub on loopback."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(workspace / "hf/hub"))

    def run(*arguments: str, offline: bool = False, url: str | None = None, token: str | None = None) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(constants, "ENDPOINT", url or hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url or hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}")
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)
        code = main(arguments)
        told = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, told.out, told.err)

    return run


@pytest.fixture
def calling(workspace: Path, hub: Hub) -> Asking:
    """Run a command line in a process of its own, with the Hub's address in the environment."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(workspace / "hf")}
        environment = {**os.environ, **settings}
        command = [sys.executable, "-m", "sdbatch", *arguments]
        return subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run
