"""Whole files: every tensor of a checkpoint under its component and diffusers' name for it, its common name.

`model.diffusion_model.input_blocks.1.0.in_layers.0.weight` of a single file and `unet/...: down_blocks.0.resnets.0.norm1.weight`
of a diffusers folder are both `unet.down_blocks.0.resnets.0.norm1.weight` here, so that files of different layouts merge.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from sdbatch.families import FAMILIES
from sdbatch.naming import Piece, find_naming, names_of

NAMINGS = {
    "unet": ("unet",),
    "transformer": ("transformer",),
    "vae": ("vae",),
    "text_encoder": ("openclip", "clip"),
    "text_encoder_2": ("openclip", "clip", "t5"),
}
"""Component with weights -> the namings it may have, in single files and as folders of a diffusers folder."""

_PARTS = [part for family in FAMILIES.values() for part in family.components]

PREFIXES = {
    component: tuple(dict.fromkeys([*(prefix for part in _PARTS if part.name == component for prefix in part.prefixes), f"{component}."]))
    for component in NAMINGS
}
"""Component -> where single files of any family keep it, the first that is found counts."""

EMA = "model_ema."


class _Place(NamedTuple):
    prefix: str
    component: str
    naming: str


def to_pieces(names: Collection[str], is_folder: bool = False) -> dict[str, Piece]:
    """Every name of a file that belongs to a model, in common names. What is left out is no weight of a model.

    Understood are single files of Stable Diffusion 1, 2, XL and FLUX.1, their parts alone, and diffusers folders
    (`is_folder`: the names are prefixed by component).
    """
    found: dict[str, Piece] = {}
    for place in _find_places(names, is_folder):
        inside = _within(names, place.prefix)
        table = names_of(place.naming, inside.values())
        for name, bare in inside.items():
            if piece := table.read(bare):
                found[name] = _common(piece, place.component)
    return found


def to_original(names: Iterable[str], family: str) -> dict[str, Piece]:
    """The tensors of a single file of a family, for these common names."""
    parts: dict[str, list[str]] = {}
    for name in names:
        component, _, bare = name.partition(".")
        parts.setdefault(component, []).append(bare)
    found: dict[str, Piece] = {}
    for component, bare_names in parts.items():
        prefix = _prefix_in(family, component, parts)
        table = names_of(_naming_at(prefix, component, bare_names), bare_names)
        for written in map(table.write, bare_names):
            if written:
                found[prefix + written[0]] = _common(written[1], component)
    return found


def ema_name(name: str) -> str:
    """Where a single file keeps the averaged weights of one of its denoiser's tensors: without dots."""
    return EMA + name.removeprefix("model.").replace(".", "")


def _common(piece: Piece, component: str) -> Piece:
    return piece._replace(names=tuple(f"{component}.{name}" for name in piece.names))


def _within(names: Iterable[str], prefix: str) -> dict[str, str]:
    return {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def _find_places(names: Collection[str], is_folder: bool) -> list[_Place]:
    prefixes = {component: (f"{component}.",) for component in NAMINGS} if is_folder else PREFIXES
    found = [place for component in NAMINGS for place in _look(names, component, prefixes[component])]
    # A file that is one VAE or one text encoder has no prefix.
    return found or [place for component in NAMINGS for place in _look(names, component, ("",))][:1]


def _look(names: Collection[str], component: str, prefixes: Iterable[str]) -> Iterator[_Place]:
    """Where the component lies, if it is there: once."""
    for prefix in prefixes:
        naming = find_naming(_within(names, prefix).values())
        if naming is not None and naming in NAMINGS[component]:
            yield _Place(prefix, component, naming)
            return


def find_alone(names: Collection[str], component: str) -> str:
    """What the names of one component begin with, in a file that holds it alone or beside others; empty for nothing."""
    others = (other for other in NAMINGS if other.startswith("text_encoder") and component.startswith("text_encoder"))
    prefixes = [prefix for other in (component, *others) for prefix in PREFIXES[other]]
    return next((place.prefix for place in _look(names, component, prefixes)), "")


def _prefix_in(family: str, component: str, parts: Collection[str]) -> str:
    """Where a single file of the family keeps the component, beside the others."""
    if component == "transformer" and len(parts) == 1:
        return ""  # as Black Forest Labs published it; within a whole checkpoint as ComfyUI writes it
    own = FAMILIES[family].components if family in FAMILIES else ()
    prefixes = next(part.prefixes for part in (*own, *_PARTS) if part.name == component)
    is_refiner = prefixes[0] == "conditioner.embedders.1.model." and "text_encoder" not in parts
    return prefixes[1 if is_refiner else 0]


def _naming_at(prefix: str, component: str, names: Collection[str]) -> str:
    if not component.startswith("text_encoder"):
        return component
    return "openclip" if prefix.endswith(".model.") else find_naming(names) or "clip"
