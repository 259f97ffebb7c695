"""Adapter files of every family in the dialects that are about, and the weights that they must amount to.

The names are written down here once more, from the formats' owners, so that the tables of the package are held by others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdbatch.adapters.names import original_targets
from tests.adapters.form_parts import FORMS, TUCKER_FORMS, Maker

Merge = Callable[[Tensor], Tensor]


@dataclass
class AdapterFile:
    """The tensors of a file, and W -> W' of each weight it changes: {component: {module: merge}}."""

    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    merges: dict[str, dict[str, Merge]] = field(default_factory=dict[str, dict[str, Merge]])
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(11))

    def pair(self, out: int, into: int, rank: int = 3) -> tuple[Tensor, Tensor]:
        return 0.3 * torch.randn(rank, into, generator=self.random), 0.3 * torch.randn(out, rank, generator=self.random)

    def change(self, component: str, module: str, delta: Tensor) -> None:
        self.merges.setdefault(component, {})[module] = lambda weight: weight + delta.reshape(weight.shape)

    def low_rank(
        self, key: str, ends: tuple[str, str], component: str, layers: Mapping[str, nn.Module], *, alpha: float | None = 2.0
    ) -> None:
        """A pair of matrices under one key, for layers whose outputs follow each other in it."""
        weights = [layer.get_parameter("weight") for layer in layers.values()]
        down, up = self.pair(sum(w.shape[0] for w in weights), weights[0][0].numel())
        self.tensors |= {key + ends[0]: down.reshape(-1, *weights[0].shape[1:]), key + ends[1]: up}
        if alpha is not None:
            self.tensors[f"{key}.alpha"] = torch.tensor(alpha)
        product = up @ down * (1 if alpha is None else alpha / 3)
        parts: tuple[Tensor, ...] = product.split([w.shape[0] for w in weights])
        for name, part in zip(layers, parts, strict=True):
            self.change(component, name, part)


KOHYA, PEFT = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")
DIFFUSERS = (".lora.down.weight", ".lora.up.weight")
TRANSFORMERS = (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")


def denoiser(pipeline: Any) -> tuple[str, nn.Module]:
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    return name, getattr(pipeline, name)


def components(pipeline: Any) -> dict[str, nn.Module]:
    names = (denoiser(pipeline)[0], "text_encoder", "text_encoder_2")
    return {name: getattr(pipeline, name) for name in names if getattr(pipeline, name, None) is not None}


def linears(component: nn.Module) -> dict[str, nn.Module]:
    parts = ("attn", ".ff.", "mlp", "SelfAttention", "norm.linear")
    return {name: m for name, m in component.named_modules() if isinstance(m, nn.Linear) and any(part in name for part in parts)}


def text_parts(pipeline: Any) -> Iterator[tuple[str, str, str, nn.Module]]:
    """(component, name in it without `text_model.`, its own name, layer) of the text encoders' layers."""
    for component in ("text_encoder", "text_encoder_2"):
        if (module := components(pipeline).get(component)) is not None:
            for name, layer in linears(module).items():
                yield component, name.removeprefix("text_model."), name, layer


def in_text(
    file: AdapterFile, pipeline: Any, prefixes: dict[str, str], ends: tuple[str, str], *, flat: bool, **options: Any
) -> AdapterFile:
    """The text encoders' layers, each component under its prefix."""
    for component, short, own, layer in text_parts(pipeline):
        if component in prefixes:
            key = prefixes[component] + (short.replace(".", "_") if flat else short)
            file.low_rank(key, ends, component, {own: layer}, **options)
    return file


def in_denoiser(
    pipeline: Any, prefix: str, ends: tuple[str, str], *, flat: bool = False, original: bool = False, **options: Any
) -> AdapterFile:
    """Each layer of the denoiser under its own name, or the one that the original code has for it."""
    file = AdapterFile()
    component, module = denoiser(pipeline)
    layers = linears(module)
    names = {name: name for name in layers}
    if original:
        names = {target.modules[0]: name for name, target in original_targets(list(layers)).items()}
    for name, layer in layers.items():
        if name in names:
            file.low_rank(prefix + (names[name].replace(".", "_") if flat else names[name]), ends, component, {name: layer}, **options)
    return file


# ---- UNets ------------------------------------------------------------------------------------------------------------

ONE = {"text_encoder": "lora_te_text_model_"}
TWO = {"text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_text_model_"}
DOTTED = {"text_encoder": "text_encoder.text_model.", "text_encoder_2": "text_encoder_2.text_model."}
OMI = {"text_encoder": "clip_l.text_model.", "text_encoder_2": "clip_g.text_model."}
COMFY = {
    "text_encoder": "text_encoders.clip_l.transformer.text_model.",
    "text_encoder_2": "text_encoders.clip_g.transformer.text_model.",
}


def _kohya(pipeline: Any) -> dict[str, str]:
    return TWO if "text_encoder_2" in components(pipeline) else ONE


def _openclip(pipeline: Any) -> AdapterFile:
    """The second text encoder of SDXL under OpenCLIP's names, where q, k and v are one matrix."""
    file, module = AdapterFile(), pipeline.text_encoder_2
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    for index in range(module.config.num_hidden_layers):
        before, own = f"lora_te2_transformer_resblocks_{index}_", f"text_model.encoder.layers.{index}."
        fused = {f"{own}self_attn.{part}_proj": layers[f"{own}self_attn.{part}_proj"] for part in "qkv"}
        file.low_rank(f"{before}attn_in_proj", KOHYA, "text_encoder_2", fused)
        for theirs, ours in (("attn_out_proj", "self_attn.out_proj"), ("mlp_c_fc", "mlp.fc1"), ("mlp_c_proj", "mlp.fc2")):
            file.low_rank(before + theirs, KOHYA, "text_encoder_2", {own + ours: layers[own + ours]})
    return file


UNET_DIALECTS: dict[str, Callable[[Any], AdapterFile]] = {
    "kohya": lambda p: in_text(in_denoiser(p, "lora_unet_", KOHYA, flat=True), p, _kohya(p), KOHYA, flat=True),
    "kohya with original names": lambda p: in_denoiser(p, "lora_unet_", KOHYA, flat=True, original=True),
    "diffusers": lambda p: in_text(in_denoiser(p, "unet.", DIFFUSERS, alpha=None), p, DOTTED, TRANSFORMERS, flat=False, alpha=None),
    "peft": lambda p: in_text(in_denoiser(p, "unet.", PEFT, alpha=None), p, DOTTED, PEFT, flat=False, alpha=None),
    "peft with alpha": lambda p: in_denoiser(p, "unet.", PEFT),
    "peft inside its wrapper": lambda p: in_denoiser(p, "base_model.model.", PEFT, alpha=None),
    "OneTrainer OMI": lambda p: in_text(in_denoiser(p, "unet.", KOHYA, original=True), p, OMI, KOHYA, flat=False),
    "ComfyUI": lambda p: in_text(in_denoiser(p, "diffusion_model.", KOHYA, original=True), p, COMFY, KOHYA, flat=False),
    "LyCORIS": lambda p: in_denoiser(p, "lycoris_", KOHYA, flat=True),
}
CLIP_H = {"text_encoder": "text_encoders.clip_h.transformer.text_model."}
SD2_DIALECTS: dict[str, Callable[[Any], AdapterFile]] = {
    **UNET_DIALECTS,
    "OneTrainer for ComfyUI": lambda p: in_text(in_denoiser(p, "diffusion_model.", PEFT, original=True), p, CLIP_H, PEFT, flat=False),
}
SDXL_DIALECTS: dict[str, Callable[[Any], AdapterFile]] = {**UNET_DIALECTS, "OpenCLIP names": _openclip}


# ---- FLUX -------------------------------------------------------------------------------------------------------------

_QKV, _ADDED = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
BFL_DOUBLE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("img_attn.qkv", _QKV),
    ("txt_attn.qkv", _ADDED),
    ("img_attn.proj", ("attn.to_out.0",)),
    ("txt_attn.proj", ("attn.to_add_out",)),
    ("img_mlp.0", ("ff.net.0.proj",)),
    ("img_mlp.2", ("ff.net.2",)),
    ("txt_mlp.0", ("ff_context.net.0.proj",)),
    ("txt_mlp.2", ("ff_context.net.2",)),
    ("img_mod.lin", ("norm1.linear",)),
    ("txt_mod.lin", ("norm1_context.linear",)),
)
BFL_SINGLE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("linear1", (*_QKV, "proj_mlp")),
    ("linear2", ("proj_out",)),
    ("modulation.lin", ("norm.linear",)),
)
BFL_TOP = (
    ("img_in", "x_embedder"),
    ("txt_in", "context_embedder"),
    ("final_layer.linear", "proj_out"),
    ("guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
    ("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    ("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
)
XLABS_DOUBLE = (("qkv_lora1", _QKV), ("qkv_lora2", _ADDED), ("proj_lora1", ("attn.to_out.0",)), ("proj_lora2", ("attn.to_add_out",)))
XLABS_SINGLE = (("qkv_lora", _QKV), ("proj_lora", ("proj_out",)))


def _bfl(pipeline: Any, prefix: str, ends: tuple[str, str], *, flat: bool = False, split: bool = False, **options: Any) -> AdapterFile:
    """Black Forest Labs' names; `split`: OMI's, which number the parts of what is fused."""
    file, modules = AdapterFile(), dict(pipeline.transformer.named_modules())

    def add(name: str, targets: tuple[str, ...]) -> None:
        key = prefix + (name.replace(".", "_") if flat else name)
        if split and len(targets) > 1:
            for index, target in enumerate(targets):
                file.low_rank(f"{key}.{index}", ends, "transformer", {target: modules[target]}, **options)
        else:
            file.low_rank(key, ends, "transformer", {target: modules[target] for target in targets}, **options)

    for block in range(2):
        for name, parts in BFL_DOUBLE:
            add(f"double_blocks.{block}.{name}", tuple(f"transformer_blocks.{block}.{part}" for part in parts))
        for name, parts in BFL_SINGLE:
            add(f"single_blocks.{block}.{name}", tuple(f"single_transformer_blocks.{block}.{part}" for part in parts))
    for name, target in BFL_TOP:
        add(name, (target,))
    swapped = "final_layer.adaLN_modulation.1"
    add(swapped, ("norm_out.linear",))
    straight = file.merges["transformer"]["norm_out.linear"]
    # The original code says shift, scale; diffusers says scale, shift.
    file.merges["transformer"]["norm_out.linear"] = lambda w: w + torch.cat(list(reversed((straight(w) - w).chunk(2))))
    return file


def _xlabs(pipeline: Any) -> AdapterFile:
    file, modules = AdapterFile(), dict(pipeline.transformer.named_modules())
    tables = (("double_blocks", "transformer_blocks", XLABS_DOUBLE), ("single_blocks", "single_transformer_blocks", XLABS_SINGLE))
    for theirs, ours, table in tables:
        for block in range(2):
            for name, parts in table:
                layers = {f"{ours}.{block}.{part}": modules[f"{ours}.{block}.{part}"] for part in parts}
                key = f"{theirs}.{block}.processor.{name}"
                file.low_rank(key, (".down.weight", ".up.weight"), "transformer", layers, alpha=None)
    return file


FLUX_DIALECTS: dict[str, Callable[[Any], AdapterFile]] = {
    "kohya": lambda p: in_text(
        _bfl(p, "lora_unet_", KOHYA, flat=True),
        p,
        {"text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te3_"},
        KOHYA,
        flat=True,
    ),
    "diffusers": lambda p: in_text(
        in_denoiser(p, "transformer.", PEFT, alpha=None), p, {"text_encoder": "text_encoder.text_model."}, PEFT, flat=False, alpha=None
    ),
    "diffusers with T5": lambda p: in_text(
        in_denoiser(p, "transformer.", PEFT), p, {"text_encoder_2": "text_encoder_2."}, PEFT, flat=False, alpha=None
    ),
    "Black Forest Labs": lambda p: _bfl(p, "", PEFT, alpha=None),
    "ComfyUI": lambda p: in_text(_bfl(p, "diffusion_model.", PEFT), p, {"text_encoder": COMFY["text_encoder"]}, PEFT, flat=False),
    "XLabs": _xlabs,
    "OneTrainer": lambda p: in_text(
        in_denoiser(p, "lora_transformer_", KOHYA, flat=True),
        p,
        {"text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_"},
        KOHYA,
        flat=True,
    ),
    "OneTrainer OMI": lambda p: in_text(
        _bfl(p, "transformer.", KOHYA, split=True), p, {"text_encoder": "clip_l.text_model.", "text_encoder_2": "t5."}, KOHYA, flat=False
    ),
    "LyCORIS": lambda p: in_denoiser(p, "lycoris_", KOHYA, flat=True),
}


# ---- forms ------------------------------------------------------------------------------------------------------------


def in_form(pipeline: Any, form: str) -> AdapterFile:
    """The denoiser's layers in one form, as kohya's and LyCORIS' trainers name them."""
    file = AdapterFile()
    component, module = denoiser(pipeline)
    prefix = "lora_unet_" if component == "unet" else "lora_transformer_"
    convolutions = {name: m for name, m in module.named_modules() if isinstance(m, nn.Conv2d) and "resnets" in name}
    layers = {**({} if form in TUCKER_FORMS else linears(module)), **convolutions}
    wanted = {name: m for name, m in layers.items() if form not in TUCKER_FORMS or m.get_parameter("weight").shape[-1] > 1}
    for name, layer in wanted.items():
        parts, merge = (FORMS | TUCKER_FORMS)[form](Maker(layer.get_parameter("weight").shape, file.random))
        file.tensors |= {f"{prefix}{name.replace('.', '_')}.{role}": tensor for role, tensor in parts.items()}
        file.merges.setdefault(component, {})[name] = merge
    return file
