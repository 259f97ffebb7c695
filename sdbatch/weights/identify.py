"""What a weight file is: kind, family, parts and the numbers that must fit, from its header alone."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path

from sdbatch.weights import geometry, training
from sdbatch.weights.families import ADAPTER_RULES, BY_TRANSFORMER_WIDTH, BY_UNET_WIDTH, FAMILIES, TRANSFORMER_RULES, UNET_RULES
from sdbatch.weights.header import Header
from sdbatch.weights.identity import Identity
from sdbatch.weights.key import Keys, first_match
from sdbatch.weights.lora_facts import LoraFacts, read_lora_facts
from sdbatch.weights.prediction import find_prediction
from sdbatch.weights.reader import read_header
from sdbatch.weights.signature import IMAGE_ENCODER_RULES, KIND_RULES, PART_RULES, TEXT_ENCODER_RULES, VAE_RULES
from sdbatch.weights.variant import find_variant


def identify(path: Path) -> Identity:
    """What this weight file or diffusers folder is.

    Raises: WeightFileError when it cannot be read as one. A readable file of no known kind is `unknown`.
    """
    return identify_header(read_header(path))


def identify_header(header: Header) -> Identity:
    """What the file with this header is."""
    keys = Keys(header.tensors)
    kind = None if "model_index" in header.values else first_match(KIND_RULES, keys)
    parts = () if kind else _find_parts(keys)
    kind = kind or _to_kind(header, keys, parts)
    lora = read_lora_facts(header, keys) if kind == "lora" else None
    width = lora.cross_attention_width if lora else geometry.find_cross_attention_width(header, kind)
    widths = lora.embedding_widths if lora else geometry.find_embedding_widths(header, kind)
    family = _to_lora_family(header, keys, lora) if lora else _to_family(header, keys, kind, width, widths)
    prediction = find_prediction(header, keys, kind, family)
    numbers = _count_numbers(header)
    return Identity(
        path=header.path,
        kind=kind,
        format=header.format,
        size=header.size,
        family=family,
        variant=find_variant(header, keys, kind, family, prediction.type),
        parts=parts if kind in {"checkpoint", "denoiser"} else (),
        pruning=_to_pruning(parts) if kind in {"checkpoint", "denoiser"} else None,
        dtype=max(numbers, key=numbers.__getitem__, default=""),
        parameters=numbers.total(),
        cross_attention_width=width,
        embedding_widths=widths,
        embedding_vectors=geometry.count_vectors(header) if kind == "embedding" else None,
        latent_channels=geometry.find_latent_channels(header, kind, family),
        image_embedding_width=geometry.find_image_embedding_width(header, kind),
        image_hidden_width=geometry.find_image_hidden_width(header, kind),
        prediction_type=prediction.type,
        zero_snr=prediction.zero_snr,
        trigger_words=training.find_trigger_words(header.metadata) if kind in {"lora", "embedding"} else (),
        lora=lora,
        metadata=training.to_summary(header.metadata),
        foreign=header.foreign,
    )


def _count_numbers(header: Header) -> Counter[str]:
    """How many numbers the file holds, by dtype."""
    found: Counter[str] = Counter()
    for info in header.tensors.values():
        found[info.dtype] += prod(info.shape)
    return found


def _find_parts(keys: Keys) -> tuple[str, ...]:
    """The parts of a checkpoint that these names show, each once."""
    found = dict.fromkeys(rule.label for rule in PART_RULES if rule.matches(keys))
    if "unet" not in found and "transformer" not in found and first_match(TRANSFORMER_RULES, keys):
        found["transformer"] = None
    return tuple(found)


def _to_pruning(parts: tuple[str, ...]) -> str:
    if "ema" not in parts:
        return "pruned"
    return "full" if "unet" in parts or "transformer" in parts else "ema-only"


def _to_kind(header: Header, keys: Keys, parts: tuple[str, ...]) -> str:
    if "model_index" in header.values:
        return "checkpoint"
    if not {"unet", "transformer", "ema"}.isdisjoint(parts):
        whole = not {"vae", "text_encoder", "text_encoder_2", "text_encoder_3"}.isdisjoint(parts)
        return "checkpoint" if whole else "denoiser"
    for kind, rules in (("vae", VAE_RULES), ("text_encoder", TEXT_ENCODER_RULES), ("image_encoder", IMAGE_ENCODER_RULES)):
        if first_match(rules, keys):
            return kind
    return "embedding" if geometry.looks_like_embedding(header) else "unknown"


def _to_family(header: Header, keys: Keys, kind: str, width: int | None, widths: tuple[int, ...]) -> str | None:
    """The family: by shape where shapes tell, else by names, else by what the trainer wrote."""
    by_metadata = training.find_family(header.metadata)
    match kind:
        case "checkpoint" | "denoiser" | "controlnet":
            by_name = first_match(UNET_RULES, keys) or first_match(TRANSFORMER_RULES, keys)
            return by_name or BY_UNET_WIDTH.get(width or 0) or by_metadata
        case "ip_adapter":
            by_name = "flux" if keys.has("double_blocks.") else None
            return by_name or BY_UNET_WIDTH.get(width or 0) or by_metadata
        case "hypernetwork":
            return BY_UNET_WIDTH.get(width or 0)
        case "t2i_adapter":
            return geometry.find_t2i_family(header)
        case "embedding":
            return _family_of_widths(widths) or by_metadata
        case "vae":
            return "tiny" if geometry.is_tiny_vae(header) else by_metadata
        case _:
            return by_metadata


def _to_lora_family(header: Header, keys: Keys, lora: LoraFacts) -> str | None:
    found = first_match(UNET_RULES, keys) or BY_UNET_WIDTH.get(lora.cross_attention_width or 0) or first_match(ADAPTER_RULES, keys)
    if lora.transformer_width and found in (None, "flux"):
        found = BY_TRANSFORMER_WIDTH.get(lora.transformer_width)
    if found == "flux" and training.is_for_chroma(header.metadata):
        return "chroma"
    if known := found or training.find_family(header.metadata):
        return known
    # Numbered text encoders are those of SDXL, SD 3 and FLUX: the first alone does not tell which.
    return None if keys.has("^lora_te1_") else _family_of_widths(lora.embedding_widths)


def _family_of_widths(widths: tuple[int, ...]) -> str | None:
    if widths == (1280,):
        return "sdxl"  # its second text encoder alone
    return next((facts.name for facts in FAMILIES if widths and facts.embedding_widths == widths), None)
