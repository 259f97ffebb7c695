"""What values a run can have, key by key: one readable table. Types are the schema's business, ranges are here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from sdbatch.cell import SEED_LIMIT
from sdbatch.errors import ConfigError, did_you_mean
from sdbatch.families import FAMILIES
from sdbatch.families.lora_blocks import read_lora_blocks, to_text
from sdbatch.families.options import scheduler_options
from sdbatch.families.samplers import SAMPLERS
from sdbatch.merge.blocks import read_blocks
from sdbatch.merge.table import METHODS
from sdbatch.plan.task import MOST_PX, TASKS
from sdbatch.plan.tree import Tree, get

PROMPT_LIMIT = 100_000
"""Characters: beyond this it is a file given by mistake."""

_TAG = re.compile(r"<(lora|lyco|hypernet):([^:<>]+):?([-+.\d]*)[^<>]*>", re.IGNORECASE)
"""How A1111 loads networks from a prompt."""


@dataclass(frozen=True)
class Rule:
    """A test of one value, and what to say when it fails."""

    test: Callable[[Any], bool]
    message: Callable[[Any], str]


def between(low: float, high: float, unit: str = "") -> Rule:
    """A finite number from low to high, both included."""
    space = f" {unit}" if unit else ""
    return Rule(
        lambda value: isinstance(value, int | float) and math.isfinite(value) and low <= value <= high,
        lambda value: f"{value} is out of range; it goes from {low:g} to {high:g}{space}.",
    )


def _seed_message(value: Any) -> str:
    if isinstance(value, int) and value >= SEED_LIMIT:
        return f"{value} is too large. torch's CPU generator ignores bits above 2**32, so it would repeat seed {value % SEED_LIMIT}."
    return f"{value!r} is no seed; seeds are whole numbers from 0 to {SEED_LIMIT - 1}."


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > PROMPT_LIMIT or "\x00" in value:
        return False
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in value)


def _prompt_message(value: Any) -> str:
    """What a prompt is refused for: A1111's tags are no words, and a model that reads them as such says nothing of it."""
    if not _is_text(value) or (tag := _TAG.search(value)) is None:
        return TEXT.message(value)
    kind, name, weight = tag.groups()
    group = "hypernetwork" if kind.lower().startswith("hyper") else "lora"
    how = f"'{group}=[{name}]'" + (f" {group}.{name}.weight={weight}" if weight else "")
    return f"{tag.group()} in a prompt loads nothing here. Take it out of the prompt and give {how}."


def _blocks_fault(value: Any) -> str | None:
    try:
        read_blocks(value)
    except (ConfigError, TypeError, ValueError) as error:
        return str(error) if isinstance(error, ConfigError) else f"{value} is no list of numbers, nor a preset."
    return None


PIXELS = Rule(
    lambda value: isinstance(value, int) and 8 <= value <= MOST_PX and value % 8 == 0,
    lambda value: f"{value} px cannot be made; sizes are multiples of 8 from 8 to {MOST_PX} px.",
)
TEXT = Rule(_is_text, lambda value: f"{str(value)[:40]!r} is not valid text (a NUL, a lone surrogate, or over {PROMPT_LIMIT} characters).")
PROMPT = Rule(lambda value: _is_text(value) and not _TAG.search(value), _prompt_message)
STRENGTH = between(-10, 10)
SHARE = between(0, 1)
BLUR = between(0, 256, "px")
SCALE = between(0.125, 16)
TILE = between(64, 8192, "px")
WINDOWED = ("controlnet", "ip_adapter")
"""Stacks whose items act on a part of the steps."""


def optional(rule: Rule) -> Rule:
    """The same, or nothing."""
    return Rule(lambda value: value is None or rule.test(value), rule.message)


def one_of(names: Callable[[], list[str]], what: str) -> Rule:
    """A name from a table."""
    return Rule(lambda value: value in names(), lambda value: f"there is no {what} {value!r}. {did_you_mean(str(value), names())}")


RULES: dict[str, Rule] = {
    "seed": Rule(lambda value: type(value) is int and 0 <= value < SEED_LIMIT, _seed_message),
    "steps": between(1, 1000, "steps"),
    "guidance_scale": between(0, 100),
    "guidance_rescale": between(0, 1),
    "width": PIXELS,
    "height": PIXELS,
    "clip_skip": Rule(  # how far it goes, the family tells
        lambda value: type(value) is int and value >= 1,
        lambda value: f"{value} is no layer; 1 is the last of the text encoder, 2 the one before.",
    ),
    "upscaler.scale": optional(SCALE),
    "upscaler.tile_px": Rule(
        lambda value: value == 0 or TILE.test(value), lambda value: f"{TILE.message(value)} 0 enlarges the picture as a whole."
    ),
    "checkpoint.merge.method": one_of(lambda: list(METHODS), "method"),
    "checkpoint.merge.ratio": STRENGTH,
    "checkpoint.merge.blocks": Rule(lambda value: value is None or _blocks_fault(value) is None, lambda value: str(_blocks_fault(value))),
    "checkpoint.merge.seed": Rule(lambda value: type(value) is int and 0 <= value < SEED_LIMIT, _seed_message),
    "prompt": PROMPT,
    "negative_prompt": PROMPT,
    "lora.*.weight": STRENGTH,
    "lora.*.text_encoder_weight": optional(STRENGTH),
    "hypernetwork.*.weight": STRENGTH,
    "controlnet.*.weight": STRENGTH,
    "controlnet.*.start": SHARE,
    "controlnet.*.end": SHARE,
    "controlnet.*.image": Rule(
        lambda value: bool(value), lambda value: "is not set; give the control image, or the picture to preprocess."
    ),
    "ip_adapter.*.weight": STRENGTH,
    "ip_adapter.*.start": SHARE,
    "ip_adapter.*.end": SHARE,
    "ip_adapter.*.image": Rule(lambda value: bool(value), lambda value: "is not set; give the picture that the images shall follow."),
    "family.name": one_of(lambda: list(FAMILIES), "family"),
    "family.config": Rule(lambda value: bool(value), lambda value: "is not set; give the folder of the model's weightless configs."),
    "sampler.name": one_of(lambda: list(SAMPLERS), "sampler"),
    "task.name": one_of(lambda: list(TASKS), "task"),
    "task.strength": optional(SHARE),
    "task.mask_blur": optional(BLUR),
    "task.steps": optional(between(0, 1000, "steps")),
    "task.scale": optional(between(1, 8)),
    "task.width": optional(PIXELS),
    "task.height": optional(PIXELS),
    "batch_size": Rule(
        lambda value: value == "auto" or (type(value) is int and 1 <= value <= 4096),
        lambda value: f"{value!r} is no batch size; give a whole number from 1, or auto.",
    ),
    "memory.threads": Rule(
        lambda value: value is None or (type(value) is int and value >= 1), lambda value: f"{value} threads cannot run."
    ),
}


def block_fault(value: Any, family: str) -> str | None:
    """What is wrong with a LoRA's block weights in a family; None when they fit, or when there is no such family."""
    if value is None or family not in FAMILIES:
        return None
    if not isinstance(value, str | list):
        return f"{value!r} are no block weights; give a preset's name or a list of numbers."
    try:
        read_lora_blocks(to_text(cast("str | list[float]", value)), family)
    except ConfigError as error:
        return str(error)
    return None


def pair_faults(config: Tree) -> list[tuple[str, str]]:
    """Faults that need two values of one configuration."""
    found: list[tuple[str, str]] = []
    family = config["family"]["name"]
    for name, item in (get(config, "lora") or {}).items():
        if told := block_fault(item.get("blocks"), family):
            found.append((f"lora.{name}.blocks", told))
    for stack in WINDOWED:
        for name, item in (get(config, stack) or {}).items():
            if item["start"] >= item["end"]:
                found.append((f"{stack}.{name}.end", f"{item['end']} is not after start={item['start']}, so it would do nothing."))
    sampler = config["sampler"]
    if sampler.get("options") and sampler["name"] in SAMPLERS:
        known = SAMPLERS[sampler["name"]]
        options = scheduler_options(known.scheduler)
        for name in sampler["options"]:
            if options and name not in options:
                said = f"{known.name} ({known.scheduler}) has no such option. {did_you_mean(name, options)}"
                found.append((f"sampler.options.{name}", said))
    return found
