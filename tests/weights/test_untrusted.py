"""Every file of the gallery is refused in one sentence, within a second and little memory, and nothing in it runs.

The reader stands in a process of its own whose memory and time the system limits: what would need more, dies.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbatch.weights.identify import identify
from tests.weights import dialects as d
from tests.weights.fuzz import FUZZ, never_crashes
from tests.weights.hostile import gallery
from tests.weights.writer import to_header, write_raw, write_safetensors

MEMORY_MB = 400
"""Of address space, Python's own included."""

READER = """
import json, resource, sys, time
from pathlib import Path
from sdbatch.errors import WeightFileError
from sdbatch.weights.identify import identify
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for name in sys.argv[1:]:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        said = "accepted as " + identify(Path(name)).kind
    except WeightFileError as error:
        said = str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([name, said, time.process_time() - start, grown]), flush=True)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float, int]]:
    """File name -> what was said, CPU seconds, kB of memory more."""
    folder = tmp_path_factory.mktemp("gallery")
    for name, make in gallery(folder / "marker").items():
        make(folder / name)
    files = [str(folder / name) for name in gallery(folder / "marker")]
    command = [sys.executable, "-c", READER.format(memory=MEMORY_MB * 2**20), *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows: list[tuple[str, str, float, int]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert not (folder / "marker").exists(), "code of a file ran"
    return {Path(name).name: (said.removeprefix(f"{name}: "), seconds, grown) for name, said, seconds, grown in rows}


SAID = {
    "zip.ckpt": "pickle asks to import posix.system; not loaded",
    "plain.pt": "pickle asks to import posix.system; not loaded",
    "protocol5.bin": "pickle asks to import posix.system; not loaded",
    "global.pt": "pickle asks to import posix.system; not loaded",
    "renamed.safetensors": "is a pickle, not safetensors",
    "renamed.png": "is a pickle under a name that does not say so",
    "truncated.safetensors": "present (truncated download?)",
    "truncated.ckpt": "(truncated download?)",
    "empty.safetensors": "is empty (0 bytes)",
    "three.safetensors": "has only 3 bytes",
    "page.safetensors": "is an HTML page, not a weight file (login needed?)",
    "pointer.safetensors": "is a Git-LFS pointer for sha256:abab",
    "answer.safetensors": "is a JSON text",
    "bomb.pt": "(a zip bomb?)",
    "nested.pt": "more operations than any checkpoint needs",
    "laughs.pt": "nested without end?",
    "marks.pt": "more operations than any checkpoint needs",
    "long.pt": "a number of 10000000 bytes",
    "length63.safetensors": "should have 9223372036854775807 bytes, but the file has only",
    "length64.safetensors": "should have 18446744073709551615 bytes, but the file has only",
    "length100m.safetensors": "should have 104857601 bytes, but the file has only",
    "many.safetensors": "its header has 17.7 MB, more than 16.8 MB",
    "overlap.safetensors": "tensor `b` overlaps another tensor",
    "hole.safetensors": "tensor `b` leaves a hole before it",
    "trailing.safetensors": "3 bytes follow the last tensor",
    "double.safetensors": "names `a` twice",
    "overflow.safetensors": "does not fill its 8 bytes",
    "mismatch.safetensors": "does not fill its 8 bytes",
    "dtype.safetensors": "has the unknown dtype F99",
    "dims.safetensors": "no shape of at most 8 dimensions",
    "deep.safetensors": "is nested too deeply",
    "control.safetensors": "a tensor has the unusable name `a?[31m?`",
    "endless.safetensors": "a tensor has the unusable name `aaa",
    "metadata.safetensors": "its header has 20.0 MB, more than 16.8 MB",
}


@pytest.mark.parametrize("name", SAID)
def test_each_is_refused_by_name_at_once_in_little_memory(told: dict[str, tuple[str, float, int]], name: str) -> None:
    said, seconds, grown_kb = told[name]
    assert SAID[name] in said
    assert "\n" not in said
    assert "weights_only" not in said
    assert seconds < 1.5 if name in ("nested.pt", "marks.pt") else seconds < 1
    assert grown_kb < 100_000


def test_the_gallery_is_told_completely(told: dict[str, tuple[str, float, int]]) -> None:
    assert set(told) == set(SAID)


WORDS = (
    *("lora_unet_", "down_blocks_0_", "attn2_to_k", "transformer.", "single_blocks.0.", "lora_te1_", "clip_l", "clip_g", "text_model."),
    *(".lora_down.weight", ".lora_up.weight", ".alpha", ".lokr_w1", ".lokr_w2", ".hada_w1_b", ".oft_blocks", ".diff", ".dora_scale"),
    *("model.diffusion_model.", "first_stage_model.", "conv_in.weight", "decoder.", "emb_params", "768.0.", "ip_adapter.", "body.0."),
)
NAMES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map("".join)
SHAPES = st.lists(st.sampled_from([0, 1, 4, 16, 77, 320, 768]), max_size=4).map(tuple)


@FUZZ
@given(tensors=st.dictionaries(NAMES, SHAPES, max_size=12), dtype=st.sampled_from(["F16", "F32", "BF16", "U8"]))
def test_any_mixture_of_known_names_and_shapes(tmp_path: Path, tensors: dict[str, tuple[int, ...]], dtype: str) -> None:
    small = {name: tuple(min(side, 8) for side in shape) if len(shape) > 2 else shape for name, shape in tensors.items()}
    never_crashes(write_safetensors(tmp_path / "x.safetensors", small, dtype))


SAID_BY_TRAINERS = ["ss_tag_frequency", "ss_base_model_version", "ss_v2", "modelspec.architecture", "modelspec.trigger_phrase", "x"]
TEXT = st.text(max_size=40) | st.recursive(
    st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)
).map(json.dumps)


@FUZZ
@given(metadata=st.dictionaries(st.sampled_from(SAID_BY_TRAINERS), TEXT))
def test_any_metadata(tmp_path: Path, metadata: dict[str, str]) -> None:
    never_crashes(write_safetensors(tmp_path / "x.safetensors", d.kohya(d.unet_modules(8), 1), metadata=metadata))


@FUZZ
@given(
    config=st.dictionaries(st.sampled_from(["_class_name", "unet", "vae", "auto_map", "prediction_type"]), st.text() | st.lists(st.text()))
)
def test_any_config_of_a_folder(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "unet").mkdir(exist_ok=True)
    write_raw(tmp_path / "unet/diffusion_pytorch_model.safetensors", json.dumps(to_header({"conv_in.weight": (1, 4, 1, 1)})), b"\0" * 8)
    for name in ("model_index.json", "unet/config.json"):
        (tmp_path / name).write_text(json.dumps(config))
    never_crashes(tmp_path)


def test_metadata_is_never_a_name_nor_markup(tmp_path: Path) -> None:
    metadata = {"modelspec.title": "../../etc/passwd", "ss_output_name": "<script>alert(1)</script>\x1b]0;x\x07"}
    identity = identify(write_safetensors(tmp_path / "x.safetensors", d.kohya(d.unet_modules(768)), metadata=metadata))
    assert identity.path == tmp_path / "x.safetensors"
    assert all(value.isprintable() for value in identity.metadata.values())
