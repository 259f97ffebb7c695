"""Whether two weight files fit together, by the numbers in their headers, and the sentence when they do not."""

from __future__ import annotations

from sdbatch.weights.families import BY_NAME, FamilyFacts
from sdbatch.weights.identity import Identity

_ARTICLED = {
    "lora": "a LoRA",
    "embedding": "an embedding",
    "hypernetwork": "a hypernetwork",
    "controlnet": "a ControlNet",
    "t2i_adapter": "a T2I-Adapter",
    "ip_adapter": "an IP-Adapter",
    "vae": "a VAE",
    "text_encoder": "a text encoder",
    "checkpoint": "a checkpoint",
    "denoiser": "a UNet or transformer without VAE and text encoder",
    "upscaler": "an upscaler",
    "image_encoder": "an image encoder",
    "motion_module": "a motion module",
    "unknown": "of no known kind",
}


def describe(identity: Identity) -> str:
    """What a file is, in a few words: `a LoRA for SDXL (2048-wide cross-attention)`."""
    words = _ARTICLED[identity.kind]
    if identity.family:
        words += f" for {_title(identity.family)}"
    if detail := _describe_numbers(identity):
        words += f" ({detail})"
    return words


def find_mismatch(file: Identity, group: str, base: Identity) -> str | None:
    """Why this file cannot be used as `group` with the base checkpoint; None when nothing speaks against it.

    Families are compared where both are known, else the numbers that must be equal.
    """
    if file.group != group.removesuffix("_2"):
        where = f"use it as {file.group}=" if file.group else "no group takes it"
        return f"is {describe(file)}, not {_ARTICLED.get(group, group)}; {where}"
    if file.foreign:
        return (
            f"is {describe(file)}, but its pickle also holds {', '.join(file.foreign)}, which is never loaded; use a .safetensors version"
        )
    if (found := _find_difference(file, group, base)) is None:
        return None
    model = f"the model is {_title(base.family)}" if base.family else "the model"
    return f"is {describe(file)}, {model}{found}"


def _find_difference(file: Identity, group: str, base: Identity) -> str | None:
    """What of the model the file does not fit, as the end of the sentence; None when it fits as far as is known."""
    match group:
        case "checkpoint" if not _merges(file, base):
            return _width(base) + (f", {base.variant}" if base.variant else "")
        case "vae" if _differ(file.latent_channels, base.latent_channels):
            return f" with {base.latent_channels} latent channels"
        case "text_encoder" | "text_encoder_2" if file.embedding_widths and base.embedding_widths and file.embedding_widths[0] not in base.embedding_widths:
            return f" with {_join(base.embedding_widths)}-wide tokens"
        case "embedding" if not _embedding_fits(file, base):
            return f" with {_join(_token_widths(base))}-wide tokens"
        case "lora" | "controlnet" | "ip_adapter" | "hypernetwork":
            differs = _differ(file.cross_attention_width, base.cross_attention_width) or _differ(file.family, base.family)
            return _width(base) if differs else None
        case _:
            return None


def _merges(file: Identity, base: Identity) -> bool:
    """Whether a checkpoint can be merged into the base. Only an inpainting model takes others in."""
    numbers = ("family", "cross_attention_width", "latent_channels", "prediction_type")
    if any(_differ(getattr(file, name), getattr(base, name)) for name in numbers):
        return False
    return base.variant == "inpainting" or not _differ(file.variant, base.variant)


def _differ(one: object, other: object) -> bool:
    return one is not None and other is not None and one != other


def _embedding_fits(file: Identity, base: Identity) -> bool:
    # An embedding for one of two text encoders would leave its word plain text in the other.
    widths = _token_widths(base)
    return not widths or not file.embedding_widths or set(file.embedding_widths) == set(widths)


def _token_widths(base: Identity) -> tuple[int, ...]:
    """Of the text encoders inside; of a bare denoiser those of its family."""
    facts: FamilyFacts | None = BY_NAME.get(base.family or "")
    return base.embedding_widths or (facts.embedding_widths if facts else ())


def _describe_numbers(identity: Identity) -> str:
    if identity.kind == "vae":
        return f"{identity.latent_channels} latent channels" if identity.latent_channels else ""
    if identity.kind in {"embedding", "text_encoder"}:
        return f"{_join(identity.embedding_widths)}-wide tokens" if identity.embedding_widths else ""
    return f"{identity.cross_attention_width}-wide cross-attention" if identity.cross_attention_width else ""


def _width(base: Identity) -> str:
    return f" ({base.cross_attention_width}-wide)" if base.cross_attention_width else ""


def _join(widths: tuple[int, ...]) -> str:
    return "+".join(str(width) for width in widths)


def _title(family: str) -> str:
    return BY_NAME[family].title if family in BY_NAME else family
