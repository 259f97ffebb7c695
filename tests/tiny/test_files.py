"""The shipped files are what their folders and headers say."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.tiny import bars

EMBEDDED = Path(__file__).parents[2] / "sdbatch" / "embedded"
WEIGHTS = sorted(EMBEDDED.rglob("*.safetensors"))
KNOWN_SUFFIXES = {".safetensors", ".json", ".txt", ".md", ""}


def size_mb(paths: list[Path]) -> float:
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def header_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def names_of(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


def test_everything_stays_small() -> None:
    assert size_mb(list(EMBEDDED.rglob("*"))) <= bars.TOTAL_MB
    assert size_mb([EMBEDDED / "checkpoints" / "tiny.safetensors"]) <= bars.BASE_MB
    assert size_mb(list((EMBEDDED / "checkpoints" / "tiny_diffusers").rglob("*"))) <= bars.BASE_MB


def test_only_harmless_kinds_of_file() -> None:
    assert {path.suffix for path in EMBEDDED.rglob("*") if path.is_file()} <= KNOWN_SUFFIXES


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.name)
def test_weights_are_half_precision(path: Path) -> None:
    with safe_open(path, "pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  (not a dict)
    assert kinds == {"F16"}


@pytest.mark.parametrize("path", [path for path in WEIGHTS if "tiny_diffusers" not in path.parts], ids=lambda path: path.name)
def test_headers_tell_what_it_is(path: Path) -> None:
    header = header_of(path)
    assert "modelspec.title" in header or "ss_output_name" in header


def test_the_single_file_has_original_names() -> None:
    names = names_of(EMBEDDED / "checkpoints" / "tiny.safetensors")
    assert "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight" in names
    assert "first_stage_model.decoder.up.3.block.0.conv1.weight" in names
    assert "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight" in names


def test_kohya_alphas_differ_by_layer() -> None:
    with safe_open(EMBEDDED / "loras" / "style_a.safetensors", "pt") as file:
        alphas = {file.get_tensor(name).item() for name in file.keys() if name.endswith(".alpha")}  # noqa: SIM118
    assert len(alphas) > 1


def test_licences_and_attribution_are_beside_the_weights() -> None:
    notice = (EMBEDDED / "NOTICE").read_text()
    assert "Noto Emoji" in notice and "Fluent Emoji" in notice
    for line in ("LICENSE-noto-emoji.txt", "LICENSE-fluentui-emoji.txt"):
        assert line in notice and (EMBEDDED / line).is_file()


def test_configurations_name_no_machine() -> None:
    for path in EMBEDDED.rglob("*.json"):
        text = path.read_text()
        json.loads(text)
        assert "_name_or_path" not in text and "/root" not in text and "/home" not in text
