"""Block weights of LoRAs: a factor for each block of the denoiser, as vectors and presets that users know.

A vector has one number per block that a LoRA of the family can have: 17 for SD 1.x and 2.x, 12 for SDXL, 61 for FLUX; or one
for every block there is: 26 for SD 1.x and 2.x, 20 or 26 for SDXL. The first, BASE, is the text encoder's. Blocks that a
shorter vector does not name get 0; layers outside of all blocks (time embedding, last convolution) keep 1.

Source: the extension sd-webui-lora-block-weight, whose `lbw=` A1111's infotexts carry.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdbatch.errors import ConfigError, did_you_mean

UNET_BLOCKS = ("BASE", *(f"IN{n:02}" for n in range(12)), "M00", *(f"OUT{n:02}" for n in range(12)))
FLUX_BLOCKS = ("CLIP", "T5", "IN", *(f"D{n:02}" for n in range(19)), *(f"S{n:02}" for n in range(38)), "OUT")

_SD = ("BASE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00", *(f"OUT{n:02}" for n in range(3, 12)))
_XL = ("BASE", "IN04", "IN05", "IN07", "IN08", "M00", *(f"OUT{n:02}" for n in range(6)))
_XL_ALL = ("BASE", *(f"IN{n:02}" for n in range(9)), "M00", *(f"OUT{n:02}" for n in range(9)))

VECTORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "sd1": (_SD, UNET_BLOCKS),
    "sd2": (_SD, UNET_BLOCKS),
    "sdxl": (_XL, _XL_ALL, UNET_BLOCKS),
    "flux": (FLUX_BLOCKS,),
}
"""Family -> the blocks that its vectors of each length name."""

_SD_PRESETS = {
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
}
_XL_PRESETS = {
    "INS": "1,1,1,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,1,1,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,1,1,1,1,1,1,0,0,0",
    "OUTD": "1,0,0,0,0,0,1,1,1,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,1,1,1",
    "OUTALL": "1,0,0,0,0,0,1,1,1,1,1,1",
}
"""The extension has presets for SD 1.x alone; these are the same parts of SDXL: S shallow, D deep."""
_PRESETS: dict[str, dict[str, str]] = {"sd1": _SD_PRESETS, "sd2": _SD_PRESETS, "sdxl": _XL_PRESETS, "flux": {"FLUXALL": ",".join("1" * 61)}}
_EVERYWHERE = {"ALL": 1.0, "NONE": 0.0, "ALL0.5": 0.5}


def to_text(blocks: str | Sequence[float] | None) -> str:
    """Block weights as typed, in one spelling: `MIDD`, or `1,0,0.5,...`; empty for none."""
    if blocks is None:
        return ""
    items = blocks.split(",") if isinstance(blocks, str) else [repr(value) for value in blocks]
    if len(items) == 1:
        return items[0].strip().upper()
    return ",".join(_plain(item.strip()) for item in items)


def _plain(item: str) -> str:
    try:
        return f"{float(item):.10g}"
    except ValueError:
        return item


def read_lora_blocks(text: str, family: str) -> tuple[float, ...]:
    """A factor for each of `block_names`.

    Raises:
        ConfigError: no such preset, a length that the family does not have, or no number.
    """
    names = block_names(family)
    if text in _EVERYWHERE:
        return (_EVERYWHERE[text],) * len(names)
    presets = _PRESETS[family]
    items = presets.get(text, text).split(",")
    if len(items) == 1:
        hint = did_you_mean(text, (*_EVERYWHERE, *presets))
        raise ConfigError(f"there is no preset {text!r}. {hint} Or give {_lengths(family)} numbers.")
    try:
        values = [float(item) for item in items]
    except ValueError as error:
        raise ConfigError(f"{text!r} holds something that is no number ({error}).") from None
    given = next((blocks for blocks in VECTORS[family] if len(blocks) == len(values)), None)
    if given is None:
        raise ConfigError(f"{len(values)} numbers were given; LoRAs of {family} have {_lengths(family)}.")
    named = dict(zip(given, values, strict=True))
    return tuple(named.get(name, 0.0) for name in names)


def block_names(family: str) -> tuple[str, ...]:
    """The blocks of a family, in the order of `read_lora_blocks`."""
    return FLUX_BLOCKS if family == "flux" else UNET_BLOCKS


def _lengths(family: str) -> str:
    return " or ".join(str(len(blocks)) for blocks in VECTORS[family])
