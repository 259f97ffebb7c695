"""One naming for all layouts: every tensor of a checkpoint under its component and diffusers' name for it.

`model.diffusion_model.input_blocks.1.0.in_layers.0.weight` of a single file and `unet/...: down_blocks.0.resnets.0.norm1.weight`
of a diffusers folder are both `unet.down_blocks.0.resnets.0.norm1.weight` here, so that files of different layouts merge.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, TypeVar

from sdbatch.merge.naming_rules import Rule, flux_rules, openclip_rules, unet_rules, vae_rules


class Piece(NamedTuple):
    """One tensor of a file, said in common names."""

    names: tuple[str, ...]
    """The common names; several lie stacked along the first dimension."""
    form: str = "plain"
    """A key of `sdbatch.merge.piece.FORMS`."""
    shares: tuple[int, ...] = ()
    """Rows of the stacked tensors relative to each other; empty: equal."""


class Place(NamedTuple):
    """Where a single file keeps a component."""

    prefix: str
    component: str
    naming: str
    """`unet`, `transformer`, `vae`, `clip`, `openclip` or `t5`: which names follow the prefix."""


PLACES = (
    Place("first_stage_model.", "vae", "vae"),
    Place("cond_stage_model.transformer.", "text_encoder", "clip"),
    Place("cond_stage_model.model.", "text_encoder", "openclip"),
    Place("conditioner.embedders.0.transformer.", "text_encoder", "clip"),
    Place("conditioner.embedders.0.model.", "text_encoder_2", "openclip"),  # the SDXL refiner has only the second
    Place("conditioner.embedders.1.model.", "text_encoder_2", "openclip"),
    Place("text_encoders.clip_l.transformer.", "text_encoder", "clip"),
    Place("text_encoders.clip_g.transformer.", "text_encoder_2", "clip"),
    Place("text_encoders.t5xxl.transformer.", "text_encoder_2", "t5"),
)
"""Of all families; the denoiser, which has one prefix for all, is found by `_denoiser`."""

DENOISER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
FOLDER_COMPONENTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")
"""Components of a diffusers folder that hold weights, each a prefix of its header's names."""

_OLD_VAE = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))
"""How diffusers named the VAE's attention before 2023."""

_ATTENTION_UP = re.compile(r"up_blocks\.(\d+)\.attentions\.")


def to_pieces(names: Collection[str], is_folder: bool = False) -> dict[str, Piece]:
    """Every name of a file that belongs to a model, in common names. What is left out is no weight of a model.

    Understood are single files of Stable Diffusion 1, 2, XL and FLUX.1, their parts alone, and diffusers folders
    (`is_folder`: the names are prefixed by component).
    """
    found: dict[str, Piece] = {}
    for prefix, component, naming in _find_places(names, is_folder):
        inside = {name: name[len(prefix) :] for name in names if name.startswith(prefix)}
        table = _Table(naming, _rules(naming, inside.values()))
        for name, bare in inside.items():
            if piece := table.read(bare):
                found[name] = Piece(tuple(f"{component}.{part}" for part in piece.names), piece.form, piece.shares)
    return found


def to_original(names: Iterable[str], family: str) -> dict[str, Piece]:
    """The tensors of a single file of a family, for these common names."""
    found: dict[str, Piece] = {}
    parts: dict[str, list[str]] = {}
    for name in names:
        component, _, bare = name.partition(".")
        parts.setdefault(component, []).append(bare)
    for component, bare_names in parts.items():
        place = _place_of(component, family, parts)
        table = _Table(place.naming, _rules(place.naming, bare_names))
        for bare in bare_names:
            if (written := table.write(bare)) is not None:
                original, piece = written
                found[place.prefix + original] = Piece(tuple(f"{component}.{part}" for part in piece.names), piece.form, piece.shares)
    return found


def _find_places(names: Collection[str], is_folder: bool) -> list[Place]:
    if is_folder:
        kinds = {component: component if component in ("unet", "transformer", "vae") else "clip" for component in FOLDER_COMPONENTS}
        return [Place(f"{component}.", component, kind) for component, kind in kinds.items()]
    found = [place for place in PLACES if any(name.startswith(place.prefix) for name in names)]
    if any(name.startswith("vae.") for name in names):
        found.append(Place("vae.", "vae", "vae"))
    if denoiser := _denoiser(names):
        return [denoiser, *found]
    return found or [place for place in [_bare_part(names)] if place]


def _denoiser(names: Collection[str]) -> Place | None:
    for prefix in DENOISER_PREFIXES:
        if any(name.startswith((f"{prefix}input_blocks.0.0.", f"{prefix}down_blocks.0.resnets.")) for name in names):
            return Place(prefix, "unet", "unet")
        if any(name.startswith((f"{prefix}double_blocks.0.", f"{prefix}single_transformer_blocks.0.")) for name in names):
            return Place(prefix, "transformer", "transformer")
    return None


def _bare_part(names: Collection[str]) -> Place | None:
    """A file that is one VAE or one text encoder."""
    if any(name.startswith("decoder.conv_in.") for name in names):
        return Place("", "vae", "vae")
    if any(name.startswith("transformer.resblocks.") for name in names):
        return Place("", "text_encoder", "openclip")
    if any(name.endswith("embeddings.token_embedding.weight") for name in names):
        return Place("", "text_encoder", "clip")
    return None


def _place_of(component: str, family: str, parts: Mapping[str, object]) -> Place:
    """Where a single file of the family keeps the component."""
    match component, family:
        case "unet", _:
            return Place("model.diffusion_model.", "unet", "unet")
        case "transformer", _:
            # Alone as Black Forest Labs published it; within a whole checkpoint as ComfyUI writes it.
            return Place("model.diffusion_model." if len(parts) > 1 else "", "transformer", "transformer")
        case "vae", "flux":
            return Place("vae.", "vae", "vae")
        case "vae", _:
            return PLACES[0]
        case "text_encoder", "flux":
            return PLACES[6]
        case "text_encoder_2", "flux":
            return PLACES[8]
        case "text_encoder", "sd2":
            return PLACES[2]
        case "text_encoder", "sdxl":
            return PLACES[3]
        case "text_encoder_2", _:
            return PLACES[5 if "text_encoder" in parts else 4]
        case _:
            return PLACES[1]


def _rules(naming: str, names: Iterable[str]) -> list[Rule]:
    """The table for a component of this size, in whichever naming its names are."""
    given = list(names)
    match naming:
        case "unet":
            return unet_rules(*_unet_size(given))
        case "vae":
            return vae_rules(1 + _highest(given, r"encoder\.down(?:_blocks)?\.(\d+)\."))
        case "openclip":
            return openclip_rules(1 + _highest(given, r"(?:transformer\.resblocks|text_model\.encoder\.layers)\.(\d+)\."))
        case "transformer":
            double = _highest(given, r"(?:double_blocks|transformer_blocks)\.(\d+)\.")
            return flux_rules(1 + double, 1 + _highest(given, r"(?:single_blocks|single_transformer_blocks)\.(\d+)\."))
        case _:
            return []


def _unet_size(names: list[str]) -> tuple[int, int, frozenset[int]]:
    """Layers per block, blocks, and which up blocks have attention."""
    if (blocks := 1 + _highest(names, r"down_blocks\.(\d+)\.")) > 0:
        layers = 1 + _highest(names, r"down_blocks\.0\.resnets\.(\d+)\.")
        return layers, blocks, frozenset(int(found[1]) for name in names if (found := _ATTENTION_UP.match(name)))
    downs = sorted(int(found[1]) for name in names if (found := re.match(r"input_blocks\.(\d+)\.0\.op\.weight", name)))
    step = downs[0] if downs else 1 + _highest(names, r"input_blocks\.(\d+)\.")
    given = frozenset(names)
    with_attention = (block for block in range(len(downs) + 1) if f"output_blocks.{block * step}.1.norm.weight" in given)
    return step - 1, len(downs) + 1, frozenset(with_attention)


def _highest(names: Iterable[str], pattern: str) -> int:
    """The highest number that the pattern finds at the beginning of a name; -1 for none."""
    compiled = re.compile(pattern)
    return max((int(found[1]) for name in names if (found := compiled.match(name))), default=-1)


class _Table:
    """The rules of one component, ready to be asked in either direction."""

    def __init__(self, naming: str, rules: list[Rule]) -> None:
        self.naming = naming
        self.by_original = {rule.original: rule for rule in rules}
        self.by_diffusers = {part: (rule, index) for rule in rules for index, part in enumerate(rule.diffusers)}

    def read(self, bare: str) -> Piece | None:
        """What a tensor of a file is in common names; None for what belongs to no model."""
        if self.naming in ("clip", "t5"):
            return _read_transformers(bare, self.naming)
        if self.naming == "vae" and "mid_block" in bare:
            for old, new in _OLD_VAE:
                bare = bare.replace(old, new)
        if found := _longest(self.by_original, bare):
            rule, rest = found
            return Piece(tuple(part + rest for part in rule.diffusers), rule.form, rule.shares)
        return Piece((bare,)) if _longest(self.by_diffusers, bare) else None

    def write(self, bare: str) -> tuple[str, Piece] | None:
        """The original tensor that begins with this one, or None where an earlier one has brought it in."""
        if self.naming in ("clip", "t5"):
            return bare, Piece((bare,))
        if not (found := _longest(self.by_diffusers, bare)):
            return None
        (rule, index), rest = found
        if index:
            return None
        return rule.original + rest, Piece(tuple(part + rest for part in rule.diffusers), rule.form, rule.shares)


def _read_transformers(bare: str, naming: str) -> Piece | None:
    if bare.endswith((".position_ids", "logit_scale")) or bare.startswith(("vision_model.", "visual_projection.")):
        return None
    if bare == "encoder.embed_tokens.weight":
        return Piece(("shared.weight",))  # T5's table of words, under the name of its copy
    if naming == "clip" and bare.startswith(("embeddings.", "encoder.layers.", "final_layer_norm.")):
        # transformers of 2026 writes a text encoder without this prefix; every version reads it with the prefix.
        return Piece((f"text_model.{bare}",))
    return Piece((bare,))


_Found = TypeVar("_Found")


def _longest(table: Mapping[str, _Found], name: str) -> tuple[_Found, str] | None:
    """The entry of the longest beginning of a name that ends at a dot, and the rest of the name."""
    end = len(name)
    while end > 0:
        if (found := table.get(name[:end])) is not None:
            return found, name[end:]
        end = name.rfind(".", 0, end)
    return None
