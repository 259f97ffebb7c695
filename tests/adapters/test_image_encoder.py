"""Image encoders see what transformers' own processor shows them, and are read from every kind of file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sdbatch.adapters import image_encoder
from sdbatch.adapters.image_encoder import load_image_encoder, load_pixels
from sdbatch.cell import ImagePrompt, WeightFile
from sdbatch.errors import CellError, WeightFileError
from tests.adapters.ip_adapter_files import HIDDEN, SIDE_PX, build_image_encoder, save_image_encoder
from tests.pipeline.models import save, write_picture


@pytest.mark.parametrize("side_px", [224, 336, 28])
@pytest.mark.parametrize("size", [(224, 224), (640, 481), (333, 1000), (100, 37), (57, 57)])
def test_pixels_are_those_of_transformers(size: tuple[int, int], side_px: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    processor = CLIPImageProcessorPil(size=side_px, crop_size=side_px)
    for mode in ("RGB", "RGBA", "L", "P"):
        picture = Image.fromarray(noise[:, :, :3]).convert(mode) if mode != "RGBA" else Image.fromarray(noise)
        picture.save(tmp_path / "x.png")
        theirs = processor(picture, return_tensors="np").pixel_values[0]
        np.testing.assert_array_equal(load_pixels(str(tmp_path / "x.png"), side_px), theirs, err_msg=mode)


def test_a_camera_held_upright(tmp_path: Path) -> None:
    picture = Image.open(write_picture(tmp_path / "plain.png"))
    orientation = Image.Exif()
    orientation[0x0112] = 6
    picture.rotate(90, expand=True).save(tmp_path / "turned.png", exif=orientation)
    np.testing.assert_array_equal(load_pixels(str(tmp_path / "turned.png"), 28), load_pixels(str(tmp_path / "plain.png"), 28))


@pytest.mark.parametrize("content", [b"no picture", b""])
def test_what_is_no_picture_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(CellError, match=r"picture .*x\.png cannot be read"):
        load_pixels(str(tmp_path / "x.png"), 28)


def test_a_folder_a_file_with_a_json_and_a_file_of_a_known_size_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = build_image_encoder()
    module.save_pretrained(tmp_path / "folder")
    picture = ImagePrompt(str(write_picture(tmp_path / "picture.png")), "picture")
    monkeypatch.setitem(image_encoder.KNOWN, (HIDDEN, 3), {"num_attention_heads": 4, "hidden_act": "quick_gelu"})
    files = [
        WeightFile("folder", str(tmp_path / "folder"), "folder"),
        save_image_encoder(module, tmp_path / "beside.safetensors"),
        # Older files also hold the numbers of the positions.
        save({**module.state_dict(), "vision_model.embeddings.position_ids": torch.arange(17)[None]}, tmp_path / "known.safetensors"),
    ]
    with torch.inference_mode():
        pixels = torch.from_numpy(load_pixels(picture.image, SIDE_PX))[None]
        theirs = module(pixels, output_hidden_states=True)
        for file in files:
            encoder = load_image_encoder(file, torch.float32)
            seen = encoder.see(picture)
            torch.testing.assert_close(seen.summary_1E, theirs.image_embeds, msg=file.name)
            torch.testing.assert_close(seen.patches_1PD, theirs.hidden_states[-2], msg=file.name)
            nothing = encoder.see_nothing()
            assert not nothing.summary_1E.any()
            of_zeros = module(torch.zeros_like(pixels), output_hidden_states=True).hidden_states[-2]
            torch.testing.assert_close(nothing.patches_1PD, of_zeros, msg=file.name)


def test_what_it_saw_is_remembered_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_encoder, "REMEMBERED", 2)
    encoder = load_image_encoder(save_image_encoder(build_image_encoder(), tmp_path / "vision.safetensors"), torch.float32)
    prompts = [ImagePrompt(str(write_picture(tmp_path / f"{seed}.png", seed)), str(seed)) for seed in range(3)]
    with torch.inference_mode():
        first = [encoder.see(prompt) for prompt in prompts]
        assert encoder.see(prompts[2]) is first[2]
        assert encoder.see(prompts[0]) is not first[0], "the oldest of three makes room"
        again = encoder.see(prompts[0])
        encoder.forget()
        assert encoder.see(prompts[0]) is not again


def test_other_files_are_refused(tmp_path: Path) -> None:
    state = build_image_encoder().state_dict()
    unknown = save(state, tmp_path / "unknown.safetensors")
    with pytest.raises(WeightFileError, match="an image encoder of 3 layers, 32 wide, is not known, and there is no JSON"):
        load_image_encoder(unknown, torch.float32)
    bare = save({key: tensor for key, tensor in state.items() if "projection" not in key}, tmp_path / "bare.safetensors")
    with pytest.raises(WeightFileError, match=r"visual_projection\.weight is missing"):
        load_image_encoder(bare, torch.float32)
    part = build_image_encoder()
    file = save_image_encoder(part, tmp_path / "part.safetensors")
    save({key: tensor for key, tensor in state.items() if "layers.1." not in key}, tmp_path / "part.safetensors")
    with pytest.raises(WeightFileError, match=r"image_encoder\.part: 16 keys are missing"):
        load_image_encoder(file, torch.float32)
