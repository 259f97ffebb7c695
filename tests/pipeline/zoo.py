"""A random model of every family, the files that hold it in the dialects that are about, and diffusers' own pipeline of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)
from transformers.models.t5.tokenization_t5 import T5Tokenizer

from sdbatch.adapters.piece import write_component
from sdbatch.naming import names_of
from tests.pipeline.models import (
    TinyModel,
    build_pipeline,
    diffusers,
    original,
    original_unet,
    original_vae,
    save,
    shake,
    to_original_keys,
    write_tokenizer,
)

_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _clip(tokenizer: Any, cls: Any = CLIPTextModel, width: int = 32, layers: int = 3, act: str = "quick_gelu") -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act=act,
        projection_dim=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return cls(config).eval()


def _tokenizer(folder: Path, pad: str = "<|endoftext|>") -> Any:
    write_tokenizer(folder, pad)
    return CLIPTokenizer.from_pretrained(str(folder))


def _t5_tokenizer() -> Any:
    """A Unigram vocabulary of a few words, for a T5 of a few parameters."""
    tokenizer: Any = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer: Any = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(["a photo of a red cat and a blue dog in a castle, bad, highly detailed"] * 50, trainer)
    vocabulary = [(token, score) for token, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def _vae(latent_channels: int = 4, **changes: Any) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 16, 16),
        norm_num_groups=8,
        layers_per_block=1,
        latent_channels=latent_channels,
        **changes,
    ).eval()


def _finish(cls: Any, parts: dict[str, Any], seed: int, **options: Any) -> Any:
    for index, module in enumerate(part for part in parts.values() if isinstance(part, torch.nn.Module)):
        shake(module, 10 * seed + index)
    pipeline = cls(**parts, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_sd2(folder: Path, seed: int = 0) -> Any:
    """Stable Diffusion 2.x that predicts velocity."""
    tokenizer = _tokenizer(folder, "!")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=40,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        norm_num_groups=8,
    ).eval()
    scheduler = diffusers.DDIMScheduler(**_NOISE, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction")
    parts = {"vae": _vae(), "text_encoder": _clip(tokenizer, width=40, act="gelu"), "tokenizer": tokenizer, "unet": unet}
    options: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return _finish(diffusers.StableDiffusionPipeline, {**parts, "scheduler": scheduler}, seed, **options)


def build_sdxl(folder: Path, seed: int = 0) -> Any:
    """SDXL with both text encoders."""
    first, second = _tokenizer(folder / "1"), _tokenizer(folder / "2", "!")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=2,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32 + 48,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
        norm_num_groups=8,
    ).eval()
    scheduler = diffusers.EulerDiscreteScheduler(**_NOISE, timestep_spacing="leading")
    parts = {
        "vae": _vae(scaling_factor=0.13025),
        "text_encoder": _clip(first),
        "text_encoder_2": _clip(second, CLIPTextModelWithProjection, 48, 4, "gelu"),
        "tokenizer": first,
        "tokenizer_2": second,
        "unet": unet,
        "scheduler": scheduler,
    }
    return _finish(diffusers.StableDiffusionXLPipeline, parts, seed, force_zeros_for_empty_prompt=True, add_watermarker=False)


def build_flux(folder: Path, seed: int = 0, *, guidance: bool = True) -> Any:
    """FLUX.1 dev, or schnell without guidance."""
    tokenizer, second = _tokenizer(folder), _t5_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(second),
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
        )
    ).eval()
    parts = {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0 if guidance else 1.0, use_dynamic_shifting=guidance),
        "vae": _vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": _clip(tokenizer),
        "tokenizer": tokenizer,
        "text_encoder_2": t5,
        "tokenizer_2": second,
        "transformer": transformer,
    }
    return _finish(diffusers.FluxPipeline, parts, seed)


def build_schnell(folder: Path, seed: int = 0) -> Any:
    """FLUX.1 schnell."""
    return build_flux(folder, seed, guidance=False)


def openclip(module: Any, prefix: str, extra_layers: int = 0) -> dict[str, Tensor]:
    """A CLIP text encoder's weights under OpenCLIP's names; `extra_layers` more than the module has, as SD 2.x files do."""
    state: dict[str, Tensor] = {
        key if key.startswith("text_projection") else f"text_model.{key.removeprefix('text_model.')}": tensor
        for key, tensor in module.state_dict().items()
    }
    layers = module.config.num_hidden_layers
    for key, tensor in [item for item in state.items() if f".layers.{layers - 1}." in item[0]]:
        for more in range(extra_layers):
            state[key.replace(f".{layers - 1}.", f".{layers + more}.")] = torch.full_like(tensor, 9.0)
    return {prefix + key: tensor for key, tensor in write_component(state, names_of("openclip", state)).items()}


def _single_sd2(pipeline: Any) -> dict[str, Tensor]:
    tensors = {f"model.diffusion_model.{key}": tensor for key, tensor in original_unet(pipeline.unet).items()}
    tensors |= {f"first_stage_model.{key}": tensor for key, tensor in original_vae(pipeline.vae).items()}
    return tensors | openclip(pipeline.text_encoder, "cond_stage_model.model.", extra_layers=1)


def _single_sdxl(pipeline: Any) -> dict[str, Tensor]:
    tensors = {f"model.diffusion_model.{key}": tensor for key, tensor in original_unet(pipeline.unet).items()}
    tensors |= {f"first_stage_model.{key}": tensor for key, tensor in original_vae(pipeline.vae).items()}
    first = pipeline.text_encoder.state_dict()
    tensors |= {f"conditioner.embedders.0.transformer.text_model.{key}": tensor for key, tensor in first.items()}
    return tensors | openclip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")


def original_transformer(transformer: Any) -> dict[str, Tensor]:
    """FLUX's transformer under the names of its original code."""
    return original("transformer", transformer)


def _single_flux(pipeline: Any) -> dict[str, Tensor]:
    """ComfyUI's all-in-one file."""
    tensors = {f"model.diffusion_model.{key}": tensor for key, tensor in original_transformer(pipeline.transformer).items()}
    tensors |= {f"vae.{key}": tensor for key, tensor in original_vae(pipeline.vae).items()}
    tensors |= {f"text_encoders.clip_l.transformer.text_model.{key}": tensor for key, tensor in pipeline.text_encoder.state_dict().items()}
    t5 = {key: tensor for key, tensor in pipeline.text_encoder_2.state_dict().items() if key != "encoder.embed_tokens.weight"}
    return tensors | {f"text_encoders.t5xxl.transformer.{key}": tensor for key, tensor in t5.items()}


ZOO: dict[str, tuple[str, Callable[..., Any], Callable[[Any], dict[str, Tensor]]]] = {
    "sd1": ("sd1", build_pipeline, to_original_keys),
    "sd2": ("sd2", build_sd2, _single_sd2),
    "sdxl": ("sdxl", build_sdxl, _single_sdxl),
    "flux_dev": ("flux", build_flux, _single_flux),
    "flux_schnell": ("flux", build_schnell, _single_flux),
}
"""Name -> family, what builds a random pipeline, what gives its weights as a single file has them."""


Zoo = Callable[[str], TinyModel]
"""Gives the model of a name, written once."""


def write_zoo_model(name: str, folder: Path, seed: int = 0) -> TinyModel:
    """A random model as one single file and a folder of configs without weights."""
    family, build, to_single = ZOO[name]
    pipeline = build(folder / "vocabulary", seed)
    config = folder / "config"
    pipeline.save_pretrained(config)
    for weights in config.rglob("*.safetensors"):
        weights.unlink()
    return TinyModel(folder, config, save(to_single(pipeline), folder / f"{name}{seed}.safetensors"), pipeline, family)
