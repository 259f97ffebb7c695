"""Training goes on from the committed weights, and what it writes is read as they are."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jobs.tiny import config as settings
from jobs.tiny import emoji, export, generate, shipped, train

PARTS = ("controlnet", "style_a", "style_b", "pixel_locon", "sepia_loha", "vaporwave", "dull", "second_checkpoint", "second_vae")
FILES = {
    "controlnet": "controlnet/tiny_canny",
    "second_checkpoint": "checkpoints/tiny_pastel",
    "second_vae": "vae/tiny_vivid",
    **{name: f"loras/{name}" for name in ("style_a", "style_b", "pixel_locon", "sepia_loha")},
    **{name: f"embeddings/{name}" for name in ("vaporwave", "dull")},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training folder laid out from the shipped weights, with made-up pictures of the first few nouns."""
    folder = tmp_path_factory.mktemp("tiny")
    nouns = emoji.load_nouns()[:3]
    random = np.random.default_rng(0)
    pictures = {name: random.integers(0, 255, (len(nouns), 128, 128, 4), np.uint8) for name in emoji.PACKAGES}
    arrays: dict[str, Any] = {"names": np.array([f"{noun.name} {noun.emoji}" for noun in nouns]), **pictures}
    np.savez(folder / "pictures_128.npz", **arrays)
    shipped.lay_out(shipped.EMBEDDED, folder)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    nouns = emoji.load_nouns()[:3]
    monkeypatch.setattr(emoji, "load_nouns", lambda: nouns)
    monkeypatch.setattr(generate, "STEPS", 1)


def run(out: Path, part: str, **loop: Any) -> None:
    config = settings.load_config([f"out={out}", "workers=1", "device=cpu"])
    sections = (config["adapters"], config["embeddings"], config)
    section = next(section[part] for section in sections if part in section)
    section |= {"batch": 2} | loop
    train.run_part(part, config, out)


def read(folder: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{FILES[part]}.safetensors")


def export_to(folder: Path, out: Path, part: str) -> None:
    """Write this part as it is shipped."""
    folder.mkdir(exist_ok=True)
    match part:
        case "controlnet":
            export.export_controlnet(out, folder)
        case "second_vae":
            export.export_vae(out, folder)
        case "second_checkpoint":
            export.export_base(out, folder)
        case _:
            target = folder / f"{FILES[part]}.safetensors"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes((out / "adapters" / target.name).read_bytes())


def test_laid_out_and_exported_again_is_the_same(out: Path, tmp_path: Path) -> None:
    shutil.copytree(shipped.EMBEDDED, tmp_path, dirs_exist_ok=True)
    export.export_base(out, tmp_path)
    export.export_controlnet(out, tmp_path)
    export.export_vae(out, tmp_path)
    for path in shipped.EMBEDDED.rglob("*.safetensors"):
        assert (tmp_path / path.relative_to(shipped.EMBEDDED)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("part", PARTS)
def test_begins_with_the_shipped_weights_and_goes_on(out: Path, tmp_path: Path, part: str) -> None:
    # A rate of nothing writes what it began with.
    run(out, part, steps=1, lr=0.0)
    export_to(tmp_path / "still", out, part)
    before, still = read(shipped.EMBEDDED, part), read(tmp_path / "still", part)
    assert before.keys() == still.keys()
    assert all(torch.equal(before[name], still[name]) for name in before)
    # The restart state continues the same run.
    run(out, part, steps=3, lr=1e-3)
    export_to(tmp_path / "moved", out, part)
    moved = read(tmp_path / "moved", part)
    assert any(not torch.equal(before[name], moved[name]) for name in before)
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in moved.items()}


def test_an_own_training_is_not_laid_over(out: Path, tmp_path: Path) -> None:
    (tmp_path / "vae_raw").mkdir()
    shipped.lay_out(shipped.EMBEDDED, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vae_raw"]


def test_another_rank_is_refused(out: Path) -> None:
    with pytest.raises(ValueError, match=r"style_a\.safetensors: .*rank"):
        run(out, "style_a", steps=1, rank=4)


@pytest.mark.parametrize("override", ["unet.minuts=3", "adapters.style_c.rank=1", "init=embeded"])
def test_a_mistyped_setting_is_refused(override: str) -> None:
    with pytest.raises(ValueError, match=r"unet\.minuts|adapters\.style_c|init=embeded"):
        settings.load_config([override])
