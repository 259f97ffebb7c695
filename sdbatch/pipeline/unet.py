"""How a UNet is asked: guidance as a second pass in the same batch, ControlNets, SDXL's sizes, what inpainting also sees.

Shapes: B images, N = B or 2B (with guidance: all unconditional ones first), C latent channels, H, W latent cells.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn

from sdbatch.adapters.controlnet import add_controls
from sdbatch.pipeline.denoise import Conditions, Prompts
from sdbatch.pipeline.libraries import remember_signature
from sdbatch.pipeline.samplers import Schedule

remember_signature(AttnProcessor2_0.__call__)

_AESTHETIC_SCORE, _AESTHETIC_SCORE_NEGATIVE = 6.0, 2.5
"""What the SDXL refiner is told of a picture's beauty; diffusers' defaults."""


class UNetDenoiser:
    """A UNet with the conditions of one batch.

    Args:
        unet: Predicts the noise or the velocity.
        conditions: What steers each image.
        size_px: (width, height).
        beside_BCHW: What an inpainting UNet sees beside the latents (`sdbatch.pipeline.start.Start`).
        with_aesthetics: The UNet wants an aesthetic score beside the picture's size.
    """

    def __init__(
        self,
        unet: nn.Module,
        conditions: Conditions,
        size_px: tuple[int, int],
        beside_BCHW: Tensor | None = None,
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
        rescales = torch.tensor(conditions.guidance_rescales, dtype=torch.float32)
        self.rescale = rescales.to(self.device).view(-1, 1, 1, 1) if any(conditions.guidance_rescales) else None
        self.added = self._added_conditions(positive, negative, size_px, with_aesthetics)
        self.beside = beside_BCHW if beside_BCHW is None else beside_BCHW.to(self.dtype).repeat(2 if conditions.is_guided else 1, 1, 1, 1)

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
        if self.beside is not None:
            given = torch.cat([given, self.beside], dim=1)
        prediction = self.unet(given, timestep, encoder_hidden_states=self.embeds, return_dict=False, **extra)[0].float()
        if not is_guided:
            return prediction
        unconditional, conditional = prediction.chunk(2)
        guided = unconditional + self.guidance * (conditional - unconditional)
        return guided if self.rescale is None else _rescale(guided, conditional, self.rescale)

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


def _rescale(guided_BCHW: Tensor, conditional_BCHW: Tensor, share_B111: Tensor) -> Tensor:
    """The guided prediction, a share of it with the spread of the conditional one.

    Source: Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed, section 3.4.
    """
    guided_std, conditional_std = (prediction.std(dim=(1, 2, 3), keepdim=True) for prediction in (guided_BCHW, conditional_BCHW))
    return share_B111 * (guided_BCHW * (conditional_std / guided_std)) + (1 - share_B111) * guided_BCHW
