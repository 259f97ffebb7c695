"""Pickles never execute: they are walked, and what weight files do not need is refused by name (cases 1-7, 13, 15, 30)."""

from __future__ import annotations

import ast
import os
import pickle
import pickletools
import resource
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdbatch.weights.pickle_walk
from sdbatch.errors import WeightFileError
from sdbatch.weights import reader
from sdbatch.weights.header import TensorInfo
from sdbatch.weights.reader import read_header
from tests.weights.fuzz import FUZZ, never_crashes

torch = pytest.importorskip("torch")


def refusal(path: Path) -> str:
    with pytest.raises(WeightFileError) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "weights_only" not in message
    return message.removeprefix(f"{path}: ")


SYSTEM: Any = vars(os)["system"]


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path, function: Any = SYSTEM) -> None:
        self.marker = marker
        self.function = function

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return self.function, (f"touch {self.marker}",)


def write_plain(path: Path, value: object, protocol: int = 4) -> None:
    path.write_bytes(pickle.dumps(value, protocol=protocol))


def write_zip(path: Path, value: object) -> None:
    torch.save(value, path)


def write_legacy(path: Path, value: object) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


WRITERS = [write_plain, write_zip, write_legacy]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", ["evil.ckpt", "evil.pt", "evil.bin", "evil.pth"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, write: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    write(tmp_path / name, {"state_dict": {"a": Touch(marker)}})
    assert refusal(tmp_path / name) == "pickle asks to import posix.system; not loaded. Use a .safetensors version."
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("function", [SYSTEM, eval, exec, os.remove, getattr, __import__])
def test_every_protocol_and_gadget(tmp_path: Path, protocol: int, function: Any) -> None:
    marker = tmp_path / "marker"
    write_plain(tmp_path / "x.pt", Touch(marker, function), protocol)
    assert "pickle asks to import" in refusal(tmp_path / "x.pt")
    assert not marker.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"(S'touch MARK'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nX\x05\0\0\0touch\x6f.",  # OBJ
        b"\x82\x01.",  # EXT1
        b"\x8c\x02os\x8c\x06system\x93\x8c\x05touch\x85R.",  # STACK_GLOBAL
        b"cos\nsystem\n)\x81}b.",  # NEWOBJ, BUILD
        b"cos\nsystem\n)}\x92.",  # NEWOBJ_EX
        b"ctorch.storage\n_load_from_bytes\nC\x01x\x85R.",
        b"ctorch\nload\nX\x01\0\0\0x\x85R.",
        b"cbuiltins\ngetattr\n.",
    ],
)
def test_every_way_to_import(tmp_path: Path, opcodes: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x04" + opcodes)
    assert "not loaded" in refusal(path) or "which no checkpoint needs" in refusal(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.safetensors", "is a pickle, not safetensors; a pickle can hold code, and this one hides it"),
        ("x.png", "is a pickle under a name that does not say so"),
        ("x", "is a pickle under a name that does not say so"),
    ],
)
@pytest.mark.parametrize("write", WRITERS)
def test_a_renamed_pickle(tmp_path: Path, write: Any, name: str, message: str) -> None:
    write(tmp_path / name, {"a": torch.zeros(100)})
    assert message in refusal(tmp_path / name)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_tensors_of_a_checkpoint(tmp_path: Path, write: Any) -> None:
    state = OrderedDict(
        {
            "a": torch.zeros(2, 3),
            "b.half": torch.zeros(4, dtype=torch.float16),
            "b.bf16": torch.zeros(1, 1, dtype=torch.bfloat16),
            "view": torch.zeros(4, 4)[1:, 2],
            "ids": torch.arange(77).expand((1, -1)),
            "parameter": torch.nn.Parameter(torch.zeros(5)),
            "scalar": torch.tensor(4.0),
        }
    )
    write(tmp_path / "x.ckpt", {"state_dict": state, "global_step": 7, "epoch": 1.5, "callbacks": {"x": [1]}})
    header = read_header(tmp_path / "x.ckpt")
    assert header.format == "pickle"
    assert header.values == {"global_step": 7, "epoch": 1.5}
    assert header.tensors == {
        "a": TensorInfo("F32", (2, 3)),
        "b.half": TensorInfo("F16", (4,)),
        "b.bf16": TensorInfo("BF16", (1, 1)),
        "view": TensorInfo("F32", (3,)),
        "ids": TensorInfo("I64", (1, 77)),
        "parameter": TensorInfo("F32", (5,)),
        "scalar": TensorInfo("F32", ()),
    }


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_a_module_state_and_float8(tmp_path: Path, write: Any) -> None:
    state = torch.nn.Linear(3, 2).state_dict()
    write(tmp_path / "x.pth", {"params_ema": state, "other": {"f8": torch.zeros(2, dtype=torch.float8_e4m3fn)}})
    assert set(read_header(tmp_path / "x.pth").tensors) == {"weight", "bias"}
    write(tmp_path / "y.pth", {"f8": torch.zeros(2, dtype=torch.float8_e4m3fn)})
    assert read_header(tmp_path / "y.pth").tensors == {"f8": TensorInfo("F8_E4M3", (2,))}


def test_nested_files_keep_their_names(tmp_path: Path) -> None:
    write_zip(tmp_path / "hn.pt", {768: ({"linear.0.weight": torch.zeros(2, 2)}, {"linear.0.weight": torch.zeros(2, 2)}), "name": "hn"})
    header = read_header(tmp_path / "hn.pt")
    assert list(header.tensors) == ["768.0.linear.0.weight", "768.1.linear.0.weight"]
    assert header.values == {"name": "hn"}


def test_harmless_training_classes_are_noted(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    write_zip(tmp_path / "x.ckpt", {"state_dict": {"a": torch.zeros(1)}, "best": np.float64(1.0)})
    header = read_header(tmp_path / "x.ckpt")
    assert list(header.tensors) == ["a"]
    assert {name.rpartition(".")[2] for name in header.foreign} == {"scalar", "dtype"}


def test_a_lightning_checkpoint_is_read_and_the_class_named(tmp_path: Path) -> None:
    name = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    path = tmp_path / "x.ckpt"
    write_plain(path, {"state_dict": {}}, 2)
    path.write_bytes(b"\x80\x02}(X\x09\0\0\0callbacks}" + name + b"K\x01su.")
    assert read_header(path).foreign == ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_truncated(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "x.ckpt"
    write(path, {"a": torch.zeros(100_000), "b": torch.zeros(100_000)})
    os.truncate(path, path.stat().st_size // 2)
    assert "(truncated download?)" in refusal(path)


def bomb(path: Path, member: str, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        with archive.open(member, "w", force_zip64=True) as out:
            for _ in range(256):
                out.write(bytes(2**20))
    return path


def test_a_zip_bomb_is_refused_from_its_directory(tmp_path: Path) -> None:
    path = bomb(tmp_path / "x.pt", "archive/data/0")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    assert "is compressed" in refusal(path)
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_archives_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    write_zip(path, {"a": torch.zeros(3)})
    content = path.read_bytes()
    record = content.rfind(b"PK\x06\x06")  # torch always writes the zip64 record
    for place, value in ((40, 2**40), (40, 10), (48, 2**62), (48, 3)):
        data = bytearray(content)
        struct.pack_into("<Q", data, record + place, value)  # size and place of the directory
        path.write_bytes(data)
        assert "directory" in refusal(path)
    data = bytearray(content)
    first = content.find(b"PK\x01\x02")
    struct.pack_into("<II", data, first + 20, 2**31, 2**31)  # packed and unpacked size of a member
    path.write_bytes(data)
    assert "zip bomb?" in refusal(path)


def test_archives_that_are_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "is a zip archive with 0 data.pkl" in refusal(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/code/__torch__.py", "")
    assert "is a TorchScript program" in refusal(tmp_path / "y.pt")
    with zipfile.ZipFile(tmp_path / "z.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("b/data.pkl", b"\x80\x02}.")
    assert "with 2 data.pkl" in refusal(tmp_path / "z.pt")


def in_time(path: Path) -> str:
    start = time.process_time()
    message = refusal(path)
    assert time.process_time() - start < 5
    return message


@pytest.mark.parametrize(
    "opcodes",
    [
        b"]" * 2_000_000 + b"a" * 1_999_999 + b".",  # nested lists
        b"(" * 3_000_000 + b".",
        b")" + b"2\x86" * 3_000_000 + b".",  # tuples of itself, doubling
    ],
)
def test_endless_pickles(tmp_path: Path, opcodes: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02" + opcodes)
    assert "more operations than any checkpoint needs" in in_time(path)


@pytest.mark.parametrize(
    "opcodes",
    [
        b")" + b"2\x86" * 60 + b".",  # billion laughs
        b"}q\x00X\x01\0\0\0ah\x00s.",  # a dictionary that holds itself
        b"]q\x00h\x00a.",
        b"}(" + b"K\x01)" + b"2\x86" * 60 + b"u.",
    ],
)
def test_small_pickles_of_endless_trees(tmp_path: Path, opcodes: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02" + opcodes + bytes(20))
    assert "nested without end?" in in_time(path)


def test_keys_that_take_for_ever_to_hash(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s." + bytes(20))
    assert "its pickle is damaged" in in_time(path)


def test_numbers_of_many_digits_and_memo_places(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02\x8b" + struct.pack("<I", 10_000_000) + b"\1" * 10_000_000 + b".")
    assert "a number of 10000000 bytes" in refusal(path)
    path.write_bytes(b"\x80\x02Nr\xff\xff\xff\xff0N." + bytes(20))
    assert read_header(path).tensors == {}


def test_a_tensor_that_claims_more_than_the_file(tmp_path: Path) -> None:
    write_zip(tmp_path / "x.pt", {"a": torch.zeros(1).expand(10**6, 10**6)})
    assert "has more values than the file" in refusal(tmp_path / "x.pt")


def test_the_walker_agrees_with_pickletools(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, "x", None, True, (1, 2, 3, 4), {"b": b"bytes"}, 2**70, -5, 70000], "long" * 100: "é" * 300}
    for protocol in (2, 3, 4, 5):
        data = pickle.dumps(value, protocol)
        walker = sdbatch.weights.pickle_walk.Walker(data, 10_000)
        walked = walker.walk()
        assert walked == value or protocol == 2  # bytes are a call in protocol 2
        assert walker.position == len(data)
        assert 10_000 - walker.ops_left == len(list(pickletools.genops(data))) - 1


@FUZZ
@given(content=st.binary(max_size=300), start=st.sampled_from([b"\x80\x02", b"\x80\x05", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)]))
def test_random_bytes(tmp_path: Path, content: bytes, start: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(start + content)
    never_crashes(path)


OPCODES = st.lists(
    st.sampled_from([bytes([op]) for op in sdbatch.weights.pickle_walk.OPERATIONS] + [b"\x01", b"\0\0\0\1", b"a\n"]), max_size=40
)


@FUZZ
@given(opcodes=OPCODES)
def test_random_opcodes(tmp_path: Path, opcodes: list[bytes]) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02" + b"".join(opcodes) + b"." + bytes(20))
    never_crashes(path)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_every_changed_byte(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "x.pt"
    write(path, {"a": torch.zeros(2)})
    content = path.read_bytes()
    for at in range(0, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        never_crashes(path)


def test_no_code_path_unpickles() -> None:
    """The package walks pickles; it never hands one to Python's or torch's unpickler."""
    package = Path(reader.__file__).parent
    for module in package.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "_pickle", "torch", "marshal", "shelve", "joblib", "cloudpickle", "dill"}, module
