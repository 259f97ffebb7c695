"""Widths and channels read from tensor shapes: the numbers by which files fit together or do not."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sdbatch.weights.families import BY_NAME, BY_UNET_WIDTH
from sdbatch.weights.header import Header

MAX_EMBEDDING_TENSORS = 4
MAX_EMBEDDING_VECTORS = 256

_TEXT_OF_UNET = ("attn2.to_k.weight", "attn2to_kweight")
"""The second is the dotless name under which EMA weights are kept."""
_TEXT_OF_TRANSFORMER = ("txt_in.weight", "context_embedder.weight", "caption_projection.linear_1.weight", "cap_embedder.1.weight")
_TEXT_OF_IP_ADAPTER = ("to_k_ip.weight",)
_TOKENS = ("token_embedding.weight", "shared.weight", "encoder.embed_tokens.weight")
_UNET_OUTPUT = re.compile(r"(?:(?:model\.)?diffusion_model\.)?out\.2\.weight|(?:unet\.)?conv_out\.weight")
_UNET_INPUT = re.compile(r"(?:(?:model\.)?diffusion_model\.|control_model\.)?input_blocks\.0\.0\.weight|(?:unet\.)?conv_in\.weight")


def find_cross_attention_width(header: Header, kind: str) -> int | None:
    """Width of the text states that a denoiser or an adapter of its attention reads."""
    if kind == "hypernetwork":
        widths = {int(name.partition(".")[0]) for name in header.tensors if name.partition(".")[0].isdigit()}
        texts = widths & (BY_UNET_WIDTH.keys() - {1280})
        # A file may have networks for several families; each model takes those of its own widths.
        return texts.pop() if len(texts) == 1 else None
    suffixes = _TEXT_OF_IP_ADAPTER if kind == "ip_adapter" else (*_TEXT_OF_UNET, *_TEXT_OF_TRANSFORMER)
    return _last_dim(header, suffixes)


def find_embedding_widths(header: Header, kind: str) -> tuple[int, ...]:
    """Token widths of the text encoders inside, in their order; of an embedding: of its vectors."""
    if kind == "embedding":
        return tuple(shape[-1] for _, shape in sorted(_vectors(header), key=lambda item: _encoder_order(item[0])))
    found: dict[int, int] = {}
    for name, info in header.tensors.items():
        if name.endswith(_TOKENS) and len(info.shape) == 2:
            found.setdefault(_encoder_order(name), info.shape[1])
    return tuple(found[order] for order in sorted(found))


def count_vectors(header: Header) -> int | None:
    """How many tokens an embedding takes."""
    return max((shape[0] if len(shape) == 2 else 1 for _, shape in _vectors(header)), default=None)


def looks_like_embedding(header: Header) -> bool:
    """Whether a file is a few rows of token width and nothing else: diffusers' `{"<token>": vector}`."""
    return 0 < len(header.tensors) <= MAX_EMBEDDING_TENSORS and len(_vectors(header)) == len(header.tensors)


def find_latent_channels(header: Header, kind: str, family: str | None) -> int | None:
    """Channels of the latent picture that a VAE decodes or a denoiser makes."""
    if kind not in {"checkpoint", "denoiser", "vae"}:
        return None
    for name, info in header.tensors.items():
        if name.endswith("decoder.conv_in.weight") and len(info.shape) == 4:
            return info.shape[1]
    for name, info in header.tensors.items():
        if _UNET_OUTPUT.fullmatch(name) and info.shape:
            return info.shape[0]
    return BY_NAME[family].latent_channels if family in BY_NAME and kind != "vae" else None


def find_input_channels(header: Header) -> int | None:
    """Channels that a UNet takes: latents, and what else it was trained to look at."""
    for name, info in header.tensors.items():
        if _UNET_INPUT.fullmatch(name) and len(info.shape) == 4:
            return info.shape[1]
    return None


def find_image_embedding_width(header: Header, kind: str) -> int | None:
    """Width of the summary that an image encoder gives of a picture, or that an IP-Adapter reads."""
    if kind == "image_encoder":
        projection = next((info.shape for name, info in header.tensors.items() if name.endswith("visual_projection.weight")), ())
        return projection[0] if len(projection) == 2 else None
    return _last_dim(header, ("image_proj.proj.weight", "ip_adapter_proj_model.proj.weight")) if kind == "ip_adapter" else None


def find_image_hidden_width(header: Header, kind: str) -> int | None:
    """Width of an image encoder's layers, or of the patches that an IP-Adapter reads."""
    if kind == "image_encoder":
        return next((info.shape[-1] for name, info in header.tensors.items() if name.endswith(".class_embedding") and info.shape), None)
    return _last_dim(header, ("image_proj.proj_in.weight", "image_proj.proj.0.weight")) if kind == "ip_adapter" else None


def find_t2i_family(header: Header) -> str | None:
    """T2I-Adapters see the picture in squares of 8 px (SD 1.x) or 16 px (SDXL), which shows in their first layer."""
    first = next((info.shape for name, info in header.tensors.items() if name.endswith("conv_in.weight") and "body" not in name), ())
    channels = first[1] if len(first) == 4 else 0
    return {64: "sd1", 192: "sd1", 256: "sdxl", 768: "sdxl"}.get(channels)


def is_tiny_vae(header: Header) -> bool:
    """Whether a VAE is as narrow as the embedded model's."""
    info = header.tensors.get("encoder.conv_in.weight") or header.tensors.get("first_stage_model.encoder.conv_in.weight")
    return info is not None and info.shape[:1] == (16,)


def _last_dim(header: Header, suffixes: Iterable[str]) -> int | None:
    ends = tuple(suffixes)
    return next((info.shape[-1] for name, info in header.tensors.items() if name.endswith(ends) and len(info.shape) >= 2), None)


def _vectors(header: Header) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors that can be rows of token vectors."""
    return [
        (name, info.shape)
        for name, info in header.tensors.items()
        if (len(info.shape) == 1 or (len(info.shape) == 2 and 0 < info.shape[0] <= MAX_EMBEDDING_VECTORS)) and 32 <= info.shape[-1] <= 8192
    ]


def _encoder_order(name: str) -> int:
    """First, second or third text encoder, by the words that tell."""
    if any(word in name for word in ("clip_g", "embedders.1.", "text_encoder_2.")):
        return 1
    if any(word in name for word in ("t5xxl", "t5", "text_encoder_3.", "shared.", "encoder.embed_tokens.")):
        return 2
    return 0
