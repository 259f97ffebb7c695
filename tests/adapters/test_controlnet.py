from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sdbatch.adapters.canny import draw_edges
from sdbatch.adapters.controlnet import ControlNetBatch, load_controlnet, load_picture
from sdbatch.cell import Control, WeightFile
from sdbatch.errors import CellError, ConfigError, WeightFileError
from tests.pipeline.models import TinyModel, build_controlnet, original_controlnet, save, write_picture


def equal(module: Any, state: dict[str, Tensor]) -> bool:
    loaded = module.state_dict()
    return loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)


def test_settings_from_the_unet_from_beside_the_file_and_from_the_folder(model: TinyModel, tmp_path: Path) -> None:
    net = build_controlnet(model.pipeline)
    state, unet_config = net.state_dict(), model.pipeline.unet.config
    alone = save(state, tmp_path / "alone" / "net.safetensors")
    beside = save(state, tmp_path / "beside" / "net.safetensors")
    (tmp_path / "beside" / "net.json").write_text(json.dumps(dict(net.config), default=str))
    net.save_pretrained(tmp_path / "folder")
    folder = WeightFile("folder", str(tmp_path / "folder"), "folder")
    for file in (alone, beside, folder):
        assert equal(load_controlnet(file, model.config, unet_config, torch.float32), state), file.path


def test_original_keys(model: TinyModel, tmp_path: Path) -> None:
    net = build_controlnet(model.pipeline)
    file = save(original_controlnet(net), tmp_path / "net.safetensors")
    assert equal(load_controlnet(file, model.config, model.pipeline.unet.config, torch.float32), net.state_dict())


def test_other_files_are_refused(model: TinyModel, tmp_path: Path) -> None:
    unet = save(model.pipeline.unet.state_dict(), tmp_path / "unet.safetensors")
    with pytest.raises(WeightFileError, match=r"controlnet\.unet: it is no ControlNet"):
        load_controlnet(unet, model.config, model.pipeline.unet.config, torch.float32)
    lora = save({"lora_unet_conv_in.lora_up.weight": torch.ones(4, 4)}, tmp_path / "lora.safetensors")
    with pytest.raises(WeightFileError, match=r"controlnet\.lora: it is no ControlNet; it holds lora_unet_conv_in"):
        load_controlnet(lora, model.config, model.pipeline.unet.config, torch.float32)
    net = save(build_controlnet(model.pipeline).state_dict(), tmp_path / "net.safetensors")
    wide = {**model.pipeline.unet.config, "cross_attention_dim": 768}
    with pytest.raises(WeightFileError, match="made for 32-wide text embeddings, the model has 768"):
        load_controlnet(net, model.config, wide, torch.float32)
    state = build_controlnet(model.pipeline).state_dict()
    del state["conv_in.weight"]
    with pytest.raises(WeightFileError, match=r"1 keys are missing \(first conv_in\.weight\)"):
        load_controlnet(save(state, tmp_path / "partial.safetensors"), model.config, model.pipeline.unet.config, torch.float32)


@pytest.mark.parametrize(
    ("window", "steps", "active"),
    [((0.0, 1.0), 4, [0, 1, 2, 3]), ((0.25, 0.75), 4, [1, 2]), ((0.5, 1.0), 4, [2, 3]), ((0.0, 0.01), 4, [])],
)
def test_windows_count_steps(window: tuple[float, float], steps: int, active: list[int]) -> None:
    batch = ControlNetBatch(torch.nn.Identity(), torch.zeros(2, 3, 8, 8), (0.5, 0.0), (window, window))
    assert [step for step in range(steps) if batch.scales(step, steps) == (0.5, 0.0)] == active


def test_pictures(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "picture.png", size=64)
    plain = load_picture(Control(str(path), "0"), 64, 64)
    assert plain.shape == (3, 64, 64)
    assert 0 <= float(plain.min()) < float(plain.max()) <= 1
    assert load_picture(Control(str(path), "0"), 48, 32).shape == (3, 32, 48)
    edges = load_picture(Control(str(path), "0", preprocessor="canny"), 64, 64)
    expected = draw_edges((plain.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    np.testing.assert_array_equal((edges.permute(1, 2, 0).numpy() * 255).round(), expected)
    with pytest.raises(ConfigError, match=r"there is no 'cany'\. Did you mean canny\?"):
        load_picture(Control(str(path), "0", preprocessor="cany"), 64, 64)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(CellError, match="cannot be read"):
        load_picture(Control(str(tmp_path / "text.png"), "0"), 64, 64)


def test_a_picture_is_turned_as_it_was_held_and_transparent_black_stays_black(tmp_path: Path) -> None:
    whole = Image.open(write_picture(tmp_path / "picture.png", size=64)).convert("RGB")
    orientation = Image.Exif()
    orientation[0x0112] = 6
    whole.rotate(90, expand=True).save(tmp_path / "turned.png", exif=orientation)
    turned = load_picture(Control(str(tmp_path / "turned.png"), "0"), 64, 48)
    assert torch.equal(turned, load_picture(Control(str(tmp_path / "picture.png"), "0"), 64, 48))
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert float(load_picture(Control(str(tmp_path / "clear.png"), "0"), 64, 64).max()) == 0.0
