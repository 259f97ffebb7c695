"""Enlarging: equal to spandrel's own forward, tiles without seams, files of strangers, and its place in the engine."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from sdbatch.cell import Picture, WeightFile
from sdbatch.errors import CellError, WeightFileError
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from sdbatch.pipeline.upscale import Pixels, Upscaler, enlarge_tiled, import_spandrel, load_upscaler, network_dtype, tile_spans, upscale
from sdbatch.weights.reader import read_header
from sdbatch.weights.upscaler import find_scale
from tests.pipeline.models import TinyModel, make_cell, save
from tests.pipeline.upscalers import NETWORKS, build, needs_spandrel, write, write_pickle

CPU = torch.device("cpu")
pytestmark = needs_spandrel


def load(file: Any) -> Upscaler:
    return load_upscaler(file, torch.float32, CPU)


def picture(width: int, height: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["esrgan_x4", "esrgan_x2", "compact_x4", "swinir_x2", "span_x4"])
def test_a_whole_picture_is_what_spandrel_makes_of_it(name: str, tmp_path: Path) -> None:
    file = write(name, tmp_path)
    pixels = picture(37, 22)
    network = import_spandrel().ModelLoader().load_from_file(file.path).eval()
    expected = network(torch.tensor(pixels).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()
    assert expected.std() > 3
    found, finite = load(file).enlarge(pixels, 0)
    assert finite
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(64, 64), (65, 200), (150, 150), (131, 64), (300, 77)])
def test_tiles_are_the_whole_but_at_their_seams(size: tuple[int, int], tmp_path: Path) -> None:
    upscaler = load(write("compact_x2", tmp_path))
    pixels = picture(*size)
    whole = upscaler.enlarge(pixels, 0)[0].astype(int)
    tiled = upscaler.enlarge(pixels, 64)[0].astype(int)
    assert tiled.shape == whole.shape == (size[1] * 2, size[0] * 2, 3)
    differs = np.abs(tiled - whole).max(axis=2) > 1
    assert not (differs & ~near_borders(size)).any()
    assert differs.any() == (size != (64, 64)), "at a border the network sees less"


def near_borders(size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Where the network, which looks 4 pixels far, sees the border of a tile: [2 height, 2 width]."""
    found: list[npt.NDArray[np.bool_]] = []
    for length in size:
        borders = {border for span in tile_spans(length, 64, 16) for border in span} - {0, length}
        found.append(np.array([any(abs(place / 2 + 0.25 - border) < 4.5 for border in borders) for place in range(2 * length)], dtype=bool))
    columns, rows = found
    return rows[:, None] | columns[None, :]


def test_tiles_fade_into_each_other() -> None:
    """What every tile makes alike comes out unchanged, whatever tiles cover a pixel."""
    ramp = torch.linspace(0, 1, 3 * 150 * 211).view(1, 3, 150, 211)

    def double(part: torch.Tensor) -> torch.Tensor:
        return part.repeat_interleave(2, 2).repeat_interleave(2, 3)

    torch.testing.assert_close(enlarge_tiled(double, ramp, 2, 64), double(ramp), rtol=1e-6, atol=1e-6)


def test_half_precision_is_near(tmp_path: Path) -> None:
    upscaler = load(write("esrgan_x4", tmp_path))
    pixels = picture(24, 24)
    full = upscaler.enlarge(pixels, 0)[0].astype(int)
    upscaler.module.half()
    half = upscaler.enlarge(pixels, 0)[0].astype(int)
    assert 0 < np.abs(half - full).max() <= 3
    assert network_dtype(torch.bfloat16, True, torch.device("cuda")) is torch.float16
    assert network_dtype(torch.bfloat16, False, torch.device("cuda")) is torch.float32
    assert network_dtype(torch.float16, True, CPU) is torch.float32


@pytest.mark.parametrize("name", NETWORKS)
def test_the_header_tells_the_factor(name: str, tmp_path: Path) -> None:
    file = write(name, tmp_path)
    assert find_scale(read_header(Path(file.path))) == load(file).scale == int(name[-1])


@pytest.mark.parametrize("inner", [None, "params_ema", "params"])
def test_pickles_are_read_as_plain_tensors(inner: str | None, tmp_path: Path) -> None:
    network = build("esrgan_x4")
    pixels = picture(16, 16)
    expected = load(save(network.state_dict(), tmp_path / "a.safetensors")).enlarge(pixels, 0)[0]
    found = load(write_pickle(dict(network.state_dict()), tmp_path / "a.pth", inner)).enlarge(pixels, 0)[0]
    np.testing.assert_array_equal(found, expected)


def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    state = build("esrgan_x4").state_dict()
    with pytest.raises(WeightFileError, match="no numbers"):
        load(save({**state, "model.0.weight": state["model.0.weight"] * float("nan")}, tmp_path / "nan.safetensors"))
    with pytest.raises(WeightFileError, match=r"upscaler\.cut: spandrel cannot build its network"):
        load(save({key: tensor for key, tensor in state.items() if "RDB2" not in key}, tmp_path / "cut.safetensors"))
    grey = {**state, "model.0.weight": state["model.0.weight"][:, :1]}
    with pytest.raises(WeightFileError, match=r"upscaler\.grey: it does not make a larger RGB picture .* 1 to 3 channels"):
        load(save(grey, tmp_path / "grey.safetensors"))
    (tmp_path / "code.pth").write_bytes(b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.")
    with pytest.raises(WeightFileError, match=r"code"):
        load(WeightFile("code", str(tmp_path / "code.pth"), ""))


WITHOUT_TORCHVISION = """
import sdbatch.pipeline.diffusers_engine
from transformers.utils import is_torchvision_available
assert not is_torchvision_available(), "nobody takes the stand-in for an installed torchvision"
"""
WITH_A_BROKEN_ONE = """
try:
    import torchvision
except RuntimeError:
    pass
else:
    raise AssertionError("the stand-in hides what is installed")
"""


@pytest.mark.parametrize("after", [WITHOUT_TORCHVISION, WITH_A_BROKEN_ONE])
def test_the_stand_in_for_torchvision_leaves_nothing(after: str, tmp_path: Path) -> None:
    """A build for another torch breaks diffusers too, which `sdbatch doctor` tells; here it must stay what it is."""
    if importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed: nothing stands in for it")
    if after == WITH_A_BROKEN_ONE:
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    program = "import sys; sys.path.insert(0, sys.argv[1]); from sdbatch.pipeline.upscale import import_spandrel; import_spandrel()\n"
    run = subprocess.run([sys.executable, "-c", program + after, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def make(engine: DiffusersEngine, *cells: Any) -> list[Picture]:
    engine.prepare(cells[0].recipe)
    return engine.start(cells, lambda done, total: None).finish()


def test_the_engine_enlarges_what_it_decodes(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    file = write("compact_x4", tmp_path)
    recipe = model.recipe(upscaler=file)
    plain = make(engine, make_cell(model.recipe()))[0]
    unet = engine.model.denoiser
    own, double, half = make(engine, make_cell(recipe), make_cell(recipe, upscale=2.0, seed=8), make_cell(recipe, upscale=0.5))
    assert engine.model.denoiser is unet, "only the upscaler is loaded"
    (expected,) = make(engine, make_cell(recipe))
    np.testing.assert_array_equal(expected.pixels, load(file).enlarge(plain.pixels, 512)[0])
    assert [item.pixels.shape for item in (own, double, half)] == [(256, 256, 3), (128, 128, 3), (32, 32, 3)]
    again = upscale(make(engine, make_cell(model.recipe(), seed=8))[0].pixels, load(file), 2.0, 512)[0]
    assert np.abs(double.pixels.astype(int) - again).max() <= 2, "mates of a batch may differ in size"
    assert engine.model.upscaler is None, "the next recipe has none"


def test_without_a_network_lanczos_does_it(engine: DiffusersEngine, model: TinyModel) -> None:
    plain, large = (make(engine, make_cell(model.recipe(), upscale=scale))[0].pixels for scale in (None, 1.5))
    np.testing.assert_array_equal(large, np.asarray(Image.fromarray(plain).resize((96, 96), Image.Resampling.LANCZOS)))


def test_what_is_not_finite_and_what_is_too_large_is_told(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    recipe = model.recipe(upscaler=write("compact_x4", tmp_path))
    engine.prepare(recipe)
    assert engine.model.upscaler is not None
    next(engine.model.upscaler.module.parameters()).fill_(float("nan"))
    assert make(engine, make_cell(recipe))[0].fault == "nan"
    engine.model.close()
    with pytest.raises(CellError, match=r"upscaler: 16000 x 16000 px is more than image files may have .* Lower upscaler\.scale"):
        upscale(picture(1000, 1000), None, 16.0, 512)
