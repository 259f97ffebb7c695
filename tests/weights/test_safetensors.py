"""Safetensors headers from strangers: each damage has its sentence, none costs time or memory (cases 8-11, 16-21, 30)."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbatch.errors import WeightFileError
from sdbatch.weights.header import Limits, shown, to_size
from sdbatch.weights.reader import read_header
from tests.weights.fuzz import FUZZ, never_crashes
from tests.weights.writer import to_header, write_raw, write_safetensors

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def refusal(path: Path) -> str:
    with pytest.raises(WeightFileError) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_good_file(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {"a": (2, 3), "b": (), "empty": (0, 4)}, "F16", {"k": "v"})
    header = read_header(path)
    assert header.format == "safetensors"
    assert header.metadata == {"k": "v"}
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {
        "a": ("F16", (2, 3)),
        "b": ("F16", ()),
        "empty": ("F16", (0, 4)),
    }
    assert header.tensors["b"].start == path.stat().st_size - 2


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    assert read_header(write_safetensors(tmp_path / "x.ckpt", {"a": (1,)})).format == "safetensors"


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    safe_open = pytest.importorskip("safetensors").safe_open
    path = write_safetensors(tmp_path / "x.safetensors", {"a": (2, 3)}, "F32", {"k": "v"}, {"alpha": 4.0})
    with safe_open(path, "np") as file:
        assert file.metadata() == {"k": "v"}
        assert file.get_tensor("alpha") == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty (0 bytes). Download it again."),
        (b"\0\0\0", "has only 3 bytes, no weight file is that short. Download it again."),
        (b"<!DOCTYPE html><html>login", "is an HTML page, not a weight file (login needed?)"),
        (b"  \n<html lang='en'>", "is an HTML page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 1234567890\n",
            "is a Git-LFS pointer for sha256:abab",
        ),
        (b'{"error": "Invalid token"}', "is a JSON text"),
        (b"GGUF\3\0\0\0" + b"\0" * 90, "is a GGUF file"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 90, "is a picture (PNG)"),
        (b"\x1f\x8b" + b"\0" * 90, "is a gzip archive"),
        (b"# A model card\n\nTrained on cats.\n", "is a text, not a weight file. Check what was downloaded."),
        (b"\xfe\xedbytes that mean nothing at all", "is neither safetensors nor a torch checkpoint"),
    ],
)
def test_what_is_no_weight_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert message in refusal(path)


def test_a_pointer_says_how_large_the_file_should_be(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 4265380512\n")
    assert "(4.3 GB), not the file itself. Run `git lfs pull`" in refusal(path)


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 100 * 2**20 + 1, 5000])
def test_a_length_that_lies(tmp_path: Path, length: int) -> None:
    path = write_raw(tmp_path / "x.safetensors", json.dumps({"a": ENTRY}), b"\0" * 8, length)
    assert f"its header should have {length} bytes, but the file has only {path.stat().st_size}" in refusal(path)


def test_a_truncated_download_says_how_much_is_there(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {"a": (1000, 3450)}, "F16")
    os.truncate(path, path.stat().st_size - 5_800_000)
    assert refusal(path) == "1.1 MB of 6.9 MB present (truncated download?). Download it again."


def tensors(**entries: Any) -> str:
    return json.dumps(entries)


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        (tensors(a=ENTRY, b={**ENTRY, "data_offsets": [4, 12]}), 12, "tensor `b` overlaps another tensor"),
        (tensors(a=ENTRY, b=ENTRY), 8, "overlaps another tensor"),
        (tensors(a=ENTRY, b={**ENTRY, "data_offsets": [12, 20]}), 20, "tensor `b` leaves a hole before it"),
        (tensors(a={**ENTRY, "data_offsets": [4, 12]}), 12, "leaves a hole"),
        (tensors(a=ENTRY), 11, "3 bytes follow the last tensor"),
        (tensors(a={**ENTRY, "data_offsets": [8, 0]}), 8, "does not fill its -8 bytes"),
        (tensors(a={**ENTRY, "shape": [3]}), 8, "tensor `a` of shape [3] in F32 does not fill its 8 bytes"),
        (tensors(a={**ENTRY, "shape": [2**62, 2**62]}), 8, "does not fill"),
        (tensors(a={**ENTRY, "shape": [-2]}), 8, "not a natural number"),
        (tensors(a={**ENTRY, "shape": [2**64]}), 8, "not a natural number"),
        (tensors(a={**ENTRY, "shape": [True, 2]}), 8, "not a natural number"),
        (tensors(a={**ENTRY, "shape": [2.0]}), 8, "not a natural number"),
        (tensors(a={**ENTRY, "shape": [1] * 100_000}), 8, "no shape of at most 8 dimensions"),
        (tensors(a={**ENTRY, "shape": "2"}), 8, "no shape of at most"),
        (tensors(a={**ENTRY, "dtype": "F99"}), 8, "has the unknown dtype F99"),
        (tensors(a={**ENTRY, "dtype": ["F32"]}), 8, "has the unknown dtype"),
        (tensors(a={**ENTRY, "data_offsets": [0]}), 8, "is not described by dtype, shape and two data_offsets"),
        (tensors(a=[1, 2]), 8, "is not described by"),
        (tensors(a=5), 8, "is not described by"),
        (tensors(**{"a\x1b[31m": ENTRY}), 8, "a tensor has the unusable name `a?[31m`"),
        (tensors(**{"a" * 5000: ENTRY}), 8, "a tensor has the unusable name"),
        (
            '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
            8,
            "names `a` twice",
        ),
        ('{"__metadata__": {"k": "1", "k": "2"}}', 0, "names `k` twice"),
        ('{"__metadata__": {"k": 1}}', 0, "metadata holds something else than text"),
        ('{"__metadata__": [1]}', 0, "metadata is not a table"),
        ('{"a": NaN}', 0, "is not valid JSON"),
        ("{broken", 0, "is not valid JSON"),
        ('{"a":' * 200_000, 0, "is nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", 0, "is not valid JSON"),
        (b'{"\xff\xfe": 1}', 0, "is not valid JSON"),
    ],
)
def test_made_up_headers(tmp_path: Path, header: str | bytes, body: int, message: str) -> None:
    path = write_raw(tmp_path / "x.safetensors", header, b"\0" * body)
    start = time.process_time()
    assert message in refusal(path)
    assert time.process_time() - start < 1


def test_a_97_mb_header_of_empty_tensors_is_refused_at_once(tmp_path: Path) -> None:
    entry = '"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    path = write_raw(tmp_path / "x.safetensors", "{" + ",".join(entry % i for i in range(1_690_000)) + "}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    assert "its header has 99.7 MB, more than 16.8 MB" in refusal(path)
    assert time.process_time() - start < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_too_many_tensors(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {f"t{i}": (0,) for i in range(200)})
    with pytest.raises(WeightFileError, match="names 200 tensors, more than 100"):
        read_header(path, Limits(tensors=100))


def test_a_50_mb_metadata_text_is_refused(tmp_path: Path) -> None:
    assert "more than 16.8 MB" in refusal(write_raw(tmp_path / "x.safetensors", json.dumps({"__metadata__": {"k": "x" * 50_000_000}})))


def test_names_are_never_paths(tmp_path: Path) -> None:
    header = read_header(write_safetensors(tmp_path / "x.safetensors", {"../../etc/passwd": (1,)}))
    assert list(header.tensors) == ["../../etc/passwd"]


def test_missing_unreadable_and_strange_files(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "nope.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "is not a file (a device or a pipe)" in refusal(tmp_path / "pipe.safetensors")
    assert "is a folder without model_index.json" in refusal(tmp_path)


def test_words() -> None:
    assert [to_size(n) for n in (0, 999, 1000, 1_100_000_000, 5 * 10**12)] == ["0 bytes", "999 bytes", "1.0 kB", "1.1 GB", "5.0 TB"]
    assert shown("a\x1b]0;b\n" + "c" * 300, 10) == "a?]0;b?ccc..."


@FUZZ
@given(content=st.binary(max_size=200))
def test_random_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    never_crashes(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]), inner)
    ),
    max_leaves=12,
)


@FUZZ
@given(value=JSON, body=st.binary(max_size=20))
def test_random_json(tmp_path: Path, value: object, body: bytes) -> None:
    never_crashes(write_raw(tmp_path / "x.safetensors", json.dumps(value), body))


@FUZZ
@given(change=st.tuples(st.integers(0, 400), st.integers(0, 255)))
def test_one_changed_byte(tmp_path: Path, change: tuple[int, int]) -> None:
    header = json.dumps(to_header({"a.b": (2, 2), "c": ()}, "F16", {"k": "v"}))
    path = write_raw(tmp_path / "x.safetensors", header, b"\0" * 10)
    content = bytearray(path.read_bytes())
    content[change[0] % len(content)] = change[1]
    path.write_bytes(content)
    never_crashes(path)


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root reads everything, so the refusal of the system is played.
    path = write_safetensors(tmp_path / "x.safetensors", {"a": (1,)})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(path) == "cannot be read (Permission denied). Check its permissions."
