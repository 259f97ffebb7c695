"""Hashes: equal to hashlib's, remembered by identity on disk, right again when a file changes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sdbatch.errors import WeightFileError
from sdbatch.weights import hashes
from sdbatch.weights.hashes import Hasher
from sdbatch.weights.index import Index
from sdbatch.weights.reader import read_header


def settle(path: Path, age_s: float = 100) -> None:
    """Date a file back: only files that have not just changed are remembered."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - int(age_s * 1e9)))


def safetensors(path: Path, body: bytes = b"\1\2\3\4") -> Path:
    header = json.dumps({"a": {"dtype": "U8", "shape": [len(body)], "data_offsets": [0, len(body)]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)
    return path


def test_sha256_is_that_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "CHUNK_BYTES", 1000)
    path = tmp_path / "x.bin"
    path.write_bytes(os.urandom(4321))
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert Hasher().sha256(path) == expected
    assert Hasher().autov2_short(path) == expected[:10]


def test_autov3_skips_the_header_only_of_safetensors(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "x.safetensors", b"tensor bytes")
    body = hashlib.sha256(b"tensor bytes").hexdigest()
    assert Hasher().autov3(path) == body
    assert Hasher().lora_short(path) == body[:12]
    assert Hasher().lora_short(path, {"sshs_model_hash": "AB" * 32}) == "ab" * 6
    assert Hasher().lora_short(path, {"sshs_model_hash": "<script>"}) == body[:12]
    other = tmp_path / "x.pt"
    other.write_bytes(b"not safetensors at all")
    assert Hasher().autov3(other) == Hasher().sha256(other)


def test_legacy_short_hash(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    content = os.urandom(0x120000)
    path.write_bytes(content)
    assert Hasher().legacy_short(path) == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = safetensors(tmp_path / "x.safetensors")
    settle(path)
    first = Hasher(tmp_path / "cache").sha256(path)

    def refuse(descriptor: int, start: int) -> str:
        pytest.fail(f"read again: {descriptor} from {start}")

    monkeypatch.setattr(hashes, "_digest", refuse)
    assert Hasher(tmp_path / "cache").sha256(path) == first
    assert Hasher(tmp_path / "cache").cache.load(hashes.FileState.of(path)) == {"sha256": first}


def test_a_changed_or_replaced_file_is_hashed_again(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "x.safetensors", b"aaaa")
    settle(path)
    hasher = Hasher(tmp_path / "cache")
    first = hasher.sha256(path)
    safetensors(path, b"bbbb")
    second = hasher.sha256(path)
    replacement = safetensors(tmp_path / "y.safetensors", b"cccc")
    settle(replacement)
    replacement.replace(path)
    assert len({first, second, hasher.sha256(path)}) == 3


def test_a_file_that_just_changed_is_not_remembered(tmp_path: Path) -> None:
    # Two writes within one tick of the clock leave the same time stamp.
    path = safetensors(tmp_path / "x.safetensors", b"aaaa")
    stat = path.stat()
    first = Hasher().sha256(path)
    safetensors(path, b"bbbb")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert Hasher().sha256(path) != first


def test_a_damaged_or_unwritable_cache_only_costs_time(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "x.safetensors")
    settle(path)
    hasher = Hasher(tmp_path / "cache")
    first = hasher.sha256(path)
    for damage in (b"", b"[1]", b"{broken", b'{"sha256": "short"}', b'{"sha256": 5}'):
        next((tmp_path / "cache").rglob("*.json")).write_bytes(damage)
        assert hasher.sha256(path) == first
    (tmp_path / "file").touch()
    assert Hasher(tmp_path / "file" / "cache").sha256(path) == first


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = safetensors(tmp_path / "x.safetensors")

    def grow(*_: object) -> str:
        with path.open("ab") as out:
            out.write(b"more")
        return "0" * 64

    monkeypatch.setattr(hashes, "_digest", grow)
    with pytest.raises(WeightFileError, match="changed while it was being read"):
        Hasher().sha256(path)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match="there is no such file"):
        Hasher().sha256(tmp_path / "nope.safetensors")


def test_a_folder_is_hashed_by_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    safetensors(folder / "unet/weights.safetensors")
    (folder / "model_index.json").write_text("{}")
    (folder / "README.md").write_text("one")
    first = Hasher().sha256(folder)
    (folder / "README.md").write_text("two")
    (folder / ".cache").mkdir()
    (folder / ".cache/x.json").write_text("{}")
    assert Hasher().sha256(folder) == first
    (folder / "model_index.json").write_text('{"a": 1}')
    second = Hasher().sha256(folder)
    (folder / "unet/weights.safetensors").rename(folder / "unet/other.safetensors")
    assert len({first, second, Hasher().sha256(folder)}) == 3


def _hash_in_child(path: Path, folder: Path) -> str:
    return Hasher(folder).sha256(path)


def test_many_processes_share_one_cache(tmp_path: Path) -> None:
    paths = [safetensors(tmp_path / f"{i}.safetensors", bytes([i] * 9)) for i in range(8)]
    for path in paths:
        settle(path)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.starmap(_hash_in_child, [(path, tmp_path / "cache") for path in paths * 6])
    assert found == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] * 6
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


@pytest.mark.parametrize("look", [Hasher().sha256, Index().identify, read_header])
def test_a_link_to_nothing_is_called_one(tmp_path: Path, look: Callable[[Path], object]) -> None:
    link = tmp_path / "x.safetensors"
    link.symlink_to(tmp_path / "moved.safetensors")
    with pytest.raises(WeightFileError, match=r"x\.safetensors: is a link to .*moved\.safetensors, which is not there"):
        look(link)
