"""The IP-Adapters of a recipe in memory, and the image encoders that they see through."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path

import torch
from torch import nn

from sdbatch.adapters.image_encoder import ImageEncoder, load_image_encoder
from sdbatch.adapters.ip_adapter import IpAdapter, IpAdapterStack, load_ip_adapter
from sdbatch.cell import Recipe, WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.weights.identify import identify
from sdbatch.weights.image_fit import describe_need, fits


class IpAdapters:
    """What is loaded now; `load` brings it to a recipe and keeps what is equal."""

    def __init__(self) -> None:
        self.adapters: list[tuple[Hashable, IpAdapter]] = []
        self.encoders: list[tuple[Hashable, ImageEncoder]] = []
        """One for each IP-Adapter; two that see through the same one share it."""

    def load(self, recipe: Recipe, unet: nn.Module, dtype: torch.dtype, place: Callable[[nn.Module], nn.Module]) -> None:
        """Load the files of a recipe that are not there yet.

        Args:
            recipe: Names the files.
            unet: What the IP-Adapters are made for.
            dtype: Of the weights.
            place: Brings a module to the device.

        Raises:
            WeightFileError: a file cannot be used, or an IP-Adapter has no image encoder.
        """
        adapters, encoders = dict(self.adapters), dict(self.encoders)
        self.clear()
        for file in recipe.ip_adapters:
            key = (file.sha256, dtype)
            if key not in adapters:
                adapters[key] = load_ip_adapter(file, unet, dtype)
                place(adapters[key])
            self.adapters.append((key, adapters[key]))
            through = find_encoder(recipe, file)
            key = (through.sha256, dtype)
            if key not in encoders:
                encoders[key] = load_image_encoder(through, dtype)
                place(encoders[key].module)
            self.encoders.append((key, encoders[key]))

    def attach(self, unet: nn.Module) -> IpAdapterStack | None:
        """The IP-Adapters on the UNet; None when there are none."""
        if not self.adapters:
            return None
        return IpAdapterStack(unet, [adapter for _, adapter in self.adapters], [encoder for _, encoder in self.encoders])

    def modules(self) -> list[tuple[str, nn.Module]]:
        """Every module once, by a name of its own."""
        found: dict[nn.Module, str] = {adapter: f"ip_adapter.{index}" for index, (_, adapter) in enumerate(self.adapters)}
        found |= {encoder.module: f"image_encoder.{index}" for index, (_, encoder) in enumerate(self.encoders)}
        return [(name, module) for module, name in found.items()]

    def forget(self) -> None:
        """Look at every picture anew."""
        for _, encoder in self.encoders:
            encoder.forget()

    def clear(self) -> None:
        """Let go of everything."""
        self.adapters, self.encoders = [], []


def find_encoder(recipe: Recipe, file: WeightFile) -> WeightFile:
    """The image encoder of the recipe that gives what an IP-Adapter reads.

    Raises:
        WeightFileError: there is none; a plan says so earlier.
    """
    adapter = identify(Path(file.path))
    for encoder in recipe.image_encoders:
        if fits(identify(Path(encoder.path)), adapter):
            return encoder
    raise WeightFileError(f"ip_adapter.{file.name}: it reads {describe_need(adapter)}, which no image encoder of the recipe gives.")
