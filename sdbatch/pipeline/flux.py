"""How FLUX's transformer is asked: latents packed two by two into tokens, the guidance scale as an input.

Shapes: B images, C latent channels, H, W latent cells, L = H * W / 4 image tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import Tensor, nn

from sdbatch.pipeline.denoise import Conditions
from sdbatch.pipeline.libraries import remember_signature
from sdbatch.pipeline.samplers import Schedule

remember_signature(FluxAttnProcessor.__call__)

_TRAIN_STEPS = 1000
"""The transformer counts time from 0 to 1, samplers from 0 to this."""


class FluxDenoiser:
    """FLUX's transformer with the conditions of one batch.

    Args:
        transformer: Predicts the flow.
        conditions: What steers each image.
        cells: (height, width) of the latents.
    """

    def __init__(self, transformer: nn.Module, conditions: Conditions, cells: tuple[int, int]) -> None:
        self.transformer = transformer
        self.prompts = conditions.positive
        tokens = self.prompts.tokens_BTD
        self.device, self.dtype = tokens.device, tokens.dtype
        config: Any = transformer.config
        scales = torch.tensor(conditions.guidance_scales, dtype=torch.float32)
        self.guidance = scales.to(self.device) if config.guidance_embeds else None
        self.text_ids = torch.zeros(tokens.shape[1], 3, device=self.device, dtype=self.dtype)
        self.image_ids = _image_ids(cells[0] // 2, cells[1] // 2).to(self.device, self.dtype)

    def predict(self, latents_BCHW: Tensor, schedule: Schedule, step: int) -> Tensor:
        """The prediction at a step."""
        time = schedule.timesteps_on(self.device)[step].expand(latents_BCHW.shape[0]).to(self.dtype)
        flow = self.transformer(
            hidden_states=pack(latents_BCHW).to(self.dtype),
            timestep=time / _TRAIN_STEPS,
            guidance=self.guidance,
            pooled_projections=self.prompts.pooled_BP,
            encoder_hidden_states=self.prompts.tokens_BTD,
            txt_ids=self.text_ids,
            img_ids=self.image_ids,
            return_dict=False,
        )[0]
        return unpack(flow.float(), latents_BCHW.shape[2], latents_BCHW.shape[3])


def pack(latents_BCHW: Tensor) -> Tensor:
    """Squares of two by two cells as tokens: [B, L, 4 C]."""
    count, channels, height, width = latents_BCHW.shape
    squares = latents_BCHW.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(count, (height // 2) * (width // 2), 4 * channels)


def unpack(tokens_BLC: Tensor, height: int, width: int) -> Tensor:
    """Tokens back as [B, C, H, W]."""
    count, _, channels = tokens_BLC.shape
    squares = tokens_BLC.view(count, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(count, channels // 4, height, width)


def _image_ids(rows: int, columns: int) -> Tensor:
    """The place of each image token: (0, row, column)."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None, :]
    return ids.reshape(rows * columns, 3)
