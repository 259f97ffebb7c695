"""What every measurement needs: the shipped pipeline, the vocabulary, reference pictures, sheets."""

import random
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from jobs.tiny import emoji, feature, latent, network, picture, scene, sheet, shipped


@dataclass
class Bench:
    """A table to measure on. `embedded` holds the weights, `out` the reference pictures and the sheets."""

    embedded: Path
    out: Path
    lora_nouns: int = 48  # nouns per LoRA and strength
    control_nouns: int = 34  # nouns per ControlNet measurement
    nouns: list[emoji.Noun] = field(default_factory=emoji.load_nouns)
    _decoded: dict[str, np.ndarray] = field(default_factory=dict)  # features by set, decoding takes a while

    @cached_property
    def pipe(self) -> StableDiffusionPipeline:
        """The shipped base, from the diffusers folder, computed in float32."""
        return shipped.load_folder(self.embedded)

    @cached_property
    def pictures(self) -> dict[str, np.ndarray]:
        """RGBA pictures by set."""
        return emoji.load_pictures(self.out, network.SIZE_PX)

    def draw(self, item: scene.Scene, set_name: str = "noto") -> np.ndarray:
        """The ideal picture of a scene."""
        return scene.draw(item, self.pictures[set_name])

    def references(self, make: str = "noto") -> np.ndarray:
        """Features of every noun on white, in a set or in a filter of the base set."""
        return feature.describe_arrays(np.stack(self._draw_all(make)))

    def decoded_references(self, make: str = "noto") -> np.ndarray:
        """The same of the pictures as the autoencoder gives them back, whose softness is no part of a style."""
        if make not in self._decoded:
            latents = latent.encode(self.pipe.vae, self._draw_all(make)) / self.pipe.vae.config.scaling_factor
            with torch.no_grad():
                decoded = torch.cat([self.pipe.vae.decode(part).sample for part in latents.split(16)])
            self._decoded[make] = feature.describe(sheet.to_images(decoded))
        return self._decoded[make]

    def _draw_all(self, make: str) -> list[np.ndarray]:
        drawn = [picture.compose(rgba) for rgba in self.pictures[make if make in self.pictures else "noto"]]
        return [picture.FILTERS[make](rgb) for rgb in drawn] if make in picture.FILTERS else drawn

    def prompts(self, chosen: list[int] | None = None) -> list[str]:
        """ "a dog" for each chosen noun."""
        indices = range(len(self.nouns)) if chosen is None else chosen
        return [scene.with_article(self.nouns[index].name) for index in indices]

    def spread(self, count: int) -> list[int]:
        """`count` nouns over the whole vocabulary, always the same ones."""
        count = min(count, len(self.nouns))
        return sorted(random.Random(0).sample(range(len(self.nouns)), count))

    def show(self, images: list[Image.Image], name: str, columns: int, captions: list[str] | None = None) -> None:
        """Write a sheet beside the other results."""
        sheet.save_sheet(images, self.out / "evaluation" / f"{name}.png", columns, captions)


def share(flags: np.ndarray | list[bool]) -> float:
    """Fraction that is true, to four digits."""
    return round(float(np.mean(flags)), 4)
