"""Sheets of what a part draws while it trains."""

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from PIL import Image

from jobs.tiny import emoji, feature, generate, network, scene, sheet
from jobs.tiny.diffusion import Diffusion

BASE_COUNT, PART_COUNT = 32, 8
COLUMNS = 8


def spread(nouns: list[emoji.Noun], count: int = PART_COUNT) -> list[int]:
    """`count` nouns over the whole vocabulary, by their numbers."""
    return [number * len(nouns) // count for number in range(count)]


def show(
    out: Path,
    name: str,
    diffusion: Diffusion,
    unet: UNet2DConditionModel,
    prompts: list[str],
    controlnet: ControlNetModel | None = None,
    **more: Any,
) -> list[Image.Image]:
    """Draw the prompts with the networks as they are. Side effects: writes `out`/sheets/`name`.png."""
    vae = AutoencoderKL.from_pretrained(out / "vae").eval().to(diffusion.device)
    pipe = generate.assemble(unet, vae, (diffusion.text_encoder, diffusion.tokenizer), controlnet)
    images = generate.generate(pipe, prompts, list(range(len(prompts))), **more)
    sheet.save_sheet(images, out / "sheets" / f"{name}.png", COLUMNS, prompts)
    return images


def show_base(out: Path, name: str, diffusion: Diffusion, unet: UNet2DConditionModel) -> None:
    """A larger sheet of plain prompts; prints how many are recognised."""
    nouns = emoji.load_nouns()
    chosen = spread(nouns, BASE_COUNT)
    images = show(out, name, diffusion, unet, [scene.with_article(nouns[index].name) for index in chosen])
    pictures = emoji.load_pictures(out, network.SIZE_PX)["noto"]
    found = feature.nearest(feature.describe(images), feature.describe_rgba(pictures))
    right = sum(int(index == hit) for index, hit in zip(chosen, found.tolist(), strict=True))
    print(f"[{name}] {right} of {len(images)} retrieved", flush=True)
