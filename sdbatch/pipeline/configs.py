"""The configs of a recipe's parts: what a diffusers folder says of its own weights, else the family's weightless folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sdbatch.families
from sdbatch.adapters.read import Tensors, read_json
from sdbatch.cell import Recipe
from sdbatch.errors import WeightFileError
from sdbatch.families import Component, Family

CLIP_VOCABULARY = Path(sdbatch.families.__file__).parent / "configs" / "sd1" / "tokenizer"
"""Every CLIP reads the same words: folders without a vocabulary of their own take this one."""

_UNET_INPUTS = {9: "inpainting", 8: "pix2pix", 5: "depth", 7: "upscale"}


class Configs:
    """Looks up configs and tokenizers: in the checkpoint's own folder first, then in the recipe's config folder."""

    def __init__(self, recipe: Recipe, family: Family) -> None:
        own = Path(recipe.checkpoint.path)
        self.family = family
        self.folders = ([own] if own.is_dir() else []) + [Path(recipe.config)]

    def components(self) -> list[Component]:
        """The components that this model has: the SDXL refiner lacks the first text encoder."""
        index = self._read("model_index.json")
        return [part for part in self.family.components if index.get(part.name) != [None, None]]

    def setting(self, name: str) -> bool:
        """A switch of the pipeline, such as `force_zeros_for_empty_prompt`."""
        return bool(self._read("model_index.json").get(name, False))

    def component(self, part: Component) -> dict[str, Any]:
        """The config of a component. Raises WeightFileError: missing, or of another class."""
        config = self._read(f"{part.name}/config.json")
        found = config.get("_class_name", part.cls)
        if found != part.cls:
            raise WeightFileError(f"family.config: the {part.name} of {self.folders[-1]} is {found}, this family needs {part.cls}.")
        return config

    def scheduler(self) -> dict[str, Any]:
        """The model's noise levels and what it predicts."""
        return {key: value for key, value in self._read("scheduler/scheduler_config.json").items() if not key.startswith("_")}

    def find(self, *names: str) -> Path | None:
        """The first of these files or folders that is there."""
        places = [folder / name for folder in self.folders for name in names]
        return next((place for place in places if place.exists()), None)

    def _read(self, name: str) -> dict[str, Any]:
        path = self.find(name)
        if path is None:
            raise WeightFileError(
                f"family.config: {self.folders[-1]} has no {name}. Choose the config folder of a {self.family.title} model."
            )
        return read_json(path, "family.config")


def adapt(config: dict[str, Any], part: Component, state: Tensors, what: str) -> dict[str, Any]:
    """The config with what the tensors themselves tell: an inpainting UNet's inputs, a FLUX without guidance.

    Raises:
        WeightFileError: the network was trained to look at what it is never shown here.
    """
    match part.cls:
        case "UNet2DConditionModel" if "conv_in.weight" in state:
            inputs = state["conv_in.weight"].shape[1]
            if inputs != config.get("in_channels") and inputs != 9:
                kind = _UNET_INPUTS.get(inputs, "unknown")
                raise WeightFileError(
                    f"{what}: it is a {kind} model ({inputs} input channels), which cannot run. Choose another checkpoint."
                )
            return {**config, "in_channels": inputs}
        case "FluxTransformer2DModel":
            inputs = state["x_embedder.weight"].shape[1] if "x_embedder.weight" in state else config["in_channels"]
            if inputs != config["in_channels"]:
                raise WeightFileError(f"{what}: it is a FLUX tool for masks or controls ({inputs} input channels), which cannot run.")
            return {**config, "guidance_embeds": any(".guidance_embedder." in key for key in state)}
        case _:
            return config
