"""The same merges by sd-mecha, another program: what our numbers are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import sd_mecha
import torch
from safetensors.torch import load_file
from sd_mecha.extensions.builtin.merge_methods import linear
from torch import Tensor
from tqdm import tqdm

from sdbatch.adapters.piece import join
from sdbatch.cell import WeightFile
from sdbatch.merge.model import read_likes
from sdbatch.naming.file import to_original
from sdbatch.plan.files import find_config
from tests.pipeline.models import save

MOST_WIDE = 16
"""Every side of a tensor is cut to this: a merge does not look at shapes."""


BLOCKS = ["BASE", *(f"IN{index:02}" for index in range(12)), "M00", *(f"OUT{index:02}" for index in range(12))]


def write_sd1(path: Path, seed: int) -> WeightFile:
    """A checkpoint with all of SD 1.x's 1,100 names, narrow and random, in float32."""
    likes = {
        name: torch.empty([min(side, MOST_WIDE) for side in like.shape], device="meta")
        for name, like in read_likes(find_config("sd1")).items()
    }
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for own, piece in to_original(likes, "sd1").items():
        like = join(piece, [likes[name] for name in piece.names])
        tensors[own] = torch.randn(like.shape, generator=generator)
    return save(tensors, path)


def merge_with_mecha(paths: Sequence[str], method: str, ratio: float, blocks: Sequence[float], out: Path) -> dict[str, Tensor]:
    """The merged tensors by their names in the file."""
    mecha, sums = cast(Any, sd_mecha), cast(Any, linear)
    mecha.set_log_level("ERROR")
    models = [mecha.model(Path(path).absolute()) for path in paths]
    alpha: Any = ratio
    if blocks:
        weights = dict(zip(BLOCKS, [ratio, *blocks], strict=True))
        alpha = mecha.convert(mecha.literal(weights, config="sd1-supermerger_blocks"), models[0])
    match method:
        case "add_difference":
            recipe = mecha.add_difference(*models, alpha=alpha, clamp_to_ab=False)
        case "ties":
            changes = [mecha.subtract(model, models[2]) for model in models[:2]]
            # Its own wrapper cannot add what has not been merged yet.
            recipe = sums.add_difference(models[2], mecha.ties_sum(*changes, k=1.0, vote_sgn=True), alpha=1.0)
        case _:
            recipe = getattr(mecha, method)(*models, alpha=alpha)
    kept: Any = torch.float32
    mecha.merge(recipe, output=out, merge_dtype=kept, output_dtype=kept, threads=0, tqdm=partial(tqdm, disable=True))
    return load_file(out)
