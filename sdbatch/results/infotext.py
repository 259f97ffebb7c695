"""A1111's infotext: the text in a PNG that A1111, Civitai and most galleries read.

    <prompt>
    Negative prompt: <negative prompt; the line is absent when empty>
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model hash: abcdef0123, ..., Hashes: {"model": "..."}

The format has no escapes for its own words, so a prompt that holds `Negative prompt:` or `Steps:` would forge fields.
Here such words get a backslash before the colon, which readers show as it is and `parse` takes away again.

Source: the grammar of AUTOMATIC1111/stable-diffusion-webui; `Hashes` is Civitai's addition and must come last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import sdbatch
from sdbatch.cell import Cell, Control, ImagePrompt, WeightFile
from sdbatch.families import find_family
from sdbatch.results.row import autov2

_FORGEABLE = re.compile(r"(Negative prompt|Steps)(\\*):")
_ESCAPED = re.compile(r"(Negative prompt|Steps)(\\*)\\:")
_NEGATIVE = "\nNegative prompt: "
_PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_HASHES = re.compile(r"(?:^|, )Hashes: (\{[^}]*\})$")
_UNSAFE = re.compile(r'[,:"{\x00-\x1f]|^\s|\s$')


@dataclass(frozen=True, slots=True)
class Infotext:
    """What an infotext says."""

    prompt: str
    negative_prompt: str = ""
    parameters: dict[str, str] = field(default_factory=dict[str, str])
    """In their order, such as `{"Steps": "20", "Sampler": "Euler a"}`."""
    hashes: dict[str, str] = field(default_factory=dict[str, str])
    """Civitai's: `model`, `vae`, `lora:<name>`, `embed:<name>` to the first 10 digits of the SHA-256."""


def write(info: Infotext) -> str:
    """The text of an infotext; `parse` gives back exactly `info`."""
    last = ", ".join(f"{key}: {_quote(value)}" for key, value in info.parameters.items())
    if info.hashes:
        # Readers find the end of the hashes at the first closing brace, so none may be inside.
        inside = json.dumps(info.hashes)[1:-1].replace("}", "\\u007d")
        last += f", Hashes: {{{inside}}}"
    negative = f"{_NEGATIVE}{_escape(info.negative_prompt)}" if info.negative_prompt else ""
    return f"{_escape(info.prompt)}{negative}\n{last}"


def parse(text: str) -> Infotext:
    """Read an infotext, ours or another program's."""
    head, _, last = text.rpartition("\n")
    prompt, _, negative = head.partition(_NEGATIVE)
    hashes: dict[str, str] = {}
    if found := _HASHES.search(last):
        hashes = json.loads(found[1])
        last = last[: found.start()]
    parameters = {key: _unquote(value) for key, value in _PARAMETER.findall(last)}
    return Infotext(_unescape(prompt), _unescape(negative), parameters, hashes)


def infotext_of(cell: Cell, autov3: Mapping[str, str] | None = None, size_px: tuple[int, int] | None = None) -> Infotext:
    """The infotext of a cell.

    Args:
        cell: What was made.
        autov3: Names of LoRAs to Civitai's AutoV3 where that is known.
        size_px: (width, height) of the finished picture; None: as it was decoded.
    """
    recipe = cell.recipe
    words = f"{cell.prompt}\n{cell.negative_prompt}"
    embeddings = [part for part in recipe.embeddings if part.name in words]
    parameters: dict[str, str | None] = {
        "Steps": str(cell.steps),
        "Sampler": cell.sampler.label,
        "Schedule type": cell.sampler.schedule,
        "CFG scale": _number(cell.guidance_scale),
        "Seed": str(cell.seed),
        "Size": f"{cell.width}x{cell.height}",
        # The sum of two checkpoints has the hash of neither: `Hashes` has them all.
        "Model hash": autov2(recipe.checkpoint.sha256) if recipe.merge is None else None,
        "Model": recipe.model_name,
        "VAE hash": autov2(recipe.vae.sha256) if recipe.vae else None,
        "VAE": recipe.vae.name if recipe.vae else None,
        "Denoising strength": _number(second.strength) if (second := cell.source or cell.hires) else None,
        "Clip skip": str(cell.clip_skip) if cell.clip_skip > 1 else None,
        "CFG rescale": _number(cell.guidance_rescale) if cell.guidance_rescale else None,
        "RNG": "CPU",
        **_inpainting(cell),
        **_hires(cell),
    }
    for index, (part, control) in enumerate(zip(recipe.controlnets, cell.controls, strict=True)):
        parameters[f"ControlNet {index}"] = _unit(control.preprocessor, part, control)
    for index, (part, shown) in enumerate(zip(recipe.ip_adapters, cell.image_prompts, strict=True), len(recipe.controlnets)):
        # To A1111's ControlNet extension an IP-Adapter is one more unit, and this the module that finds its image encoder.
        parameters[f"ControlNet {index}"] = _unit("ip-adapter-auto", part, shown)
    parameters |= _enlargement(cell, size_px or cell.decoded_px)
    parameters["Lora hashes"] = ", ".join(f"{part.name}: {(autov3 or {}).get(part.name, autov2(part.sha256))}" for part in recipe.loras)
    parameters["TI hashes"] = ", ".join(f"{part.name}: {part.sha256[:12]}" for part in embeddings)
    parameters["Version"] = f"sdbatch {sdbatch.__version__}"
    return Infotext(
        prompt=" ".join(filter(None, [cell.prompt, *_network_tags(cell)])),
        negative_prompt=cell.negative_prompt,
        parameters={key: value for key, value in parameters.items() if value},
        hashes=_hashes(cell, embeddings),
    )


def _enlargement(cell: Cell, size_px: tuple[int, int]) -> dict[str, str]:
    """In the words of A1111's postprocessing."""
    if cell.recipe.upscaler is None and cell.upscale is None:
        return {}
    scale = cell.upscale or round(size_px[0] / cell.decoded_px[0], 4)
    upscaler = cell.recipe.upscaler.name if cell.recipe.upscaler else "Lanczos"
    return {"Postprocess upscale by": _number(scale), "Postprocess upscaler": upscaler}


def _inpainting(cell: Cell) -> dict[str, str]:
    """In the words of A1111, which says nothing of what it does unless asked otherwise."""
    if cell.source is None or cell.source.mask is None:
        return {}
    told = {"Mask blur": str(cell.source.mask.blur_px)}
    return told if cell.source.mask.fill == "original" else {**told, "Masked content": f"latent {cell.source.mask.fill}"}


def _hires(cell: Cell) -> dict[str, str]:
    """In the words of A1111, whose second pass runs as many steps as it says, in place of the strength's share of them."""
    if (hires := cell.hires) is None:
        return {}
    asked = {"Hires resize": f"{hires.width}x{hires.height}"} if hires.scale is None else {"Hires upscale": _number(hires.scale)}
    steps = hires.steps - find_family(cell.recipe.family).skipped_steps(hires.steps, hires.strength)
    return {**asked, "Hires steps": str(steps) if steps else "", "Hires upscaler": hires.enlarger.label}


def _hashes(cell: Cell, embeddings: list[WeightFile]) -> dict[str, str]:
    recipe = cell.recipe
    parts = {"model": recipe.checkpoint}
    if recipe.merge:
        merged = (recipe.checkpoint, recipe.merge.b, recipe.merge.c)
        parts = {f"model:{file.name}": file for file in merged if file is not None}
    if recipe.vae:
        parts["vae"] = recipe.vae
    parts |= {f"lora:{part.name}": part for part in recipe.loras} | {f"embed:{part.name}": part for part in embeddings}
    return {key: autov2(part.sha256) for key, part in parts.items()}


def _network_tags(cell: Cell) -> list[str]:
    """A1111 names LoRAs in the prompt: `<lora:name:weight>`, or `<lora:name:text encoder:model>` when they differ; then hypernetworks."""
    tags: list[str] = []
    for part, strength in zip(cell.recipe.loras, cell.strengths, strict=True):
        model, text = _number(strength.model), _number(strength.text_encoder)
        weights = model if model == text else f"{text}:{model}"
        blocks = f":lbw={strength.blocks}" if strength.blocks else ""  # the word of the extension that applies them
        tags.append(f"<lora:{part.name}:{weights}{blocks}>")
    hypernetworks = zip(cell.recipe.hypernetworks, cell.hypernetwork_weights, strict=True)
    return tags + [f"<hypernet:{part.name}:{_number(weight)}>" for part, weight in hypernetworks]


def _unit(module: str, part: WeightFile, given: Control | ImagePrompt) -> str:
    return (
        f"Module: {module}, Model: {part.name} [{part.sha256[:8]}], Weight: {_number(given.weight)}, "
        f"Guidance Start: {_number(given.start)}, Guidance End: {_number(given.end)}"
    )


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _quote(value: str) -> str:
    # No brace in a value: it could be taken for the beginning of the hashes.
    return json.dumps(value, ensure_ascii=False).replace("{", "\\u007b") if _UNSAFE.search(value) else value


def _unquote(value: str) -> str:
    if not value.startswith('"') or not value.endswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _escape(prompt: str) -> str:
    return _FORGEABLE.sub(r"\1\2\\:", prompt)


def _unescape(prompt: str) -> str:
    return _ESCAPED.sub(r"\1\2:", prompt)
