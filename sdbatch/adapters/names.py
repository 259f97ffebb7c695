"""Every name by which files call a module of the model: diffusers' own, and those of the original code of each family.

A file may hold one matrix for layers that the model has apart (the fused q, k, v of FLUX and OpenCLIP): then a name stands
for several modules, whose outputs follow each other in its rows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sdbatch.adapters.dialect import flatten
from sdbatch.naming import find_naming, names_of


@dataclass(frozen=True, slots=True)
class Target:
    """The modules that a name of a file stands for."""

    modules: tuple[str, ...]
    """In the order of the rows."""
    is_swapped: bool = False
    """The two halves of the rows stand the other way round in the model."""


def name_table(modules: Collection[str]) -> dict[str, Target]:
    """Flat name -> target, for every module of a component."""
    table = {flatten(name): Target((name,)) for name in modules}
    for original, target in original_targets(modules).items():
        for name, part in _spellings(original, target):
            table.setdefault(flatten(name), part)
    return table


def original_targets(modules: Collection[str]) -> dict[str, Target]:
    """Module of the original code -> target, for every module of a component that the original code names otherwise."""
    naming = find_naming(modules)
    if naming is None:
        return {}
    names = names_of("openclip" if naming == "clip" else naming, modules)
    own = {piece.names[0]: module for module in modules if (piece := names.read(f"{module}.weight"))}
    found: dict[str, Target] = {}
    for written in map(names.write, own):
        if written and written[1].form in _FORMS and all(name in own for name in written[1].names):
            target = Target(tuple(own[name] for name in written[1].names), written[1].form == "swapped")
            found[_WEIGHT.sub("", written[0])] = target
            if written[0].endswith(".scale"):
                found[written[0]] = target  # ComfyUI keeps the whole name of what is no `.weight`
    return found


_FORMS = ("plain", "swapped")
_WEIGHT = re.compile(r"(\.weight|_weight|\.scale)$")

_XLABS = {"img_attn.qkv": "qkv_1", "txt_attn.qkv": "qkv_2", "img_attn.proj": "proj_1", "txt_attn.proj": "proj_2"} | {
    "linear1": "qkv",
    "linear2": "proj",
}
"""XLabs' attention processors of FLUX, by the layers they change; the one of `linear1` is without its last part."""


def _spellings(original: str, target: Target) -> Iterator[tuple[str, Target]]:
    """The names that trainers give to a module of the original code."""
    yield original, target
    # OMI numbers the parts of what is fused.
    yield from ((f"{original}.{index}", Target((part,))) for index, part in enumerate(target.modules) if len(target.modules) > 1)
    if original.startswith(("transformer.resblocks.", "ln_final")):
        yield f"model.{original}", target
    if original == "img_in":
        yield "img_in.proj", target
    if (found := re.fullmatch(r"((?:double|single)_blocks\.\d+\.)(.+)", original)) and found[2] in _XLABS:
        yield f"{found[1]}processor.{_XLABS[found[2]]}", Target(target.modules[:3])
