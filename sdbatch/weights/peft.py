"""What peft keeps beside an adapter's tensors: the alpha of each module, in `adapter_config.json` or a file's metadata.

Source: peft's `LoraConfig`. The strength of a module is alpha / rank, with `use_rslora` alpha / sqrt(rank); `alpha_pattern` names
modules by the end of their name or a regular expression. Written by strangers: only expressions that are read in bounded time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import Any, cast

from sdbatch.weights.header import FlawError, shown

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_MODEL = "adapter_model."
"""How the weights beside it are called, before their suffix."""
WRAPPER = "base_model.model."
"""What peft's own files put before a module's name."""
METADATA = "lora_adapter_metadata"
"""The entry of a file's metadata where diffusers keeps the settings, each prefixed by its component."""

MAX_CHARS = 2**22
MAX_EXPRESSIONS = 8
_MAX_NAME_CHARS = 200
_NAME = re.compile(r"[\w.]+")
_EXPRESSION = re.compile(r"(?:[\w.|()^$-]|\\[.d]|\.[*+]|\\d\+){1,200}")
_OTHER_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
"""Ways to begin a training that also change the model's own weights, which the adapter then needs."""
_OTHER_SETTINGS = (
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "velora_config",
)


@dataclass(frozen=True, slots=True)
class PeftSettings:
    """The settings of an adapter on one component."""

    alpha: float | None = None
    is_rank_stabilised: bool = False
    names: Mapping[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])
    """End of a module's name -> place in the list, alpha."""
    expressions: tuple[tuple[int, re.Pattern[str], float], ...] = ()

    def alpha_of(self, module: str, rank: int) -> float | None:
        """The alpha of a module such that alpha / rank is its strength; None when nothing is said."""
        parts = module.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        found = [self.names[end] for end in ends if end in self.names]
        if len(module) <= _MAX_NAME_CHARS:
            found += [(place, alpha) for place, expression, alpha in self.expressions if expression.match(module)]
        alpha = min(found)[1] if found else self.alpha
        return None if alpha is None else alpha * (sqrt(rank) if self.is_rank_stabilised else 1.0)


def read_settings(config: Mapping[str, Any], component: str = "") -> PeftSettings:
    """The settings in a configuration, whose keys begin with the component where it holds several.

    Raises: FlawError for what is none, or would ask too much.
    """
    prefix = f"{component}." if component else ""
    names: dict[str, tuple[int, float]] = {}
    expressions: list[tuple[int, re.Pattern[str], float]] = []
    patterns = config.get(f"{prefix}alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise FlawError("has an alpha_pattern that is no list of names. Download it again.")
    for place, (pattern, alpha) in enumerate(cast("dict[str, Any]", patterns).items()):
        if _NAME.fullmatch(pattern):
            names[pattern] = (place, _to_alpha(alpha))
        else:
            expressions.append((place, _to_expression(pattern), _to_alpha(alpha)))
    if len(expressions) > MAX_EXPRESSIONS:
        raise FlawError(f"has {len(expressions)} expressions in its alpha_pattern, more than {MAX_EXPRESSIONS}. Do not use it.")
    alpha = config.get(f"{prefix}lora_alpha")
    return PeftSettings(None if alpha is None else _to_alpha(alpha), config.get(f"{prefix}use_rslora") is True, names, tuple(expressions))


def read_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The settings that diffusers and peft's folders keep as text; empty for other files. Raises: FlawError."""
    text = metadata.get(METADATA, "{}")
    try:
        found: Any = json.loads(text) if len(text) <= MAX_CHARS else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FlawError(f"has a {METADATA} that is no JSON object. Download it again.")
    return cast("dict[str, Any]", found)


def check_adapter(config: Mapping[str, Any]) -> None:
    """Raises: FlawError for an adapter of another form than LoRA and DoRA, or one that needs other base weights."""
    if (kind := config.get("peft_type")) != "LORA":
        raise FlawError(f"is an adapter of peft's kind {shown(kind, 40)}, which is not applied. Use LoRA, with or without DoRA.")
    if str(init := config.get("init_lora_weights")).lower().startswith(_OTHER_INITS):
        raise FlawError(f"was begun with {shown(init, 40)}, which changes the model's own weights too. Convert it by peft.")
    if found := next((name for name in _OTHER_SETTINGS if config.get(name)), None):
        raise FlawError(f"has {found} set, which is not applied. Use a plain LoRA.")
    read_settings(config)


def component_of(config: Mapping[str, Any]) -> str | None:
    """Which part of a model an adapter of peft's was trained on, by its class; None when that is not said."""
    mapping = config.get("auto_mapping")
    name = cast("dict[str, Any]", mapping).get("base_model_class") if isinstance(mapping, dict) else None
    return _COMPONENT_OF_CLASS.get(str(name))


_COMPONENT_OF_CLASS = {
    "UNet2DConditionModel": "unet",
    "FluxTransformer2DModel": "transformer",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
    "T5EncoderModel": "text_encoder_2",
}


def _to_alpha(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise FlawError(f"has the alpha {shown(value, 40)}, which is no number. Download it again.")
    return float(value)


def _to_expression(pattern: str) -> re.Pattern[str]:
    # peft lets anything that ends in a dot stand before, so that `.*` at the beginning is no repeat more.
    before, rest = (".*", pattern[2:]) if pattern.startswith(".*") and "|" not in pattern else (r"(.*\.)?", pattern)
    if _EXPRESSION.fullmatch(pattern) and len(re.findall(r"[*+]", rest)) <= 1:
        try:
            return re.compile(f"{before}({rest})$")
        except re.error:
            pass
    raise FlawError(f"has {shown(pattern, 80)!r} in its alpha_pattern, an expression that is not read. Name the modules instead.")
