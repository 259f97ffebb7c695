"""img2img and inpainting make the same pictures as diffusers' own pipelines, bit for bit at batch 1."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageFilter

from sdbatch.cell import Cell, Control, Mask, Source
from sdbatch.errors import CellError
from sdbatch.families import FAMILIES, SAMPLERS
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from sdbatch.pipeline.encode import to_tensor
from sdbatch.pipeline.engine import batch_key
from sdbatch.pipeline.picture import read_mask, read_source
from tests.pipeline.models import PIXELS, TinyModel, build_controlnet, diffusers, make_cell, save, write_picture
from tests.pipeline.oracle import Pixels, draw, draw_with_diffusers
from tests.pipeline.test_checkpoints import altered, as_file
from tests.pipeline.test_families import latents
from tests.pipeline.zoo import ZOO, Zoo

IMG2IMG = {
    "sd1": diffusers.StableDiffusionImg2ImgPipeline,
    "sd2": diffusers.StableDiffusionImg2ImgPipeline,
    "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline,
    "flux": diffusers.FluxImg2ImgPipeline,
}
INPAINT = {
    "sd1": diffusers.StableDiffusionInpaintPipeline,
    "sd2": diffusers.StableDiffusionInpaintPipeline,
    "sdxl": diffusers.StableDiffusionXLInpaintPipeline,
    "flux": diffusers.FluxInpaintPipeline,
}


def write_mask(path: Path, seed: int = 0, size: int = 80) -> Path:
    """A white rectangle on black."""
    top, left = np.random.default_rng(seed).integers(8, size // 2, 2)
    pixels = np.zeros((size, size), np.uint8)
    pixels[top : top + size // 3, left : left + size // 2] = 255
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(str(write_picture(tmp_path_factory.mktemp("source") / "source.png", seed=3)), "source", 0.6)


@pytest.fixture(scope="module")
def mask(source: Source) -> Mask:
    return Mask(str(write_mask(Path(source.image).with_name("mask.png"))), "mask", paste=False)


@pytest.fixture(scope="module")
def masked(source: Source, mask: Mask) -> Source:
    return replace(source, mask=mask)


def cell_of(model: TinyModel, source: Source, **changes: Any) -> Cell:
    flow = model.family == "flux"
    values: dict[str, Any] = {"sampler": SAMPLERS["flow_euler" if flow else "euler"], "steps": 5, "source": source}
    values |= {} if flow else {"negative_prompt": "bad"}
    return make_cell(changes.pop("recipe", None) or model.recipe(), **{**values, **changes})


def oracle_of(model: TinyModel, cls: Any, **parts: Any) -> Any:
    """Diffusers' pipeline of a task with a model's parts."""
    known = inspect.signature(cls.__init__).parameters
    components = {name: part for name, part in {**model.pipeline.components, **parts}.items() if name in known}
    options = {"add_watermarker": False, "requires_safety_checker": False, "force_zeros_for_empty_prompt": True}
    pipeline = cls(**components, **{name: value for name, value in options.items() if name in known})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_from_picture(model: TinyModel, cell: Cell, pipeline: Any, **inputs: Any) -> Pixels:
    """Diffusers' pipeline of a task takes the picture in the image's size, or, with a mask, as it is."""
    assert cell.source is not None
    picture = Image.open(cell.source.image)
    if cell.source.mask is not None:
        inputs["mask_image"] = Image.open(cell.source.mask.image).filter(ImageFilter.GaussianBlur(cell.source.mask.blur_px))
    else:
        picture = picture.resize((cell.width, cell.height), Image.Resampling.LANCZOS)
        inputs |= {} if model.family == "flux" else {"width": None, "height": None}
    return draw_with_diffusers(model, cell, pipeline, image=picture, strength=cell.source.strength, **inputs)


@pytest.mark.parametrize("name", FAMILIES["sd1"].samplers)
def test_every_sampler_equals_diffusers(name: str, engine: DiffusersEngine, model: TinyModel, source: Source) -> None:
    cell = cell_of(model, source, sampler=SAMPLERS[name])
    ours = draw(cell, engine)
    assert ours.std() > 5
    np.testing.assert_array_equal(ours, draw_from_picture(model, cell, oracle_of(model, IMG2IMG["sd1"])))


@pytest.mark.parametrize("name", ["euler", "euler_a", "heun", "lms_karras", "dpmpp_2m_sde_karras", "dpmpp_sde", "ddim_eta1", "lcm", "pndm"])
def test_inpainting_equals_diffusers(name: str, engine: DiffusersEngine, model: TinyModel, masked: Source) -> None:
    oracle = oracle_of(model, INPAINT["sd1"])
    for strength in (0.6, 1.0):
        cell = cell_of(model, replace(masked, strength=strength), sampler=SAMPLERS[name])
        np.testing.assert_array_equal(draw(cell, engine), draw_from_picture(model, cell, oracle))


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_every_family_equals_diffusers(name: str, strength: float, zoo: Zoo, source: Source, masked: Source) -> None:
    model = zoo(name)
    limit = {"max_sequence_length": 256} if name == "flux_schnell" else {}
    for start, classes in ((source, IMG2IMG), (masked, INPAINT)):
        cell = cell_of(model, replace(start, strength=strength))
        oracle = oracle_of(model, classes[model.family])
        np.testing.assert_array_equal(draw(cell), draw_from_picture(model, cell, oracle, **limit))


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_an_inpainting_unet_equals_diffusers(name: str, strength: float, zoo: Zoo, masked: Source, tmp_path: Path) -> None:
    model = zoo(name)
    _, build, to_single = ZOO[name]
    pipeline = build(tmp_path / "vocabulary")
    pipeline.unet = altered(pipeline.unet, in_channels=9)
    recipe = model.recipe(checkpoint=save(to_single(pipeline), tmp_path / "inpainting.safetensors"))
    cell = cell_of(model, replace(masked, strength=strength), recipe=recipe, sampler=SAMPLERS["euler_a"])
    oracle = oracle_of(model, INPAINT[model.family], unet=pipeline.unet)
    np.testing.assert_array_equal(draw(cell), draw_from_picture(model, cell, oracle))


def test_the_refiner_equals_diffusers(zoo: Zoo, source: Source, tmp_path: Path) -> None:
    base = zoo("sdxl").pipeline
    unet = altered(base.unet, cross_attention_dim=48, projection_class_embeddings_input_dim=24 + 5 * 8)
    parts = {**base.components, "unet": unet, "text_encoder": None, "tokenizer": None}
    options = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False, "add_watermarker": False}
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, **options)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "refiner")
    model = replace(zoo("sdxl"), pipeline=pipeline, config=tmp_path / "refiner", checkpoint=as_file(tmp_path / "refiner"))
    cell = cell_of(model, replace(source, strength=0.4))
    np.testing.assert_array_equal(draw(cell), draw_from_picture(model, cell, pipeline))


def test_controlnet_in_both_tasks_equals_diffusers(
    engine: DiffusersEngine, model: TinyModel, source: Source, masked: Source, tmp_path: Path
) -> None:
    net = build_controlnet(model.pipeline)
    recipe = model.recipe(controlnets=(save(net.state_dict(), tmp_path / "net.safetensors"),))
    hint = write_picture(tmp_path / "hint.png")
    controls = (Control(str(hint), "hint", weight=0.7, start=0.2, end=0.9),)
    inputs: dict[str, Any] = {"controlnet_conditioning_scale": 0.7, "control_guidance_start": 0.2, "control_guidance_end": 0.9}
    inputs["control_image"] = Image.open(hint).resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    for start, cls in (
        (source, diffusers.StableDiffusionControlNetImg2ImgPipeline),
        (masked, diffusers.StableDiffusionControlNetInpaintPipeline),
    ):
        cell = cell_of(model, start, recipe=recipe, controls=controls)
        theirs = draw_from_picture(model, cell, oracle_of(model, cls, controlnet=net), **inputs)
        np.testing.assert_array_equal(draw(cell, engine), theirs)
        assert (theirs != draw(cell_of(model, start), engine)).any()


def test_one_batch_of_different_pictures_equals_separate_runs(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    sources = [
        Source(str(write_picture(tmp_path / f"{index}.png", index)), str(index), 0.6, ("stretch", "crop", "pad")[index])
        for index in range(3)
    ]
    cells = [
        cell_of(model, sources[0], seed=1, prompt="a blue dog"),
        cell_of(model, sources[1], seed=2, guidance_scale=1.0),
        cell_of(model, sources[2], seed=3, prompt="red " * 90),
    ]
    assert_same_alone(engine, cells)
    masks = [Mask(str(write_mask(tmp_path / f"mask{index}.png", index)), f"mask{index}", 2 * index) for index in range(3)]
    filled = [replace(mask, fill=fill) for mask, fill in zip(masks, ("original", "noise", "nothing"), strict=True)]
    assert_same_alone(
        engine,
        [replace(cell, source=replace(source, mask=mask)) for cell, source, mask in zip(cells, sources, filled, strict=True)],
    )


def assert_same_alone(engine: DiffusersEngine, cells: list[Cell], tolerance: float = 1e-4) -> None:
    assert len({batch_key(cell) for cell in cells}) == 1
    together, alone = latents(engine, cells), torch.cat([latents(engine, [cell]) for cell in cells])
    assert float((together - alone).abs().max() / alone.std()) < tolerance
    assert float((alone[0] - alone[1]).abs().max()) > 0.1


def test_what_cannot_share_a_batch(model: TinyModel, source: Source, masked: Source) -> None:
    starts = [None, source, masked, replace(source, strength=0.5), replace(masked, strength=0.5)]
    assert len({batch_key(make_cell(model.recipe(), source=start)) for start in starts}) == len(starts)


def test_a_picture_is_encoded_once(model: TinyModel, source: Source, masked: Source) -> None:
    fresh = DiffusersEngine("cpu", 1)
    fresh.prepare(model.recipe())
    seen: list[int] = []
    handle = fresh.model.vae.get_submodule("encoder").register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    for seed in (1, 2):
        draw(cell_of(model, source, seed=seed), fresh)
        draw(cell_of(model, masked, seed=seed), fresh)
    assert seen == [1]
    with fresh.model.in_float32():  # the VAE is as it was, so its answers are
        draw(cell_of(model, source, seed=3), fresh)
    assert seen == [1]
    draw(cell_of(model, replace(source, image_sha256="other")), fresh)
    assert seen == [1, 1]
    handle.remove()


def test_strength_0_is_the_picture_through_the_vae_and_runs_no_step(engine: DiffusersEngine, model: TinyModel, source: Source) -> None:
    cell = cell_of(model, replace(source, strength=0.0))
    beats: list[int] = []
    engine.prepare(cell.recipe)
    (picture,) = engine.start([cell], lambda done, total: beats.append(done)).finish()
    assert beats == []
    pipeline = model.pipeline
    pixels = to_tensor(read_source(source, (PIXELS, PIXELS)))
    with torch.no_grad():
        sample = pipeline.vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(cell.seed))
        decoded = pipeline.vae.decode(sample).sample[0]
    expected = ((decoded * 0.5 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.abs(picture.pixels.astype(int) - expected).max() <= 1


def test_the_steps_that_are_run(model: TinyModel) -> None:
    sd, flux = FAMILIES["sd1"], FAMILIES["flux"]
    assert [sd.skipped_steps(10, strength) for strength in (0.0, 0.05, 0.1, 0.55, 1.0)] == [10, 10, 9, 5, 0]
    assert [flux.skipped_steps(10, strength) for strength in (0.0, 0.05, 0.1, 0.55, 1.0)] == [10, 9, 9, 4, 0]


def test_what_is_not_masked_stays_pixel_for_pixel(engine: DiffusersEngine, model: TinyModel, masked: Source, mask: Mask) -> None:
    pasted = replace(masked, mask=replace(mask, paste=True))
    size = (PIXELS, PIXELS)
    kept, hard = read_source(masked, size), read_mask(masked, size)
    ours, bare = draw(cell_of(model, pasted), engine), draw(cell_of(model, masked), engine)
    np.testing.assert_array_equal(ours[hard == 0], kept[hard == 0])
    np.testing.assert_array_equal(ours[hard >= 128], bare[hard >= 128])
    assert (bare[hard == 0] != kept[hard == 0]).any()
    blurred = replace(pasted, mask=replace(mask, blur_px=4, paste=True))
    assert (read_mask(blurred, size) != hard).any()
    soft = draw(cell_of(model, blurred), engine)
    far = read_mask(blurred, size) == 0
    np.testing.assert_array_equal(soft[far], kept[far])


def test_the_masked_content_matters(engine: DiffusersEngine, model: TinyModel, masked: Source, mask: Mask) -> None:
    masks = [replace(mask, fill=fill) for fill in ("original", "noise", "nothing")]
    made = [draw(cell_of(model, replace(masked, mask=one)), engine) for one in masks]
    assert len({picture.tobytes() for picture in made}) == 3


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(96, 40), (40, 96), (64, 64), (33, 35)])
def test_resizing_equals_diffusers(resize: str, size: tuple[int, int], tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    mode = {"stretch": "default", "crop": "crop", "pad": "fill"}[resize]
    theirs = np.array(VaeImageProcessor().resize(picture, 64, 48, resize_mode=mode))
    ours = read_source(Source(str(tmp_path / "picture.png"), f"{size}", 1.0, resize), (48, 64))
    assert ours.shape == (64, 48, 3)
    rows, columns = slice(0, 64), slice(0, 48)
    if resize == "pad" and size[0] * 64 > size[1] * 48:
        height = size[1] * 48 // size[0]
        rows = slice(32 - height // 2, 32 - height // 2 + height)
    elif resize == "pad":
        width = size[0] * 64 // size[1]
        columns = slice(24 - width // 2, 24 - width // 2 + width)
    inner = ours[rows, columns]
    np.testing.assert_array_equal(inner, theirs[rows, columns])
    around = ((rows.start, 64 - rows.stop), (columns.start, 48 - columns.stop), (0, 0))
    np.testing.assert_array_equal(ours, np.pad(inner, around, mode="edge"))


def test_pictures_are_laid_on_white_and_turned_upright(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 8, 4))
    clear.save(tmp_path / "clear.png")
    pixels = read_source(Source(str(tmp_path / "clear.png"), "clear", 1.0), (8, 8))
    assert pixels[0, 0].tolist() == [0, 0, 255]
    assert pixels[7, 0].tolist() == [255, 255, 255]
    mask = read_mask(Source("", "", 1.0, mask=Mask(str(tmp_path / "clear.png"), "clear")), (8, 8))
    assert (mask[0, 0], mask[7, 0]) == (255, 0)
    tag = Image.Exif()
    tag[0x0112] = 3  # upside down
    clear.convert("RGB").save(tmp_path / "turned.png", exif=tag)
    assert read_source(Source(str(tmp_path / "turned.png"), "turned", 1.0), (8, 8))[7, 0].tolist() == [0, 0, 255]


def test_an_unreadable_picture_fails_its_cell(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(CellError, match=r"picture .*broken\.png cannot be read"):
        draw(cell_of(model, Source(str(tmp_path / "broken.png"), "broken", 0.5)), engine)
