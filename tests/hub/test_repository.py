"""`checkpoint.repo=owner/name`: a repository in place of a file, pinned by its commit, and used offline once it is cached."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sdbatch.config.arguments import read_arguments
from sdbatch.errors import WeightFileError
from sdbatch.hub.address import Address, read_address, to_address
from sdbatch.hub.snapshot import choose_files
from sdbatch.run.prepare import prepare
from sdbatch.weights.catalog import embedded_root
from tests.conftest import BASE, narrow
from tests.hub.conftest import Asking
from tests.hub.server import Hub
from tests.planning import image_ids
from tests.weights import dialects
from tests.weights.writer import write_safetensors


def pipeline(folder: Path, content: str = "") -> dict[str, bytes]:
    """The files of a pipeline repository: what is read, and what must not be."""
    files = {
        "model_index.json": json.dumps({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}).encode(),
        "unet/config.json": b'{"_class_name": "UNet2DConditionModel"}',
        "unet/modeling.py": b"raise SystemExit('code of the repository ran')",
        "unet/diffusion_pytorch_model.bin": b"\x80\x02pickle",
        "tokenizer/merges.txt": b"a b",
        "whole.safetensors": b"x" * 300,
        "README.md": b"read me",
    }
    parts = {
        "unet/diffusion_pytorch_model.safetensors": narrow(dialects.diffusers_unet(32)),
        "vae/diffusion_pytorch_model.safetensors": dialects.diffusers_vae(),
        "text_encoder/model.safetensors": narrow(dialects.clip("", 32)),
    }
    for name, tensors in parts.items():
        path = write_safetensors(folder / "x.safetensors", narrow(tensors), metadata={"content": content})
        files[name] = path.read_bytes()
        files[name.replace(".safetensors", ".fp16.safetensors")] = path.read_bytes()
        files.setdefault(name.rpartition("/")[0] + "/config.json", b"{}")
    return files


def test_the_files_that_are_read_are_chosen(tmp_path: Path) -> None:
    chosen = choose_files(pipeline(tmp_path))
    assert chosen == [
        "model_index.json", "text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/merges.txt", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    halves = [name for name in pipeline(tmp_path) if not name.endswith(".safetensors") or ".fp16" in name]
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in choose_files(halves), "half precision where there is no other"
    assert choose_files(["config.json", "diffusion_pytorch_model.safetensors", "a.py"]) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert choose_files(["pytorch_model.bin", "config.json"]) == []


def test_a_repository_is_planned_by_its_commit_and_used_offline(workspace: Path, hub: Hub, asking: Asking) -> None:
    commit = hub.add("owner/pipe", pipeline(workspace))
    words = ("plan", *BASE, "checkpoint.repo=owner/pipe")
    told = asking(*words, offline=True)
    assert told.returncode == 2
    assert "run `sdbatch pull checkpoint.repo=owner/pipe checkpoint.revision=main` where there is a network" in told.stderr
    planned = asking(*words)
    assert planned.returncode == 0, planned.stderr
    assert f"owner/pipe@{commit[:12]}: 1 image" in planned.stdout
    fetched = {path.partition("/resolve/")[2].partition("/")[2] for path, _ in hub.transfers()}
    chosen = set(choose_files(pipeline(workspace)))
    assert fetched <= chosen, "neither code, nor pickles, nor what is not read"
    assert asking(*words, offline=True).stdout == planned.stdout
    (kept,) = (workspace / ".cache/sdbatch/hub").iterdir()
    assert {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()} == chosen


def test_a_branch_means_what_was_fetched_until_it_is_pulled_again(workspace: Path, hub: Hub, asking: Asking) -> None:
    old = hub.add("owner/pipe", pipeline(workspace, "old"))
    assert asking("pull", "checkpoint.repo=owner/pipe").returncode == 0
    new = hub.add("owner/pipe", pipeline(workspace, "new"))
    words = ("plan", *BASE, "checkpoint.repo=owner/pipe")
    assert f"@{old[:12]}" in asking(*words).stdout
    assert f"@{new[:12]}" in asking("pull", "checkpoint.repo=owner/pipe").stdout
    assert f"@{new[:12]}" in asking(*words).stdout
    pinned = asking(*words, f"checkpoint.revision={old}", offline=True)
    assert f"@{old[:12]}" in pinned.stdout, pinned.stderr


def test_a_cache_that_lost_a_file_is_not_used(workspace: Path, hub: Hub, asking: Asking) -> None:
    commit = hub.add("owner/pipe", pipeline(workspace))
    words = ("plan", *BASE, "checkpoint.repo=owner/pipe", f"checkpoint.revision={commit}")
    assert asking(*words).returncode == 0
    shutil.rmtree(workspace / "hf/hub/models--owner--pipe/blobs")
    assert asking(*words, offline=True).returncode == 2
    assert asking(*words).returncode == 0


def test_one_file_of_a_repository(workspace: Path, hub: Hub, asking: Asking) -> None:
    lora = (workspace / "models/loras/red.safetensors").read_bytes()
    commit = hub.add("owner/looks", {"sub/look.safetensors": lora})
    words = ("plan", *BASE, "lora=[red]", "lora.red.repo=owner/looks/sub/look.safetensors")
    planned = asking(*words)
    assert planned.returncode == 0, planned.stderr
    assert asking(*words, offline=True).stdout == planned.stdout
    swept = asking("plan", *BASE, "lora=[red]", f"lora.red.file=blue,hf://owner/looks@{commit}/sub/look.safetensors", "-m")
    assert "2 images" in swept.stdout, swept.stderr
    assert "Sweep lora.red.file=hf://" in asking("plan", *BASE, "lora=[red]", "lora.red.repo=a/b,c/d", "-m").stderr


def test_a_repository_of_pickles_is_refused(hub: Hub, asking: Asking) -> None:
    hub.add("owner/old", {"model_index.json": b"{}", "unet/diffusion_pytorch_model.bin": b"\x80\x02."})
    assert "pickles are not fetched" in asking("plan", *BASE, "checkpoint.repo=owner/old").stderr


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://a/b", Address("a/b")),
        ("hf://a/b@v1.0", Address("a/b", "v1.0")),
        ("hf://a/b@refs%2Fpr%2F1/x/y.safetensors", Address("a/b", "refs/pr/1", "x/y.safetensors")),
        ("hf://datasets/a/b/x.pt", Address("datasets/a/b", "main", "x.pt")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert read_address(text) == address
    assert read_address(str(address)) == address


@pytest.mark.parametrize("text", ["hf://", "hf://a", "hf://a/b/../c", "hf:///etc/passwd", "hf://a/b@x y"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(WeightFileError, match="is no repository of the Hub"):
        read_address(text)


def test_places() -> None:
    assert to_address("a/b") == "hf://a/b@main"
    assert to_address("datasets/a/b/c/d.pt", "refs/pr/1") == "hf://datasets/a/b@refs%2Fpr%2F1/c/d.pt"


def test_a_repository_makes_the_same_images_as_the_same_folder_on_disk(hub: Hub, asking: Asking) -> None:
    folder = embedded_root() / "checkpoints/tiny_diffusers"
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.add("owner/tiny", files)
    assert asking("pull", "checkpoint.repo=owner/tiny").returncode == 0
    (by_id,) = image_ids(prepare(read_arguments(["checkpoint.repo=owner/tiny"])).plan)
    (by_folder,) = image_ids(prepare(read_arguments(["checkpoint=tiny_diffusers"])).plan)
    assert by_id == by_folder
