"""Which image encoder an IP-Adapter was trained with, as far as their headers tell.

A plain IP-Adapter reads the summary that the encoder gives of a picture; plus and full ones read what its last layer but one
says of each patch. So the first is matched by the width of the summary, the others by the width of the layers.
"""

from __future__ import annotations

from collections.abc import Iterable

from sdbatch.weights.fit import find_mismatch
from sdbatch.weights.identity import Identity
from sdbatch.weights.index import Listed

_KNOWN = {("embedding", 1024): "clip_vit_h", ("layers", 1280): "clip_vit_h", ("embedding", 1280): "clip_vit_bigg"}
"""What an IP-Adapter reads -> the `image_encoder=` that gives it."""


def fits(encoder: Identity, adapter: Identity) -> bool:
    """Whether an image encoder gives what an IP-Adapter reads; what the headers do not tell does not fit."""
    if find_mismatch(encoder, "image_encoder", adapter) is not None:
        return False
    if adapter.image_hidden_width is not None:
        return encoder.image_hidden_width == adapter.image_hidden_width
    return adapter.image_embedding_width is not None and encoder.image_embedding_width == adapter.image_embedding_width


def find_fitting(adapter: Identity, encoders: Iterable[Listed]) -> list[str]:
    """The names of the image encoders that fit an IP-Adapter."""
    return [item.name for item in encoders if item.identity and fits(item.identity, adapter)]


def describe_need(adapter: Identity) -> str:
    """What an IP-Adapter reads, in words: `a 1024-wide embedding`, `1280-wide layers`."""
    if adapter.image_hidden_width is not None:
        return f"{adapter.image_hidden_width}-wide layers"
    return f"a {adapter.image_embedding_width}-wide embedding"


def name_known(adapter: Identity) -> str | None:
    """The option of `image_encoder=` that an IP-Adapter of the known ones was trained with."""
    if adapter.image_hidden_width is not None:
        return _KNOWN.get(("layers", adapter.image_hidden_width))
    return _KNOWN.get(("embedding", adapter.image_embedding_width or 0))
