"""A composed configuration as plain values, and the typed tree behind it that takes further ones."""

from __future__ import annotations

# pyright: reportPrivateUsage=false
# OmegaConf has no public way to a node, nor to convert one value.
import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, cast

from omegaconf import AnyNode, BooleanNode, DictConfig, EnumNode, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sdbatch.cell import STACKS
from sdbatch.config.guard import environment_for
from sdbatch.errors import ConfigError, did_you_mean, nearest

LITERAL_KEYS = ("prompt", "negative_prompt")
"""Keys whose text is data: never interpolated, whatever it holds."""
MATRIX_TEXTS = (*LITERAL_KEYS, "text")
"""The same within `matrix`."""


SPOKEN = {
    **dict.fromkeys(("cfg", "cfg_scale", "guidance"), "guidance_scale"),
    **dict.fromkeys(("num_inference_steps", "sampling_steps"), "steps"),
    **dict.fromkeys(("scheduler", "sampler_name", "sampling_method"), "sampler"),
    **dict.fromkeys(("negative", "neg", "uncond"), "negative_prompt"),
    **dict.fromkeys(("n", "n_iter", "batch_count", "num_images", "num_images_per_prompt", "samples"), "'seed=range(0,4)' -m"),
    **dict.fromkeys(("size", "resolution"), "width and height"),
    **dict.fromkeys(("strength", "denoise", "denoising_strength", "img2img_strength"), "task.strength, with task=img2img"),
    **dict.fromkeys(("image", "init_image"), "task.image, with task=img2img"),
    **dict.fromkeys(("mask", "mask_image"), "task.mask, with task=inpaint"),
    **dict.fromkeys(("enable_hr", "hires", "hires_fix", "hr_scale", "hr_upscaler"), "task=hires, with task.scale and task.upscaler"),
    **dict.fromkeys(("ckpt", "ckpt_name", "model_path"), "checkpoint"),
    **dict.fromkeys(("loras", "lora_name"), "'lora=[NAME]'"),
    **dict.fromkeys(("lora_scale", "lora_weight", "lora_strength"), "lora.NAME.weight"),
    "eta": "sampler.options.eta",
    **dict.fromkeys(("output_dir", "outdir", "outpath", "save_path"), "out"),
}
"""What A1111, ComfyUI and diffusers call keys."""


@dataclass(frozen=True)
class Composition:
    """One composed configuration: its plain values, and the typed tree that converts further ones."""

    tree: DictConfig
    """Without the `hydra` node."""
    plain: dict[str, Any]
    """Resolved, nothing but dict, list, str, int, float, bool and None."""
    hydra: dict[str, Any]
    """`launcher` and `sweeper` of the `hydra` node."""

    def convert(self, key: str, value: Any) -> Any:
        """The value as the schema would take it for this key. Raises ConfigError, naming the key, if it would not."""
        parent_path, _, last = key.rpartition(".")
        parent = OmegaConf.select(self.tree, parent_path) if parent_path else self.tree
        # Not `last in parent`: OmegaConf says no for a value that must still be given.
        node = parent._get_node(last, validate_access=False) if isinstance(parent, DictConfig) else None
        if node is None:
            raise ConfigError(self.unknown(key))
        if key in LITERAL_KEYS and isinstance(value, str):
            return value
        if isinstance(node, AnyNode) and isinstance(value, list):
            return plain_value(value)  # a key of any type, whose node holds no list when it is set by itself
        node = copy.copy(node)
        try:
            node._set_value(value)
        except OmegaConfBaseException as error:
            text = str(error).replace("$VALUE_TYPE", type(value).__name__).replace("$VALUE", str(value))
            raise ConfigError(f"{key}: {plainly(text)}") from None
        return plain_value(node._value())

    def choices(self, key: str) -> list[str]:
        """The values of a key that takes few; none for all others."""
        parent_path, _, last = key.rpartition(".")
        parent = OmegaConf.select(self.tree, parent_path) if parent_path else self.tree
        node = parent._get_node(last, validate_access=False) if isinstance(parent, DictConfig) else None
        if isinstance(node, EnumNode):
            return [item.name for item in node.enum_type]
        return ["true", "false"] if isinstance(node, BooleanNode) else []

    def unknown(self, key: str) -> str:
        """Why this key is not there, with the nearest that are."""
        group, _, rest = key.partition(".")
        name = rest.partition(".")[0]
        stack = self.plain.get(group)
        if group in STACKS and isinstance(stack, dict) and name not in stack:
            chosen = ", ".join(cast(dict[str, Any], stack)) or "nothing"
            return f"{key} is set, but {group} {name!r} is not in the stack ({chosen}). Add it: '{group}=[{name}]'."
        if key.startswith("hydra.launcher."):
            options: list[str] = [f"hydra.launcher.{option}" for option in self.hydra["launcher"]]
            return f"{key}: {self.hydra['launcher'].get('name')} has no such option. {did_you_mean(key, options, shown=len(options))}"
        keys = list(leaf_keys(self.plain))
        if (called := SPOKEN.get(key.lower().replace("-", "_"))) is not None:
            return f"{key}: there is no such key. It is {called} here."
        return f"{key}: there is no such key. {did_you_mean(key, keys) if nearest(key, keys) else '`sdbatch --help` lists them.'}"

    def check_keys(self) -> None:
        """Raises ConfigError for a key that `+` put where nothing reads it, or that `~` took out."""
        for path, kind, keys in _typed_nodes(self.tree):
            names = [field.name for field in fields(kind)]
            if strange := next((f"{path}{key}" for key in keys if key not in names), None):
                known = [key for key in leaf_keys(self.plain) if not f"{key}.".startswith(f"{strange}.")]
                raise ConfigError(f"{strange}: there is no such key. {did_you_mean(strange, known)}")
            if gone := next((f"{path}{name}" for name in names if name not in keys), None):
                raise ConfigError(f"~{gone}: a key cannot be taken out. Give it another value.")

    def interpolates(self, key: str) -> bool:
        """Whether some other value may be computed from this key, so that overlaying it alone would be wrong."""
        last = key.rpartition(".")[2]
        return any(last in text for text in interpolations(self.tree))


def _typed_nodes(node: DictConfig, path: str = "") -> Iterator[tuple[str, type[Any], list[str]]]:
    """Path, class and keys of every node that has a class."""
    kind = OmegaConf.get_type(node)
    if kind is not None and is_dataclass(kind):
        yield path, kind, [str(key) for key in node]
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation() and not child._is_missing():
            yield from _typed_nodes(child, f"{path}{key}.")


def plainly(text: str) -> str:
    """The first line of OmegaConf's error, without its names of types where people have others."""
    line = text.splitlines()[0]
    if match := re.match(r"Value '(.*)' (?:of type '\w+' could not be converted to (Integer|Float)|is not a valid (bool))", line):
        wanted = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}[match[2] or match[3]]
        return f"{match[1]!r} is not {wanted}."
    return line


def to_plain(tree: DictConfig, literals: Mapping[str, str]) -> dict[str, Any]:
    """The resolved values; prompts as they were written, missing values as None."""
    texts = dict(literals)
    for key in LITERAL_KEYS:
        node = tree._get_node(key) if key in tree else None
        if key not in texts and node is not None:
            # The raw text, not the resolved one: a prompt with "${" is data. "\${" is how YAML spells it.
            texts[key] = str(cast(Any, node)._value()).replace("\\${", "${")
    for key in texts:
        tree[key] = ""
    _keep_texts(tree._get_node("matrix"))
    plain = resolved(tree)
    plain.update(texts)
    return cast(dict[str, Any], _missing_to_none(plain))


def _keep_texts(node: Any, is_text: bool = False) -> None:
    """Escape what OmegaConf would interpolate in the prompts of a matrix: they are data there too."""
    if isinstance(node, DictConfig | ListConfig):
        if not node._is_none() and not node._is_interpolation():
            for key in cast(Iterable[Any], node if isinstance(node, DictConfig) else range(len(node))):
                _keep_texts(node._get_node(key), is_text or key in MATRIX_TEXTS)
    elif is_text and isinstance(text := node._value(), str):
        node._set_value(text.replace("\\${", "${").replace("${", "\\${"))


def resolved(node: DictConfig, path: str = "") -> dict[str, Any]:
    """The resolved values of a tree, key by key, so that each is told whether it may see the environment."""
    found: dict[str, Any] = {}
    for key in node:
        own = f"{path}{key}"
        child = node._get_node(key)
        with environment_for(own):
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation() and not child._is_missing():
                found[str(key)] = resolved(child, f"{own}.")
            else:
                found[str(key)] = "???" if OmegaConf.is_missing(node, key) else plain_value(node[key])
    return found


def _missing_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _missing_to_none(item) for key, item in cast(dict[Any, Any], value).items()}
    if isinstance(value, list):
        return [_missing_to_none(item) for item in cast(list[Any], value)]
    return None if value == "???" else value


def plain_value(value: Any) -> Any:
    """A value without OmegaConf or Enum around it."""
    if isinstance(value, Enum):
        return value.name
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True, enum_to_str=True, throw_on_missing=False)
    return value


def leaf_keys(plain: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """Key paths of all plain values."""
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield from leaf_keys(cast(dict[str, Any], value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def interpolations(tree: DictConfig) -> list[str]:
    """The texts of all values that are interpolated, prompts excepted."""
    raw = cast(dict[str, Any], OmegaConf.to_container(tree, resolve=False, enum_to_str=True, throw_on_missing=False))
    found: list[str] = []

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, item in cast(dict[str, Any], value).items():
                walk(item, f"{key}.{name}" if key else str(name))
        elif isinstance(value, list):
            for item in cast(list[Any], value):
                walk(item, key)
        elif isinstance(value, str) and "${" in value and key not in LITERAL_KEYS:
            found.append(value)

    walk(raw, "")
    return found
