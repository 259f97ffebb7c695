"""The modules of one recipe in memory, and the least work that turns them into those of another."""

from __future__ import annotations

from collections.abc import Generator, Hashable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdbatch.adapters.controlnet import load_controlnet
from sdbatch.adapters.embedding import embedding_words, load_embedding
from sdbatch.adapters.hypernetwork import HypernetworkStack, load_hypernetwork
from sdbatch.adapters.ip_adapter import IpAdapterStack
from sdbatch.adapters.lora import Lora, load_lora
from sdbatch.adapters.stack import AdapterStack
from sdbatch.cell import Recipe, WeightFile
from sdbatch.families import Encoder, Family, find_family
from sdbatch.pipeline.assemble import load_component, load_tokenizer, open_checkpoint, read_scheduler_config
from sdbatch.pipeline.clip import ClipEncoder
from sdbatch.pipeline.configs import Configs
from sdbatch.pipeline.device import Device
from sdbatch.pipeline.image_prompt import IpAdapters
from sdbatch.pipeline.t5 import T5Encoder
from sdbatch.pipeline.text import PromptEncoder
from sdbatch.pipeline.upscale import Upscaler, load_upscaler

_T5_TOKENS, _T5_TOKENS_SCHNELL = 512, 256
"""How long a prompt FLUX was trained with; schnell is the one without guidance."""


def component_dtype(name: str, cls: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a component in a model of that dtype: float16 overflows in the VAE's decoder and in T5."""
    if dtype is not torch.float16:
        return dtype
    return torch.float32 if name == "vae" else torch.bfloat16 if cls == "T5EncoderModel" else dtype


class Model:
    """What is loaded now. `prepare` brings it to a recipe; a failed `prepare` leaves nothing loaded."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.recipe: Recipe | None = None
        self.dtype = torch.float32
        self.scheduler_config: dict[str, Any] = {}
        self.with_aesthetics = False
        """The denoiser wants to be told an aesthetic score: the SDXL refiner."""
        self.encoder: PromptEncoder | None = None
        self.loras: list[Lora] = []
        self.hypernetworks: HypernetworkStack | None = None
        self.ip_adapters: IpAdapterStack | None = None
        self._ip_adapters = IpAdapters()
        self._upscalers: dict[tuple[str, torch.dtype], Upscaler] = {}
        self._controlnets: list[tuple[Hashable, nn.Module]] = []
        self._slots: dict[str, tuple[Hashable, Any]] = {}
        self._stacks: dict[str, AdapterStack] = {}
        self._adapters_key: Hashable = None
        self._zero_empty = False

    @property
    def family(self) -> Family:
        """The family of the recipe."""
        assert self.recipe is not None, "no recipe is prepared"
        return find_family(self.recipe.family)

    @property
    def components(self) -> dict[str, nn.Module]:
        """The parts that adapters attach to, by name: the denoiser (`unet` or `transformer`) and the text encoders."""
        return {name: value for name, (_, value) in self._slots.items() if name != "vae" and isinstance(value, nn.Module)}

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer of the recipe."""
        return next(value for name, (_, value) in self._slots.items() if name in ("unet", "transformer"))

    @property
    def vae(self) -> nn.Module:
        """The VAE of the recipe."""
        return self._slots["vae"][1]

    @property
    def sees_mask(self) -> bool:
        """Whether the denoiser is an inpainting UNet, which sees a mask and a picture beside the latents."""
        denoiser, vae = (getattr(module, "config", None) for module in (self.denoiser, self.vae))
        assert denoiser is not None
        assert vae is not None
        return self.family.denoiser == "unet" and denoiser.in_channels > vae.latent_channels

    @property
    def controlnets(self) -> list[nn.Module]:
        """The ControlNets of the recipe, in its order."""
        return [net for _, net in self._controlnets]

    @property
    def upscaler(self) -> Upscaler | None:
        """What enlarges finished pictures."""
        return self._find_upscaler(self.recipe and self.recipe.upscaler)

    @property
    def hires_upscaler(self) -> Upscaler | None:
        """What enlarges between the passes of a hires fix."""
        return self._find_upscaler(self.recipe and self.recipe.hires_upscaler)

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take."""
        return sum(p.numel() * p.element_size() for _, module in self._modules() for p in module.parameters())

    def stack(self, component: str) -> AdapterStack | None:
        """The LoRAs on a component, or None when none touches it."""
        return self._stacks.get(component)

    def prepare(self, recipe: Recipe) -> None:
        """Load what differs from the recipe that is loaded, keep the rest."""
        if recipe == self.recipe:
            return
        self.device.settle()  # nothing is let go that is still in use
        self.recipe = None
        try:
            self._load(recipe)
            self._load_controlnets(recipe)
            self._ip_adapters.load(recipe, self.denoiser, self.dtype, self.device.place)
            self._load_upscalers(recipe)
            self._attach_adapters(recipe)
            self.device.settle()  # every stream finds the weights in their places
        except BaseException:
            self.close()
            raise
        self.recipe = recipe

    def close(self) -> None:
        """Take everything off and let it go."""
        self._detach_adapters()
        self._slots.clear()
        self._controlnets = []
        self._ip_adapters.clear()
        self._upscalers.clear()
        self.loras = []
        self.recipe = None

    @contextmanager
    def in_float32(self) -> Generator[None]:
        """The modules in float32 for a while: what half precision lost to an overflow may be found there."""
        dtypes = {name: next(module.parameters()).dtype for name, module in self._modules()}
        before = self.dtype
        try:
            self._convert(dict.fromkeys(dtypes, torch.float32), torch.float32)
            yield
        finally:
            self._convert(dtypes, before)

    def _convert(self, dtypes: dict[str, torch.dtype], dtype: torch.dtype) -> None:
        self.device.settle()
        self.dtype = dtype
        for name, module in self._modules():
            nn.Module.to(module, dtypes[name])  # diffusers' own `to` warns of what is meant here
        for component, stack in self._stacks.items():
            stack.to(dtypes[component])
        self._ip_adapters.forget()
        if self.encoder is not None:
            self.encoder.forget()
        self.device.settle()  # pictures are enlarged on a stream that waits for none

    def _modules(self) -> list[tuple[str, nn.Module]]:
        modules = [(name, value) for name, (_, value) in self._slots.items() if isinstance(value, nn.Module)]
        modules += [(f"controlnet.{index}", net) for index, net in enumerate(self.controlnets)] + self._ip_adapters.modules()
        return modules + [(f"upscaler.{index}", upscaler.module) for index, upscaler in enumerate(self._upscalers.values())]

    def _load(self, recipe: Recipe) -> None:
        family = find_family(recipe.family)
        configs = Configs(recipe, family)
        checkpoint = open_checkpoint(recipe, configs)
        parts = configs.components()
        encoders = [encoder for encoder in family.encoders if encoder.component in {part.name for part in parts}]
        for slot in self._slots.keys() - {part.name for part in parts} - {encoder.tokenizer for encoder in encoders}:
            self._empty(slot)
        self.dtype = self.device.dtype(recipe.dtype)
        where = (recipe.family, *map(str, configs.folders))
        for part in parts:
            dtype = component_dtype(part.name, part.cls, self.dtype)
            other = recipe.part(part.name)
            key = (other.sha256 if other else ("baked", checkpoint.key(part)), where, dtype)
            if self._lacks(part.name, key):
                self._slots[part.name] = (key, self.device.place(load_component(part, recipe, checkpoint, configs, dtype)))
        for encoder in encoders:
            key = (where, recipe.text_encoder_2) if encoder.kind == "t5" else where
            if self._lacks(encoder.tokenizer, key):
                self._slots[encoder.tokenizer] = (key, load_tokenizer(encoder, recipe, configs))
        self.scheduler_config = read_scheduler_config(recipe, checkpoint, configs)
        self.with_aesthetics = configs.setting("requires_aesthetics_score")
        self._zero_empty = configs.setting("force_zeros_for_empty_prompt")

    def _lacks(self, slot: str, key: Hashable) -> bool:
        """Whether a slot holds anything but what has that key; then it is emptied, so that two never lie side by side."""
        if slot in self._slots and self._slots[slot][0] == key:
            return False
        self._empty(slot)
        return True

    def _empty(self, slot: str) -> None:
        if slot in self._slots:
            if slot != "vae":
                self._detach_adapters()
            del self._slots[slot]

    def _load_controlnets(self, recipe: Recipe) -> None:
        config: Any = self.denoiser.config
        loaded = dict(self._controlnets)
        self._controlnets = []
        for file in recipe.controlnets:
            key = (file.sha256, recipe.config, self.dtype)
            net = loaded.get(key) or self.device.place(load_controlnet(file, Path(recipe.config), config, self.dtype))
            self._controlnets.append((key, net))

    def _load_upscalers(self, recipe: Recipe) -> None:
        wanted = {(file.sha256, self.dtype): file for file in (recipe.upscaler, recipe.hires_upscaler) if file}
        self._upscalers = {key: upscaler for key, upscaler in self._upscalers.items() if key in wanted}
        for key, file in wanted.items():
            if key not in self._upscalers:
                self._upscalers[key] = load_upscaler(file, self.dtype, self.device.torch)

    def _find_upscaler(self, file: WeightFile | None) -> Upscaler | None:
        return next((found for (sha256, _), found in self._upscalers.items() if file and sha256 == file.sha256), None)

    def _attach_adapters(self, recipe: Recipe) -> None:
        """LoRAs, hypernetworks, IP-Adapters and embeddings, when they or what they are attached to have changed."""
        key = (recipe.loras, recipe.strict_loras, recipe.hypernetworks, recipe.ip_adapters, recipe.image_encoders, recipe.embeddings)
        if self.encoder is not None and key == self._adapters_key:
            return
        self._detach_adapters()
        components = self.components
        self.loras = [load_lora(file, components, recipe.family, strict=file.name in recipe.strict_loras) for file in recipe.loras]
        for name, component in components.items():
            deltas = [lora.deltas.get(name, {}) for lora in self.loras]
            if any(deltas):
                self._stacks[name] = AdapterStack(component, deltas, name, recipe.family)
        for lora in self.loras:
            lora.deltas.clear()  # the stacks have them in the model's dtype
        if recipe.hypernetworks:
            self.hypernetworks = HypernetworkStack(self.denoiser, [load_hypernetwork(file) for file in recipe.hypernetworks])
        self.ip_adapters = self._ip_adapters.attach(self.denoiser)
        self.encoder = self._build_encoder(find_family(recipe.family), recipe)
        self._adapters_key = key

    def _build_encoder(self, family: Family, recipe: Recipe) -> PromptEncoder:
        encoders = [encoder for encoder in family.encoders if encoder.component in self._slots]
        widths = {encoder.component: self._width(encoder) for encoder in encoders}
        optional = {encoder.component for encoder in encoders if encoder.kind == "t5"}
        words: dict[str, dict[str, Tensor]] = {word: parts for lora in self.loras for word, parts in lora.words.items()}
        for file in recipe.embeddings:
            words |= dict.fromkeys(embedding_words(file), load_embedding(file, widths, optional))
        towers: list[ClipEncoder | T5Encoder] = []
        for encoder in encoders:
            module, tokenizer = self._slots[encoder.component][1], self._slots[encoder.tokenizer][1]
            vectors = {word: parts[encoder.component] for word, parts in words.items() if encoder.component in parts}
            if encoder.kind == "t5":
                config: Any = self.denoiser.config
                tokens = _T5_TOKENS if config.guidance_embeds else _T5_TOKENS_SCHNELL
                towers.append(T5Encoder(module, tokenizer, encoder, tokens, vectors))
            else:
                towers.append(ClipEncoder(module, tokenizer, encoder, vectors))
        return PromptEncoder(towers, tuple(words), zero_empty=self._zero_empty)

    def _width(self, encoder: Encoder) -> int:
        config: Any = self._slots[encoder.component][1].config
        return config.hidden_size

    def _detach_adapters(self) -> None:
        for stack in self._stacks.values():
            stack.detach()
        self._stacks.clear()
        if self.hypernetworks is not None:
            self.hypernetworks.detach()
            self.hypernetworks = None
        if self.ip_adapters is not None:
            self.ip_adapters.detach()
            self.ip_adapters = None
        if self.encoder is not None:
            self.encoder.detach()
        self.encoder = None
        self._adapters_key = None
