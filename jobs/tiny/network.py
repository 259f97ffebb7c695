"""The four networks and the scheduler, in SD 1.x's classes and layout, only smaller."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SIZE_PX = 128
LATENT_SIZE = 16
SCALING_FACTOR = 0.18215  # SD 1.x's own; the autoencoder's 1×1 convolutions are fitted to it
TEXT_WIDTH = 128
MAX_TOKENS = 77
Network = TypeVar("Network", bound=nn.Module)
VAE_WIDTHS = (16, 24, 40, 56)
UNET_WIDTHS = (48, 64, 80)


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def begin(kind: type[Network], folder: Path, build: Callable[[], Network]) -> Network:
    """The network saved in `folder`, to go on from, or a new one where there is none."""
    return kind.from_pretrained(folder) if folder.exists() else build()


def build_vae() -> AutoencoderKL:
    """128 px ↔ 16 × 16 × 4, residual branches starting at nothing."""
    vae = AutoencoderKL(
        block_out_channels=VAE_WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE_PX,
        scaling_factor=SCALING_FACTOR,
    )
    for name, module in vae.named_modules():
        if name.endswith(".conv2"):
            _zero(module)
    return vae


def build_unet() -> UNet2DConditionModel:
    """SD 1.x's block types at three resolutions, text read at 16², 8² and 4²."""
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        block_out_channels=UNET_WIDTHS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,  # the number of heads: SD 1.x's own misnomer; two are a fifth faster than four here
        norm_num_groups=16,
    )
    # proj_out, which carries the text, must not start at zero: the prompt would be learned last.
    for name, module in unet.named_modules():
        if name.endswith(".conv2") or name == "conv_out":
            _zero(module)
    return unet


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two CLIP layers; tokens start louder than positions."""
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            hidden_act="quick_gelu",
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "token_embedding" in name:
                parameter.mul_(8)
            elif "position_embedding" in name:
                parameter.mul_(0.7)
    return model


def build_scheduler() -> DDIMScheduler:
    """SD's noise, velocity prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 on CUDA, plain float32 on the CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def to_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token numbers, padded to 77. Shapes: int [caption, 77]."""
    return tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids
