"""Adapter files: writing them in the community's dialects, and adding one to a pipeline's weights exactly.

The second half is an independent reader for the evaluation: it knows nothing of the runtime's own adapter engine.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

Weights = dict[str, torch.Tensor]
LAST_FACTORS = ("lora_up.weight", "hada_w1_a")
PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te_text_model"}


def trained_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Base module name → the peft layer that adapts it."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}


def collect(layer: nn.Module) -> tuple[Weights, float]:
    """The factors of a peft LoRA or LoHa layer by their LyCORIS names, and alpha."""
    if hasattr(layer, "lora_A"):
        factors = {"lora_down.weight": layer.lora_A["default"].weight, "lora_up.weight": layer.lora_B["default"].weight}
        rank = layer.r["default"]
        return {name: value.detach() for name, value in factors.items()}, layer.scaling["default"] * rank
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    factors = {name: getattr(layer, name)["default"].detach() for name in names}
    return factors, layer.scaling["default"] * layer.r["default"]


def to_kohya(models: dict[str, nn.Module]) -> Weights:
    """Weights in kohya / LyCORIS names, alpha beside every pair."""
    weights: Weights = {}
    for part, model in models.items():
        for name, layer in trained_layers(model).items():
            stem = f"{PREFIXES[part]}_{_flat(name)}"
            factors, alpha = collect(layer)
            weights |= {f"{stem}.{key}": value.half().contiguous() for key, value in factors.items()}
            weights[f"{stem}.alpha"] = torch.tensor(alpha, dtype=torch.float16)
    return weights


def to_diffusers(models: dict[str, nn.Module]) -> Weights:
    """LoRA weights in diffusers / peft names; alpha must equal the rank, as this dialect has no place for it."""
    weights: Weights = {}
    for part, model in models.items():
        for name, layer in trained_layers(model).items():
            factors, alpha = collect(layer)
            down, up = factors["lora_down.weight"], factors["lora_up.weight"]
            up = up * (alpha / len(down))
            weights[f"{part}.{name}.lora_A.weight"] = down.half().contiguous()
            weights[f"{part}.{name}.lora_B.weight"] = up.half().contiguous()
    return weights


def resume(models: dict[str, nn.Module], path: Path) -> int:
    """Begin with what is in an earlier file, if there is one. Returns the steps its header counts."""
    if not path.exists():
        return 0
    try:
        fill(models, load_file(path))
    except ValueError as fault:
        raise ValueError(f"{path.name}: {fault}; to begin anew, with another rank say, remove {path}") from fault
    with safe_open(path, "pt") as file:
        return int((file.metadata() or {}).get("ss_steps", 0))


def fill(models: dict[str, nn.Module], weights: Weights) -> None:
    """Give the peft layers the factors of a file in either dialect, to go on from.

    Raises: ValueError when the file was made with another rank or other targets.
    """
    groups = _group(weights)
    for part, model in models.items():
        for name, layer in trained_layers(model).items():
            factors, alpha = collect(layer)
            given = groups.get(f"{PREFIXES[part]}_{_flat(name)}", {})
            for key, value in factors.items():
                if key not in given or given[key].shape != value.shape:
                    found = list(given[key].shape) if key in given else "nothing"
                    raise ValueError(f"{part}.{name}: {key} is {list(value.shape)}, the file has {found}")
                # The file's alpha may not be the layer's; the product must come out the same.
                scale = _alpha(given) / alpha if key in LAST_FACTORS else 1.0
                value.copy_(given[key] * scale)


def _flat(name: str) -> str:
    return re.sub(r"^text_model\.", "", name).replace(".", "_")


def _group(weights: Weights) -> dict[str, Weights]:
    """Module stem → its factors, both dialects brought to LyCORIS factor names."""
    groups: dict[str, Weights] = {}
    for key, value in weights.items():
        if ".lora_A." in key or ".lora_B." in key:
            stem, factor, _ = key.rsplit(".", 2)
            part, _, name = stem.partition(".")
            stem = f"{PREFIXES[part]}_{_flat(name)}"
            factor = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"}[factor]
        else:
            stem, _, factor = key.partition(".")
        groups.setdefault(stem, {})[factor] = value.float()
    return groups


def compute_delta(factors: Weights, shape: torch.Size) -> torch.Tensor:
    """The change of one weight at strength 1. Raises: KeyError on factors of an unknown kind."""
    if "hada_w1_a" in factors:
        rank = factors["hada_w1_b"].shape[0]
        product = (factors["hada_w1_a"] @ factors["hada_w1_b"]) * (factors["hada_w2_a"] @ factors["hada_w2_b"])
    else:
        rank = factors["lora_down.weight"].shape[0]
        product = factors["lora_up.weight"].flatten(1) @ factors["lora_down.weight"].flatten(1)
    return (product * (_alpha(factors) / rank)).reshape(shape)


def _alpha(factors: Weights) -> float:
    """The file's alpha; the rank where the dialect has no place for one."""
    return factors["alpha"].item() if "alpha" in factors else len(factors["lora_down.weight"])


@contextmanager
def merged(pipe: StableDiffusionPipeline, path: Path, strength: float) -> Iterator[int]:
    """Add an adapter file for the time of the block; yields how many weights changed, restores them exactly.

    Raises: LookupError when the file names a module the pipeline lacks.
    """
    weights_by_stem: dict[str, nn.Parameter] = {}
    for part in PREFIXES:
        for name, module in getattr(pipe, part).named_modules():
            if isinstance(getattr(module, "weight", None), nn.Parameter):
                weights_by_stem[f"{PREFIXES[part]}_{_flat(name)}"] = module.weight
    groups = _group(load_file(path))
    missing = sorted(set(groups) - set(weights_by_stem))
    if missing:
        raise LookupError(f"{path.name}: {len(missing)} modules are not in this model, first {missing[0]}")
    saved = {stem: weights_by_stem[stem].detach().clone() for stem in groups}
    try:
        with torch.no_grad():
            for stem, factors in groups.items():
                if strength:
                    weights_by_stem[stem].add_(strength * compute_delta(factors, weights_by_stem[stem].shape))
        yield len(groups)
    finally:
        with torch.no_grad():
            for stem, value in saved.items():
                weights_by_stem[stem].copy_(value)


def save(weights: Weights, path: Path, metadata: dict[str, str]) -> None:
    """Write one safetensors file, unless it says the same already: the library shuffles the header, and so the hash.

    Side effects: creates the folder.
    """
    metadata = {"format": "pt", **metadata}
    if path.exists() and _says(path, weights, metadata):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, metadata=metadata)


def _says(path: Path, weights: Weights, metadata: dict[str, str]) -> bool:
    with safe_open(path, "pt") as file:
        if file.metadata() != metadata or set(file.keys()) != set(weights):
            return False
        return all(torch.equal(file.get_tensor(name), value.cpu()) for name, value in weights.items())
