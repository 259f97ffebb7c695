"""`sdbatch pull`: a preset's file into the models folder, whole and right or not at all. The client is the real one."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import BASE, narrow_checkpoint
from tests.hub.conftest import Asking
from tests.hub.server import Hub
from tests.weights.writer import write_safetensors

FILE = "model.safetensors"


@pytest.fixture
def weights(workspace: Path) -> bytes:
    """A checkpoint of the workspace's model, as the Hub offers it."""
    path = write_safetensors(workspace / "elsewhere" / FILE, narrow_checkpoint(), metadata={"made": "for the Hub"})
    content = path.read_bytes()
    path.unlink()
    return content


def offer(workspace: Path, hub: Hub, content: bytes, sha256: str | None = None, repo: str = "owner/name") -> Path:
    """A preset `mine` of the user's own, with its file on the Hub; returns where it will lie."""
    hub.add(repo, {FILE: content, "README.md": b"x"})
    conf = workspace / "conf/checkpoint/mine.yaml"
    conf.parent.mkdir(parents=True, exist_ok=True)
    lines = ["# checkpoint=mine", "preset:", "  name: mine", "  known: [mine_v1.safetensors]", "  source: https://example.org/mine"]
    lines += [f"  repo: {repo}/{FILE}", *([f"  sha256: {sha256}"] if sha256 else [])]
    conf.write_text("\n".join(lines) + "\n")
    return workspace / "models/checkpoints/mine_v1.safetensors"


def parts(workspace: Path) -> list[Path]:
    return list((workspace / "models/checkpoints").glob(".pull-*"))


def plan(asking: Asking, *words: str) -> subprocess.CompletedProcess[str]:
    return asking("plan", BASE[0], BASE[2], "checkpoint=mine", *words, offline=True)


def test_a_preset_is_fetched_checked_and_found(workspace: Path, hub: Hub, asking: Asking, calling: Asking, weights: bytes) -> None:
    target = offer(workspace, hub, weights, hashlib.sha256(weights).hexdigest()[:10])
    assert "run `sdbatch pull checkpoint=mine`" in plan(asking).stderr
    done = calling("pull", "checkpoint=mine")
    assert done.returncode == 0, done.stderr
    assert f"checkpoint: mine is here: {target.relative_to(workspace)}" in done.stdout
    assert target.read_bytes() == weights
    assert not parts(workspace)
    planned = plan(asking)
    assert planned.returncode == 0, planned.stderr
    assert "mine_v1: 1 image" in planned.stdout
    before = len(hub.requests)
    again = asking("pull", "checkpoint=mine")
    assert "mine is here" in again.stdout
    assert len(hub.requests) == before, "what is there is not asked for again"


def test_a_transfer_that_is_cut_off_goes_on_where_it_stopped(
    workspace: Path, hub: Hub, asking: Asking, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # the client keeps whole chunks, of 10 MB else
    target = offer(workspace, hub, weights)
    etag = hashlib.sha256(weights).hexdigest()
    # What a killed `sdbatch pull` leaves.
    target.with_name(f".pull-{etag[:16]}.{target.name}").write_bytes(weights[:1000])
    hub.cut_after = len(weights) - 1500
    done = asking("pull", "checkpoint=mine")
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == weights
    spans = [span for _, span in hub.transfers()]
    assert spans[0] == "bytes=1000-"
    assert len(spans) == 2, "the client itself goes on once the connection is lost"


@pytest.mark.parametrize("pinned", [True, False])
def test_what_is_not_the_right_file_is_not_kept(workspace: Path, hub: Hub, asking: Asking, weights: bytes, pinned: bool) -> None:
    target = offer(workspace, hub, weights, "ab" * 32 if pinned else None)
    hub.corrupt = not pinned
    done = asking("pull", "checkpoint=mine")
    assert done.returncode == 1
    assert "has the SHA-256" in done.stderr
    assert "nothing was kept" in done.stderr
    assert not target.exists()
    assert not parts(workspace)


def test_a_login_page_is_not_kept(workspace: Path, hub: Hub, asking: Asking) -> None:
    target = offer(workspace, hub, b"<!DOCTYPE html><html>please log in</html>")
    assert "is an HTML page" in asking("pull", "checkpoint=mine").stderr
    assert not target.exists()


def test_a_gated_file_tells_how_to_get_in_and_the_token_stays_in_the_environment(
    workspace: Path, hub: Hub, asking: Asking, weights: bytes
) -> None:
    target = offer(workspace, hub, weights)
    hub.gated.add("owner/name")
    told = asking("pull", "checkpoint=mine").stderr
    assert "owner/name: is gated. Accept its terms at https://huggingface.co/owner/name" in told
    assert "HF_TOKEN" in told
    secret = "hf_secretsecretsecret"
    done = asking("pull", "checkpoint=mine", token=secret)
    assert done.returncode == 0, done.stderr
    assert target.exists()
    assert f"Bearer {secret}" in hub.tokens
    kept = [path for root, _, names in os.walk(workspace) for path in (Path(root) / name for name in names)]
    assert not [path for path in kept if secret.encode() in path.read_bytes()]


def test_what_cannot_be_had_is_told(workspace: Path, hub: Hub, asking: Asking, weights: bytes) -> None:
    offer(workspace, hub, weights)
    assert "the Hub has no such repository, or it is private" in asking("pull", "checkpoint.repo=owner/nothing").stderr
    assert "has no revision v9" in asking("pull", "checkpoint.repo=owner/name", "checkpoint.revision=v9").stderr
    assert "has no file x.safetensors" in asking("pull", "checkpoint.repo=owner/name/x.safetensors").stderr
    assert "is no weight file by its name" in asking("pull", "checkpoint.repo=owner/name/README.md").stderr
    assert "cannot be reached" in asking("pull", "checkpoint=mine", url="http://127.0.0.1:9").stderr
    assert "HF_HUB_OFFLINE is set" in asking("pull", "checkpoint=mine", offline=True).stderr


def test_what_only_a_page_offers_is_told(asking: Asking) -> None:
    done = asking("pull", "chilloutmix")
    assert done.returncode == 1
    assert "https://civitai.com/models/6424" in done.stderr


def test_every_value_of_a_choice_is_fetched(workspace: Path, hub: Hub, asking: Asking, weights: bytes) -> None:
    offer(workspace, hub, weights)
    done = asking("pull", "checkpoint=mine,chilloutmix")
    assert done.returncode == 1
    assert "mine is here" in done.stdout
    assert "civitai" in done.stderr
    assert "sdbatch pull MODEL|GROUP=NAME" in asking("pull").stderr
