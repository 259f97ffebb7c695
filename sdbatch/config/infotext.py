"""A1111's infotext as the words of a command line, so that a picture from elsewhere is where a sweep begins."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from hydra.core.override_parser.types import Quote, QuotedString

from sdbatch.families.enlargers import ENLARGERS
from sdbatch.families.samplers import names_of
from sdbatch.results.infotext import Infotext

_TAG = re.compile(r"\s*,?\s*<(lora|lyco|hypernet):([^:<>]+)((?::[^:<>]*)*)>")
_PLAIN = re.compile(r"[\w./+-]+")
_PLACES = {"te": "text_encoder_weight", "unet": "weight", "lbw": "blocks"}
_IGNORED = ("Hashes", "Lora hashes", "TI hashes", "Version", "Model hash", "VAE hash", "Schedule type", "Hires steps", "RNG")
"""Read with another key, or of no matter here."""


@dataclass
class Command:
    """What to type."""

    words: list[str] = field(default_factory=list[str])
    """Overrides in Hydra's grammar, not yet quoted for a shell."""
    left: list[str] = field(default_factory=list[str])
    """What has no key here, or needs to be looked at."""

    def __str__(self) -> str:
        left = "".join(f"\n# {line}" for line in self.left)
        return " \\\n  ".join(["sdbatch", *map(shlex.quote, self.words)]) + left

    def add(self, key: str, value: str | float) -> None:
        """A key with a value, in Hydra's quotes where the value needs them."""
        text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
        self.words.append(f"{key}={_quoted(text)}")


def command_of(info: Infotext) -> Command:
    """The command that makes what an infotext tells of, as far as it tells."""
    command = Command()
    given = dict(info.parameters)
    _add_files(command, given)
    stacks: dict[str, list[str]] = {"lora": [], "hypernetwork": [], "embedding": _embeddings(info)}
    weights: list[tuple[str, str]] = []
    prompt = _TAG.sub(lambda tag: _take(tag, stacks, weights), info.prompt).strip(" ,")
    command.words += [f"{stack}=[{','.join(map(_quoted, names))}]" for stack, names in stacks.items() if names]
    for key, value in weights:
        command.add(key, value)
    _add_sampler(command, given)
    _add_second_pass(command, given)
    _add_numbers(command, given)
    command.add("prompt", prompt)
    if info.negative_prompt:
        command.add("negative_prompt", info.negative_prompt)
    if not given.get("Version", "").startswith("sdbatch"):
        command.left.append("Say what the checkpoint is: model=sd1, sd2, sdxl, flux_dev, or its preset (sdbatch --help model).")
        if given.get("RNG") != "CPU":
            command.left.append("Its noise was drawn on a GPU (its RNG is not CPU): here it is another picture of the same kind.")
    command.left += [f"not read: {name}: {text}" for name, text in given.items() if name not in _IGNORED]
    return command


def _add_files(command: Command, given: dict[str, str]) -> None:
    for name, key in (("Model", "checkpoint"), ("VAE", "vae")):
        if text := given.pop(name, ""):
            command.add(key, re.sub(r"\.(safetensors|ckpt|pt)$", "", PurePath(text).name))
        if re.fullmatch(r"[0-9a-f]{10,64}", digest := given.get(f"{name} hash", "")):
            command.add(f"{key}.sha256", digest)


def _add_numbers(command: Command, given: dict[str, str]) -> None:
    for name, (key, convert) in _KEYS.items():
        if text := given.pop(name, ""):
            try:
                command.add(key, convert(text))
            except ValueError:
                command.left.append(f"not read: {name}: {text}")
    if size := _size(given.pop("Size", "")):
        command.words += [f"width={size[1]}", f"height={size[2]}"]


_KEYS: Mapping[str, tuple[str, Callable[[str], float]]] = {
    "Steps": ("steps", int),
    "CFG scale": ("guidance_scale", float),
    "CFG rescale": ("guidance_rescale", float),
    "Seed": ("seed", int),
    "Clip skip": ("clip_skip", int),
}
"""A1111's word -> our key."""


def _size(text: str) -> re.Match[str] | None:
    return re.fullmatch(r"(\d+)x(\d+)", text)


def _quoted(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else QuotedString(name, Quote.double).with_quotes()


def _take(tag: re.Match[str], stacks: Mapping[str, list[str]], weights: list[tuple[str, str]]) -> str:
    """A network that the prompt loads goes into its stack: `<lora:name:0.8>`, `<lora:name:te:unet>`, `<lora:name:1:lbw=MIDD>`."""
    stack = "hypernetwork" if tag[1] == "hypernet" else "lora"
    stacks[stack].append(tag[2])
    parts = tag[3].split(":")[1:]
    numbers = [part for part in parts if part and "=" not in part]
    named = dict(zip(("text_encoder_weight", "weight") if len(numbers) > 1 else ("weight",), numbers, strict=False))
    named |= {_PLACES[name]: value for name, equals, value in (part.partition("=") for part in parts) if equals and name in _PLACES}
    weights.extend((f"{stack}.{tag[2]}.{place}", value) for place, value in sorted(named.items(), reverse=True))
    return ""


def _embeddings(info: Infotext) -> list[str]:
    told = [key.removeprefix("embed:") for key in info.hashes if key.startswith("embed:")]
    listed = [pair.partition(":")[0].strip() for pair in info.parameters.get("TI hashes", "").split(",")]
    return list(dict.fromkeys(name for name in (*told, *listed) if name))


def _add_sampler(command: Command, given: dict[str, str]) -> None:
    name, schedule = given.pop("Sampler", ""), given.get("Schedule type", "")
    names = names_of(f"{name} {schedule}") or names_of(name)
    if names:
        command.add("sampler", names[0])
    elif name:
        command.left.append(f"not read: Sampler: {name} {schedule}".rstrip())


def _add_second_pass(command: Command, given: dict[str, str]) -> None:
    """A hires fix. A1111 runs all of its steps, sdbatch the strength's share of `task.steps`."""
    strength = given.pop("Denoising strength", "")
    upscaler = given.pop("Hires upscaler", "")
    scale, size = given.pop("Hires upscale", ""), _size(given.pop("Hires resize", ""))
    if not upscaler:
        if strength:
            command.left.append(f"It was made from a picture: task=img2img task.image=FILE task.strength={strength}")
        return
    names = [enlarger.name for enlarger in ENLARGERS.values() if enlarger.label == upscaler]
    command.add("task", "hires")
    command.add("task.upscaler", names[0] if names else upscaler)
    command.words += [f"task.width={size[1]}", f"task.height={size[2]}"] if size else [f"task.scale={scale or 2}"]
    command.add("task.strength", strength or "0")
    run = _number(given.get("Hires steps") or given.get("Steps") or "")
    if run and (share := _number(strength)):
        command.add("task.steps", math.ceil(round(run / share, 6)))


def _number(text: str) -> float:
    """0 for what is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0
