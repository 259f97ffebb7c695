"""The modules of one recipe in memory, and the least work that turns them into those of another."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdbatch.adapters.controlnet import load_controlnet
from sdbatch.adapters.embedding import load_embedding
from sdbatch.adapters.lora import Lora, load_lora
from sdbatch.adapters.stack import AdapterStack
from sdbatch.cell import Recipe, WeightFile
from sdbatch.errors import ConfigError, did_you_mean
from sdbatch.families import find_family
from sdbatch.pipeline.assemble import (
    load_text_encoder,
    load_tokenizer,
    load_unet,
    load_vae,
    open_checkpoint,
    read_component_state,
    read_scheduler_config,
)
from sdbatch.pipeline.text import TextEncoder

_ADAPTABLE = ("unet", "transformer", "text_encoder", "text_encoder_2")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a recipe on a device: `auto` is float32 on the CPU, else bfloat16, or float16 where that is missing.

    Raises:
        ConfigError: no such dtype.
    """
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if name not in _DTYPES:
        raise ConfigError(f"dtype: there is no {name!r}. {did_you_mean(name, ('auto', *_DTYPES))}")
    return _DTYPES[name]


class Model:
    """What is loaded now. `prepare` brings it to a recipe; a failed `prepare` leaves nothing loaded."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.recipe: Recipe | None = None
        self.dtype = torch.float32
        self.scheduler_config: dict[str, Any] = {}
        self.encoder: TextEncoder | None = None
        self.loras: list[Lora] = []
        self._controlnets: list[tuple[Hashable, nn.Module]] = []
        self._slots: dict[str, tuple[Hashable, Any]] = {}
        self._stacks: dict[str, AdapterStack] = {}
        self._adapters_key: Hashable = None

    @property
    def components(self) -> dict[str, nn.Module]:
        """The parts that adapters attach to, by name: the denoiser (`unet` or `transformer`) and the text encoders."""
        return {name: self._slots[name][1] for name in _ADAPTABLE if name in self._slots}

    @property
    def unet(self) -> nn.Module:
        """The UNet of the recipe."""
        return self._slots["unet"][1]

    @property
    def vae(self) -> nn.Module:
        """The VAE of the recipe."""
        return self._slots["vae"][1]

    @property
    def controlnets(self) -> list[nn.Module]:
        """The ControlNets of the recipe, in its order."""
        return [net for _, net in self._controlnets]

    def stack(self, component: str) -> AdapterStack | None:
        """The LoRAs on a component, or None when none touches it."""
        return self._stacks.get(component)

    def prepare(self, recipe: Recipe) -> None:
        """Load what differs from the recipe that is loaded, keep the rest."""
        if recipe == self.recipe:
            return
        self.recipe = None
        try:
            self._load_components(recipe)
            self._load_controlnets(recipe)
            self._attach_adapters(recipe)
        except BaseException:
            self.close()
            raise
        self.scheduler_config = read_scheduler_config(recipe)
        self.recipe = recipe

    def close(self) -> None:
        """Take everything off and let it go."""
        self._detach_adapters()
        self._slots.clear()
        self._controlnets = []
        self.loras = []
        self.recipe = None

    @contextmanager
    def in_float32(self) -> Generator[None]:
        """The modules in float32 for a while: what half precision lost to an overflow may be found there."""
        dtypes = {name: next(module.parameters()).dtype for name, module in self._modules()}
        try:
            self._convert(dict.fromkeys(dtypes, torch.float32))
            yield
        finally:
            self._convert(dtypes)

    def _convert(self, dtypes: dict[str, torch.dtype]) -> None:
        for name, module in self._modules():
            nn.Module.to(module, dtypes[name])  # diffusers' own `to` warns of what is meant here
        for component, stack in self._stacks.items():
            stack.to(dtypes[component])
        if self.encoder is not None:
            self.encoder.forget()

    def _modules(self) -> list[tuple[str, nn.Module]]:
        modules = [(name, value) for name, (_, value) in self._slots.items() if isinstance(value, nn.Module)]
        return modules + [(f"controlnet.{index}", net) for index, net in enumerate(self.controlnets)]

    def _load_components(self, recipe: Recipe) -> None:
        config = Path(recipe.config)
        dtype = self.dtype = resolve_dtype(recipe.dtype, self.device)
        vae_dtype = torch.float32 if dtype is torch.float16 else dtype  # float16 overflows in the decoder
        reader = open_checkpoint(recipe)

        def source(other: WeightFile | None) -> Hashable:
            return other.sha256 if other else ("baked", recipe.checkpoint.sha256)

        def vae() -> nn.Module:
            state, what = read_component_state(reader, recipe.vae, "vae")
            return self._place(load_vae(state, what, config, vae_dtype))

        def text_encoder() -> nn.Module:
            state, what = read_component_state(reader, recipe.text_encoder, "text_encoder")
            return load_text_encoder(state, what, config, dtype).to(self.device)

        where = (recipe.family, recipe.config)
        self._fill("unet", (recipe.checkpoint.sha256, where, dtype), lambda: self._place(load_unet(reader, config, dtype)))
        self._fill("vae", (source(recipe.vae), where, vae_dtype), vae)
        self._fill("text_encoder", (source(recipe.text_encoder), where, dtype), text_encoder)
        self._fill("tokenizer", where, lambda: load_tokenizer(config))

    def _fill(self, slot: str, key: Hashable, load: Callable[[], Any]) -> None:
        """Load a slot unless what it holds has that key."""
        if slot in self._slots and self._slots[slot][0] == key:
            return
        if slot in self._slots:
            if slot != "vae":
                self._detach_adapters()
            del self._slots[slot]  # first, so that two never lie in memory side by side
        self._slots[slot] = (key, load())

    def _place(self, module: nn.Module) -> nn.Module:
        if self.device.type == "cpu":
            return module
        return module.to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def _load_controlnets(self, recipe: Recipe) -> None:
        config: Any = self.unet.config
        loaded = dict(self._controlnets)
        self._controlnets = []
        for file in recipe.controlnets:
            key = (file.sha256, recipe.config, self.dtype)
            net = loaded.get(key) or self._place(load_controlnet(file, Path(recipe.config), config, self.dtype))
            self._controlnets.append((key, net))

    def _attach_adapters(self, recipe: Recipe) -> None:
        """LoRAs and embeddings, when they or what they are attached to have changed."""
        key = (recipe.loras, recipe.embeddings)
        if self.encoder is not None and key == self._adapters_key:
            return
        self._detach_adapters()
        components = self.components
        self.loras = [load_lora(file, components) for file in recipe.loras]
        for name, component in components.items():
            deltas = [lora.deltas.get(name, {}) for lora in self.loras]
            if any(deltas):
                self._stacks[name] = AdapterStack(component, deltas)
        text_encoder = components["text_encoder"]
        config: Any = text_encoder.config
        embeddings = {file.name: load_embedding(file, {"text_encoder": config.hidden_size}) for file in recipe.embeddings}
        vectors = {word: parts["text_encoder"] for word, parts in embeddings.items()}
        self.encoder = TextEncoder(text_encoder, self._slots["tokenizer"][1], find_family(recipe.family), vectors)
        self._adapters_key = key

    def _detach_adapters(self) -> None:
        for stack in self._stacks.values():
            stack.detach()
        self._stacks.clear()
        if self.encoder is not None:
            self.encoder.detach()
        self.encoder = None
        self._adapters_key = None
