"""Random models of the real classes, small enough to run in a fraction of a second, and the files that hold them."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdbatch.adapters.piece import write_component
from sdbatch.cell import Cell, Recipe, Sampler, Strength, WeightFile
from sdbatch.families import SAMPLERS
from sdbatch.naming import names_of

diffusers: Any = importlib.import_module("diffusers")
"""Its classes are lazy attributes, which a type checker cannot see."""

WIDTH = 32
WORDS = ("cat", "dog", "red", "blue", "castle", "photo", "bad", "neg")
PIXELS = 64


def write_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> None:
    """A CLIP tokenizer that knows all bytes and a few words."""
    letters = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    letters += [chr(256 + index) for index in range(256 - len(letters))]
    vocabulary = letters + [f"{letter}</w>" for letter in letters]
    merges: list[str] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            if (merge := f"{pieces[0]} {pieces[1]}") not in merges:
                merges.append(merge)
                vocabulary.append(pieces[0] + pieces[1])
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(dict.fromkeys(vocabulary))}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": pad}
    settings = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def shake(module: nn.Module, seed: int) -> None:
    """Random weights strong enough that every part of the model matters to the picture."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.05 * noise + (1.0 if name.endswith("weight") else 0.0))


def build_pipeline(folder: Path, seed: int = 0) -> Any:
    """A random Stable Diffusion 1.x pipeline; `folder` gets the tokenizer's files."""
    write_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(str(folder))
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    text_encoder = CLIPTextModel(text_config).eval()
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 16, 16),
        norm_num_groups=8,
        layers_per_block=1,
    ).eval()
    for index, module in enumerate((text_encoder, unet, vae)):
        shake(module, 10 * seed + index)
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False, set_alpha_to_one=False
    )
    parts: dict[str, Any] = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
    pipeline = diffusers.StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def to_original_keys(pipeline: Any) -> dict[str, Tensor]:
    """The weights under the key names of the original Stable Diffusion code, as single files have them."""
    tensors = {f"model.diffusion_model.{key}": tensor for key, tensor in original_unet(pipeline.unet).items()}
    tensors |= {f"first_stage_model.{key}": tensor for key, tensor in original_vae(pipeline.vae).items()}
    text = pipeline.text_encoder.state_dict()
    return tensors | {f"cond_stage_model.transformer.text_model.{key}": tensor for key, tensor in text.items()}


def original_unet(unet: Any) -> dict[str, Tensor]:
    """A UNet's weights under the original key names, without a prefix."""
    return original("unet", unet)


def original_vae(vae: Any) -> dict[str, Tensor]:
    """A VAE's weights under the original key names, without a prefix."""
    return original("vae", vae)


def original(naming: str, module: Any) -> dict[str, Tensor]:
    """A component's weights under the original key names. `tests/naming` holds the names by diffusers' converters."""
    state: dict[str, Tensor] = module.state_dict()
    return write_component(state, names_of(naming, state))


def save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> WeightFile:
    """Write a safetensors file; its name stands for its hash, so equal names mean equal content in tests."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}, path, metadata)
    return WeightFile(path.stem, str(path), path.stem)


@dataclass(frozen=True)
class TinyModel:
    """A random model on disk, and the same model as diffusers' own pipeline."""

    folder: Path
    config: Path
    checkpoint: WeightFile
    pipeline: Any
    family: str = "sd1"

    def recipe(self, **changes: Any) -> Recipe:
        """A recipe of the checkpoint alone, or with changes."""
        values: dict[str, Any] = {"family": self.family, "config": str(self.config), "checkpoint": self.checkpoint, **changes}
        return Recipe(**values)


def write_model(folder: Path, seed: int = 0) -> TinyModel:
    """A random model as one single file with the original keys and a folder of configs without weights."""
    pipeline = build_pipeline(folder / "vocabulary", seed)
    config = folder / "config"
    pipeline.save_pretrained(config)
    for weights in config.rglob("*.safetensors"):
        weights.unlink()
    checkpoint = save(to_original_keys(pipeline), folder / f"random{seed}.safetensors")
    return TinyModel(folder, config, checkpoint, pipeline)


def make_cell(recipe: Recipe, **changes: Any) -> Cell:
    """A cell of a recipe: 64 pixels, 4 steps of Euler, a plain prompt; or with changes."""
    sampler: Sampler = SAMPLERS["euler"]
    values: dict[str, Any] = {
        "image_id": "0" * 32,
        "recipe": recipe,
        "prompt": "a photo of a red cat",
        "negative_prompt": "",
        "seed": 7,
        "sampler": sampler,
        "steps": 4,
        "guidance_scale": 5.0,
        "width": PIXELS,
        "height": PIXELS,
        "strengths": tuple(Strength() for _ in recipe.loras),
    }
    return Cell(**{**values, **changes})


def add_to_weights(module: nn.Module, deltas: dict[str, Tensor], strength: float = 1.0) -> None:
    """W + strength * delta, by hand: what a LoRA must amount to."""
    modules = dict(module.named_modules())
    with torch.no_grad():
        for name, delta in deltas.items():
            weight = modules[name].get_parameter("weight")
            weight.add_(strength * delta.reshape(weight.shape).to(weight.dtype))


def build_controlnet(pipeline: Any, seed: int = 5) -> Any:
    """A random ControlNet for a model, its zero layers shaken too."""
    net = diffusers.ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(8, 16, 24, 32)).eval()
    shake(net, seed)
    return net


def original_controlnet(net: Any) -> dict[str, Tensor]:
    """A ControlNet's weights under the original key names."""
    return {f"control_model.{key}": tensor for key, tensor in original("controlnet", net).items()}


def write_picture(path: Path, seed: int = 0, size: int = 80) -> Path:
    """A random picture of a few rectangles."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((size, size, 3), np.uint8)
    for _ in range(6):
        top, left = random.integers(0, size - 20, 2)
        pixels[top : top + 20, left : left + 20] = random.integers(0, 256, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path
