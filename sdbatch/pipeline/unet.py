"""How a UNet is asked: guidance as a second pass in the same batch, ControlNets, SDXL's sizes, inpainting's masks.

Shapes: B images, N = B or 2B (with guidance: all unconditional ones first), C latent channels, H, W latent cells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdbatch.adapters.controlnet import add_controls
from sdbatch.pipeline.denoise import Conditions, Prompts
from sdbatch.pipeline.samplers import Schedule

_AESTHETIC_SCORE, _AESTHETIC_SCORE_NEGATIVE = 6.0, 2.5
"""What the SDXL refiner is told of a picture's beauty; diffusers' defaults."""


class UNetDenoiser:
    """A UNet with the conditions of one batch.

    Args:
        unet: Predicts the noise or the velocity.
        conditions: What steers each image.
        size_px: (width, height).
        masked_latents_1CHW: For an inpainting UNet: the latents of a picture of which nothing is to be kept.
        with_aesthetics: The UNet wants an aesthetic score beside the picture's size.
    """

    def __init__(
        self,
        unet: nn.Module,
        conditions: Conditions,
        size_px: tuple[int, int],
        masked_latents_1CHW: Tensor | None = None,
        *,
        with_aesthetics: bool = False,
    ) -> None:
        self.unet = unet
        self.conditions = conditions
        positive, negative = conditions.positive, conditions.negative
        self.embeds = positive.tokens_BTD
        if conditions.is_guided and negative is not None:
            self.embeds = torch.cat([negative.tokens_BTD, positive.tokens_BTD])
        self.device, self.dtype = self.embeds.device, self.embeds.dtype
        scales = torch.tensor(conditions.guidance_scales, dtype=torch.float32)
        self.guidance = scales.to(self.device).view(-1, 1, 1, 1)
        self.added = self._added_conditions(positive, negative, size_px, with_aesthetics)
        self.masked = masked_latents_1CHW

    def predict(self, latents_BCHW: Tensor, schedule: Schedule, step: int) -> Tensor:
        """The guided prediction at a step."""
        is_guided = self.conditions.is_guided
        wide = torch.cat([latents_BCHW, latents_BCHW]) if is_guided else latents_BCHW
        given = schedule.scale_input(wide, schedule.timesteps[step]).to(self.dtype)
        timestep = schedule.timesteps_on(self.device)[step]
        extra = add_controls(self.conditions.controls, (step, len(schedule.timesteps)), given, timestep, self.embeds, self.added)
        if self.conditions.ip_adapters is not None:
            self.conditions.ip_adapters.set_step((step, len(schedule.timesteps)))
        if self.added:
            extra["added_cond_kwargs"] = self.added
        prediction = self.unet(self._with_mask(given), timestep, encoder_hidden_states=self.embeds, return_dict=False, **extra)[0].float()
        if not is_guided:
            return prediction
        unconditional, conditional = prediction.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def _added_conditions(
        self, positive: Prompts, negative: Prompts | None, size_px: tuple[int, int], with_aesthetics: bool
    ) -> dict[str, Tensor]:
        """SDXL's: the prompt's summary, and (original height, width, crop top, left, then the target's) of the picture."""
        config: Any = self.unet.config
        if config.addition_embed_type != "text_time" or positive.pooled_BP is None:
            return {}
        width, height = size_px
        # The refiner has the score in the place of the target's size.
        tails = [(_AESTHETIC_SCORE,), (_AESTHETIC_SCORE_NEGATIVE,)] if with_aesthetics else [(height, width)] * 2
        ids, negative_ids = (torch.tensor([height, width, 0, 0, *tail], dtype=self.dtype, device=self.device) for tail in tails)
        count = positive.pooled_BP.shape[0]
        rows, pooled = [ids] * count, positive.pooled_BP
        if self.conditions.is_guided and negative is not None and negative.pooled_BP is not None:
            rows, pooled = [negative_ids] * count + rows, torch.cat([negative.pooled_BP, pooled])
        return {"text_embeds": pooled, "time_ids": torch.stack(rows)}

    def _with_mask(self, given_NCHW: Tensor) -> Tensor:
        """An inpainting UNet also sees the mask, all of it here, and what is left of the picture: nothing."""
        if self.masked is None:
            return given_NCHW
        rows = given_NCHW.shape[0]
        mask = torch.ones_like(given_NCHW[:, :1])
        return torch.cat([given_NCHW, mask, self.masked.to(given_NCHW).expand(rows, -1, -1, -1)], dim=1)


def encode_nothing(vae: Any, size_px: tuple[int, int]) -> Tensor:
    """The latents [1, C, H, W] of a picture that is masked everywhere, as inpainting pipelines make them: a grey one."""
    parameter = next(vae.parameters())
    grey = torch.zeros(1, 3, size_px[1], size_px[0], device=parameter.device, dtype=parameter.dtype)
    return vae.encode(grey).latent_dist.mode() * vae.config.scaling_factor
