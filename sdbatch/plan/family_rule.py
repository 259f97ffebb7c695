"""What values a family of models can take: its samplers, its sizes, its layers, its guidance."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from sdbatch.errors import SdbatchError
from sdbatch.families import FAMILIES, Family
from sdbatch.plan.files import find_config
from sdbatch.plan.tree import Tree, get

FAMILY_KEYS = ("sampler.name", "width", "height", "clip_skip", "negative_prompt", "guidance_scale", "guidance_rescale")
"""Keys whose values a family may refuse."""


def family_fault(config: Tree, key: str, value: Any) -> str | None:
    """Why a configuration's family cannot take this value of a key; None when it can."""
    family = FAMILIES.get(str(get(config, "family.name")))
    if family is None:
        return None  # told by its own rule
    match key:
        case "sampler.name":
            return _sampler_fault(family, str(value))
        # What is no multiple of 8 is told by the rule of sizes already.
        case "width" | "height" if isinstance(value, int) and value % 8 == 0 and value % family.size_multiple_px:
            return f"{value} px cannot be made with {family.title}; sizes are multiples of {family.size_multiple_px} px."
        case "clip_skip" if isinstance(value, int) and value > family.max_clip_skip:
            return f"{value} asked; with {family.title} it goes from 1 to {family.max_clip_skip}."
        case "negative_prompt" if value and family.distilled_guidance:
            return f"{family.title} takes none, as its guidance is distilled into the network. Leave it empty."
        case "guidance_rescale" if value and family.distilled_guidance:
            return f"{value} would change nothing: the guidance of {family.title} is distilled into the network. Leave it at 0."
        case "guidance_scale" if value != 1.0 and _has_no_guidance(family, str(get(config, "family.config"))):
            return f"{value} would change nothing: this model was distilled without guidance. Set guidance_scale=1."
        case _:
            return None


def _sampler_fault(family: Family, name: str) -> str | None:
    if name in family.samplers:
        return None
    target = "the flow" if family.distilled_guidance else "noise or velocity"
    shown = ", ".join(family.samplers[:8]) + (", ..." if len(family.samplers) > 8 else "")
    return f"{name} does not fit {family.title}, which predicts {target}. Choose one of {shown}."


@cache
def _has_no_guidance(family: Family, config: str) -> bool:
    """Whether the model of a config folder has no input for a guidance scale, though its family has."""
    if not family.distilled_guidance:
        return False
    try:
        settings = json.loads((find_config(config) / family.denoiser / "config.json").read_text(encoding="utf-8"))
    except (SdbatchError, OSError, ValueError):
        return False  # told where the folder is read
    return settings.get("guidance_embeds") is False
