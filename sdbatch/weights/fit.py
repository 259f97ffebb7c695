"""Whether two weight files fit together, by the numbers in their headers, and the sentence when they do not."""

from __future__ import annotations

from sdbatch.weights.families import BY_NAME, T5_WIDTH, FamilyFacts, to_title
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
    "denoiser": "a UNet without VAE and text encoder",
    "upscaler": "an upscaler",
    "image_encoder": "an image encoder",
    "motion_module": "a motion module",
    "style_model": "a style model (Redux)",
    "unknown": "of no known kind",
}


def describe(identity: Identity) -> str:
    """What a file is, in a few words: `a LoRA for SDXL (2048-wide cross-attention)`."""
    words = _ARTICLED[identity.kind]
    if "transformer" in identity.parts:
        words = words.replace("UNet", "transformer")
    if identity.family:
        words += f" for {_whose(identity)}"
    if detail := _describe_numbers(identity):
        words += f" ({detail})"
    return words


def find_mismatch(file: Identity, group: str, base: Identity) -> str | None:
    """Why this file cannot be used as `group` with the base checkpoint; None when nothing speaks against it.

    Families are compared where both are known, else the numbers that must be equal.
    """
    if not _accepts(group, file):
        where = f"use it as {file.group}=" if file.group else "no group takes it"
        return f"is {describe(file)}, not {_ARTICLED.get(group.partition('_2')[0], group)}; {where}"
    if file.foreign:
        return (
            f"is {describe(file)}, but its pickle also holds {', '.join(file.foreign)}, which is never loaded; use a .safetensors version"
        )
    if reason := _NOT_RUN.get((group, file.variant or (file.lora.algorithm if file.lora else ""))):
        return f"is {describe(file)}, {reason}"
    if file.pruning == "ema-only":
        return f"is {describe(file)}, but it holds only averaged weights under names that nothing loads; use its pruned version"
    if (found := _find_difference(file, group, base)) is None:
        return None
    model = f"the model is {_whose(base)}" if base.family else "the model"
    return f"is {describe(file)}, {model}{found}"


_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""Groups of text encoders, in the order of their token widths."""

_NOT_RUN: dict[tuple[str, str], str] = {
    ("vae", "taesd"): "a small stand-in for previews; choose a full VAE",
    ("vae", "dc-ae"): "a deep-compression autoencoder; choose the VAE of the model's family",
    ("vae", "video"): "an autoencoder of videos (Wan, Qwen-Image); choose the VAE of the model's family",
    ("vae", "decoder"): "a decoder without an encoder; choose a full VAE",
    ("controlnet", "control-lora"): "a Control-LoRA; choose a full ControlNet",
    ("controlnet", "lllite"): "a ControlNet-LLLite; choose a full ControlNet",
    ("controlnet", "xs"): "a ControlNet-XS; choose a full ControlNet",
    ("controlnet", "union"): "several ControlNets in one; choose one for a single task",
    ("controlnet", "t2i"): "which is no ControlNet; choose a ControlNet for the same task",
    ("embedding", "output"): "trained on the outputs of the text encoder, which is not run; choose one of its words",
    ("ip_adapter", "faceid"): "which reads faces by insightface, which is not run; choose ip-adapter-plus-face or ip-adapter-full-face",
    ("image_encoder", "openclip"): "under OpenCLIP's names; use the version for transformers, such as image_encoder=clip_vit_h",
    ("image_encoder", "siglip"): "which no IP-Adapter of SD 1.x or SDXL was trained with; choose a CLIP, such as image_encoder=clip_vit_h",
    ("upscaler", ""): "of an architecture that is not run; choose one of ESRGAN, SwinIR, DAT, SPAN, OmniSR, PLKSR, Real-CUGAN or compact",
    ("image_encoder", "bare"): "without the projection that plain IP-Adapters read; choose a whole one, such as image_encoder=clip_vit_h",
    ("checkpoint", "pix2pix"): "which edits by instruction; choose another checkpoint",
    ("checkpoint", "depth"): "which needs a depth map as input; choose another checkpoint",
    ("checkpoint", "upscale"): "which only enlarges pictures; choose another checkpoint",
    ("checkpoint", "control"): "which needs a control picture as input; choose another checkpoint",
    ("checkpoint", "fill"): "which needs a mask as input; choose another checkpoint",
    ("checkpoint", "edm"): "trained for EDM's schedule (Playground v2.5, CosXL), which is not run; choose another checkpoint",
    ("checkpoint", "lcm"): "which takes the guidance as an input; use a checkpoint of its family with an LCM LoRA",
    ("checkpoint", "unclip"): "which needs a picture as input; choose another checkpoint",
    ("checkpoint", "distilled"): "an SDXL with fewer layers (SSD-1B, Vega, KOALA); use its diffusers folder",
    ("checkpoint", "quantised"): "whose weights are packed into 4 bits (NF4, SVDQuant, NVFP4); choose its fp8, fp16 or bf16 version",
    ("lora", "cloneofsimo"): "in cloneofsimo's format of 2022, which numbers its layers; convert it to diffusers' or kohya's",
    ("lora", "kohya's oft"): "of kohya's OFT of 2023, which is not applied; choose a LoRA, LoHa, LoKr or LyCORIS' OFT",
    ("lora", "peft's oft"): "of peft's OFT or BOFT, which is not applied; choose a LoRA, LoHa, LoKr or LyCORIS' OFT",
    ("lora", "vera"): "of VeRA, which is not applied; choose a LoRA",
    ("lora", "tlora"): "of T-LoRA, whose rank changes with the step, which is not applied; choose a LoRA",
    ("lora", "control"): "which makes the model take a control picture as input; choose another LoRA",
}
"""(group, variant; of a LoRA its algorithm where it has none) -> why sdbatch does not run it."""


def _accepts(group: str, file: Identity) -> bool:
    return file.group == group or (file.kind == "text_encoder" and group in _TEXT_ENCODERS)


def _find_difference(file: Identity, group: str, base: Identity) -> str | None:
    """What of the model the file does not fit, as the end of the sentence; None when it fits as far as is known."""
    match group:
        case "vae" if _differ(file.latent_channels, base.latent_channels) or _only_one_is_tiny(file, base):
            return f" with {base.latent_channels} latent channels"
        case "text_encoder" | "text_encoder_2" | "text_encoder_3":
            return _find_encoder_difference(file, _TEXT_ENCODERS.index(group), base)
        case "embedding" if not _embedding_fits(file, base):
            return f" with {_join(_token_widths(base))}-wide tokens"
        case "lora" if not _changes_known_encoders(file, base):
            return f" with {_join(_token_widths(base))}-wide tokens"
        case "hypernetwork" if file.cross_attention_width is None and base.family in ("sdxl", "flux"):
            return ", for which there are no hypernetworks"
        case "controlnet" if base.family == "flux":
            return ", with which sdbatch runs no ControlNet"
        case "ip_adapter" if base.family == "flux":
            return ", with which sdbatch runs no IP-Adapter"
        case "checkpoint" | "lora" | "controlnet" | "ip_adapter" | "hypernetwork":
            differs = _differ(file.cross_attention_width, base.cross_attention_width) or _differ(file.family, base.family)
            return _width(base) if differs else None
        case _:
            return None


def _find_encoder_difference(file: Identity, place: int, base: Identity) -> str | None:
    """Text encoders are told apart by their width, and T5 from CLIP by its architecture."""
    widths = _token_widths(base)
    if not widths or not file.embedding_widths or base.variant == "refiner":
        return None
    if place >= len(widths):
        return f", which has {len(widths)} text encoder{'s' if len(widths) > 1 else ''}"
    is_t5, wants_t5 = (file.variant or "").startswith("t5"), widths[place] == T5_WIDTH
    if file.embedding_widths[0] == widths[place] and is_t5 == wants_t5:
        return None
    what = "T5" if wants_t5 else "CLIP"
    return f", whose {('first', 'second', 'third')[place]} text encoder is a {what} with {widths[place]}-wide tokens"


def _changes_known_encoders(file: Identity, base: Identity) -> bool:
    widths = _token_widths(base)
    return not widths or set(file.embedding_widths) <= set(widths)


def _only_one_is_tiny(file: Identity, base: Identity) -> bool:
    return base.family is not None and (file.family == "tiny") != (base.family == "tiny")


def _differ(one: object, other: object) -> bool:
    return one is not None and other is not None and one != other


def _embedding_fits(file: Identity, base: Identity) -> bool:
    # An embedding for one of two CLIPs would leave its word plain text in the other. To T5 a word without vectors is not said.
    widths, found = set(_token_widths(base)), set(file.embedding_widths)
    return not widths or not found or widths - {T5_WIDTH} <= found <= widths


def _token_widths(base: Identity) -> tuple[int, ...]:
    """Of the text encoders inside; of a bare denoiser those of its family."""
    facts: FamilyFacts | None = BY_NAME.get(base.family or "")
    return base.embedding_widths or (facts.embedding_widths if facts else ())


def _describe_numbers(identity: Identity) -> str:
    if identity.kind == "vae":
        return f"{identity.latent_channels} latent channels" if identity.latent_channels else ""
    if identity.kind in {"embedding", "text_encoder"}:
        return f"{_join(identity.embedding_widths)}-wide tokens" if identity.embedding_widths else ""
    if identity.kind == "image_encoder":
        return _describe_image(identity)
    return f"{identity.cross_attention_width}-wide cross-attention" if identity.cross_attention_width else ""


def _describe_image(encoder: Identity) -> str:
    widths = ((encoder.image_embedding_width, "embedding"), (encoder.image_hidden_width, "layers"))
    return ", ".join(f"{width}-wide {what}" for width, what in widths if width)


def _width(base: Identity) -> str:
    return f" ({base.cross_attention_width}-wide)" if base.cross_attention_width else ""


def _join(widths: tuple[int, ...]) -> str:
    return "+".join(str(width) for width in widths)


def _whose(identity: Identity) -> str:
    """The family as people say it, and of a model which of its models."""
    family = identity.family or ""
    title = to_title(family)
    return _MODELS.get((family, identity.variant or ""), title) if identity.kind in ("checkpoint", "denoiser") else title


_MODELS = {("sdxl", "refiner"): "the SDXL refiner", ("flux", "dev"): "FLUX.1 dev", ("flux", "schnell"): "FLUX.1 schnell"}
"""(family, variant) of models that other models' parts do not fit."""
