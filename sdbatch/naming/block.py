"""The block of the denoiser that a layer lies in, as block weights call it: IN04, M00, OUT11, or FLUX's D07 and S12."""

from __future__ import annotations

import re
from collections.abc import Collection

from sdbatch.naming import names_of

_UNET_BLOCK = re.compile(r"(input|middle|output)_blocks?\.(\d+)\.")
_FLUX_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.")


def find_blocks(names: Collection[str]) -> dict[str, str]:
    """Tensor or module of a denoiser, by diffusers' name -> its block; none for those outside of all blocks."""
    if any(name.startswith("single_transformer_blocks.") for name in names):
        return {name: _flux_block(name) for name in names}
    unet = names_of("unet", names)
    written = {name: unet.write(name) for name in names}
    found = {name: _UNET_BLOCK.match(original[0]) for name, original in written.items() if original}
    return {name: _unet_block(match[1], int(match[2])) for name, match in found.items() if match}


def _unet_block(where: str, number: int) -> str:
    return {"input": f"IN{number:02}", "middle": "M00", "output": f"OUT{number:02}"}[where]


def _flux_block(name: str) -> str:
    if found := _FLUX_BLOCK.match(name):
        return f"{'S' if found[1] else 'D'}{int(found[2]):02}"
    return "OUT" if name.startswith(("norm_out", "proj_out")) else "IN"
