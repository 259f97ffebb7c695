"""Architectures that are not run are called by their own names, never taken for one that is: by the layers of diffusers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from sdbatch.weights.families import ADAPTER_RULES, TRANSFORMER_RULES, UNET_RULES, to_title
from sdbatch.weights.fit import find_mismatch
from sdbatch.weights.identify import identify
from sdbatch.weights.identity import Identity
from tests.weights import dialects as d
from tests.weights.writer import write_safetensors

RUN = {"sd1", "sd2", "sdxl", "flux"}
TWINS = {"chroma", "bria", "ovis"}
"""Whose layers have FLUX.1's names and sizes, so that their LoRAs do too; only the metadata may tell."""

TRANSFORMERS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("FluxTransformer2DModel", {"num_layers": 1, "num_single_layers": 1}, "flux"),
    ("Flux2Transformer2DModel", {"num_layers": 1, "num_single_layers": 1}, "flux2"),
    ("ChromaTransformer2DModel", {"num_layers": 1, "num_single_layers": 1}, "chroma"),
    ("BriaTransformer2DModel", {"num_layers": 1, "num_single_layers": 1}, "bria"),
    ("OvisImageTransformer2DModel", {"num_layers": 1, "num_single_layers": 1}, "ovis"),
    ("HunyuanVideoTransformer3DModel", {"num_layers": 1, "num_single_layers": 1}, "hunyuan_video"),
    ("SD3Transformer2DModel", {"num_layers": 1}, "sd3"),
    ("AuraFlowTransformer2DModel", {"num_mmdit_layers": 1, "num_single_dit_layers": 1}, "auraflow"),
    ("QwenImageTransformer2DModel", {"num_layers": 41}, "qwen_image"),
    ("PixArtTransformer2DModel", {"num_layers": 1, "caption_channels": 4096}, "pixart"),
    ("SanaTransformer2DModel", {"num_layers": 1}, "sana"),
    ("WanTransformer3DModel", {"num_layers": 1}, "wan"),
    ("LTXVideoTransformer3DModel", {"num_layers": 1}, "ltx"),
    ("CosmosTransformer3DModel", {"num_layers": 1}, "cosmos"),
    ("CogView4Transformer2DModel", {"num_layers": 1}, "cogview"),
    ("Lumina2Transformer2DModel", {"num_layers": 1, "num_refiner_layers": 1}, "lumina2"),
    ("ZImageTransformer2DModel", {"n_layers": 1, "n_refiner_layers": 1}, "z_image"),
    ("UNetMotionModel", {"cross_attention_dim": 768}, "animatediff"),
    ("UNetSpatioTemporalConditionModel", {"layers_per_block": 1}, "svd"),
    ("Kandinsky3UNet", {"layers_per_block": 1}, "kandinsky3"),
)
"""Class of diffusers, what makes it small, and the family that it must be called."""


def shapes_of(name: str, options: dict[str, Any]) -> d.Tensors:
    with torch.device("meta"):
        model: nn.Module = getattr(diffusers, name)(**options)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def adapter_of(tensors: d.Tensors, prefix: str) -> d.Tensors:
    """A LoRA of every attention."""
    ends = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".add_k_proj.weight", ".to_qkv_mlp_proj.weight")
    modules = [(prefix + key.removesuffix(".weight"), *shape) for key, shape in tensors.items() if key.endswith(ends)]
    return d.peft([(name, out, into) for name, out, into in modules], rank=1)


@pytest.mark.parametrize(("name", "options", "family"), TRANSFORMERS, ids=[row[0] for row in TRANSFORMERS])
def test_models_and_their_loras(name: str, options: dict[str, Any], family: str, tmp_path: Path) -> None:
    tensors = shapes_of(name, options)
    model = identify(write_safetensors(tmp_path / "model.safetensors", tensors))
    assert (model.kind, model.family) == ("denoiser", family)
    lora = identify(write_safetensors(tmp_path / "lora.safetensors", adapter_of(tensors, "transformer.")))
    assert lora.kind == "lora"
    assert lora.family == family or lora.family not in RUN or family in TWINS


ORIGINAL: dict[str, d.Tensors] = {
    "pixart": {"blocks.0.cross_attn.q_linear.weight": (5, 5), "blocks.0.mlp.fc1.weight": (5, 5), "t_block.1.weight": (5, 5)},
    "sana": {"blocks.0.cross_attn.q_linear.weight": (5, 5), "blocks.0.mlp.inverted_conv.conv.weight": (5, 5, 1, 1)},
    "lumina2": {f"{d.LDM}cap_embedder.0.weight": (5,), f"{d.LDM}layers.0.attention.qkv.weight": (5, 5)},
    "z_image": {f"{d.LDM}cap_embedder.0.weight": (5,), f"{d.LDM}layers.0.adaLN_modulation.0.weight": (5, 5)},
    "hidream": {f"{d.LDM}double_stream_blocks.0.block.adaLN_modulation.1.bias": (5,), f"{d.LDM}caption_projection.0.linear.weight": (5, 5)},
    "cascade": {
        f"{d.LDM}clip_txt_mapper.weight": (5, 5),
        f"{d.LDM}clf.1.weight": (5, 5, 1, 1),
        f"{d.LDM}down_blocks.0.0.depthwise.weight": (5,),
    },
    "qwen_image": {
        f"{d.LDM}transformer_blocks.0.img_mlp.net.0.proj.weight": (5, 5),
        f"{d.LDM}transformer_blocks.0.attn.add_k_proj.weight": (5, 5),
    },
    "ovis": {**d.flux(d.LDM), f"{d.LDM}double_blocks.0.img_mlp.gate_proj.weight": (5, 5)},
    "longcat": {key: shape for key, shape in d.flux(d.LDM, guidance=False).items() if "vector_in" not in key},
    "wan": {f"{d.LDM}head.modulation": (1, 2, 5), f"{d.LDM}blocks.0.cross_attn.norm_k.weight": (5,)},
    "cosmos": {f"{d.LDM}x_embedder.proj.1.weight": (5, 5), f"{d.LDM}blocks.0.self_attn.q_proj.weight": (5, 5)},
    "anima": {f"{d.LDM}x_embedder.proj.1.weight": (5, 5), f"{d.LDM}llm_adapter.blocks.0.cross_attn.q_proj.weight": (5, 5)},
    "omnigen2": {"ref_image_patch_embedder.weight": (5, 5), "time_caption_embed.caption_embedder.0.weight": (5,)},
}
"""Files in the names of the architecture's own code, which ComfyUI keeps."""


@pytest.mark.parametrize("family", ORIGINAL)
def test_original_names(family: str, tmp_path: Path) -> None:
    assert identify(write_safetensors(tmp_path / "x.safetensors", ORIGINAL[family])).family == family


XLABS = "double_blocks.0.processor.qkv_lora1"
LORAS: tuple[tuple[str, d.Tensors, str | None], ...] = (
    (
        "musubi's HunyuanVideo",
        d.kohya([(f"lora_unet_double_blocks_{block}_img_attn_qkv", 9, 3072) for block in range(20)]),
        "hunyuan_video",
    ),
    (
        "XLabs, double blocks alone",
        {"double_blocks.0.processor.qkv_lora1.down.weight": (16, 3072), "double_blocks.0.processor.qkv_lora1.up.weight": (9216, 16)},
        "flux",
    ),
    ("OneTrainer's CLIP and T5 of FLUX", d.kohya([("lora_te1_a_q_proj", 768, 768), ("lora_te2_encoder_block_0_layer_0_q", 9, 4096)]), None),
    ("musubi's Wan", d.kohya([("lora_unet_blocks_0_cross_attn_k", 9, 5120)]), "wan"),
    ("ai-toolkit's Wan", d.peft([("diffusion_model.blocks.0.self_attn.q", 9, 5120)]), "wan"),
    ("ai-toolkit's Z-Image", d.peft([("diffusion_model.layers.0.attention.to_q", 9, 3840)]), "z_image"),
    ("Anima", d.peft([("diffusion_model.blocks.0.self_attn.q_proj", 9, 2048)]), "cosmos"),
    ("HiDream", d.peft([("diffusion_model.double_stream_blocks.0.block.attn1.to_q", 9, 2560)]), "hidream"),
    ("FLUX.2 under FLUX.1's names", d.peft([("diffusion_model.double_blocks.0.img_attn.qkv", 9, 6144)]), "flux2"),
    ("klein under FLUX.1's names", d.peft([("diffusion_model.double_blocks.0.img_attn.qkv", 9, 4096)]), None),
    (
        "Qwen-Image, attention alone",
        d.peft([(f"transformer.transformer_blocks.{i}.attn.add_k_proj", 9, 3072) for i in range(60)]),
        "qwen_image",
    ),
    (
        "AnimateDiff's motion",
        d.processors(320) | {"down_blocks.0.motion_modules.0.x.processor.to_q_lora.down.weight": (4, 320)},
        "animatediff",
    ),
)


@pytest.mark.parametrize(("tensors", "family"), [row[1:] for row in LORAS], ids=[row[0] for row in LORAS])
def test_loras_of_others(tensors: d.Tensors, family: str | None, tmp_path: Path) -> None:
    found = identify(write_safetensors(tmp_path / "x.safetensors", tensors))
    assert (found.kind, found.family) == ("lora", family)


def test_a_lora_that_says_chroma(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", d.kohya(d.FLUX_KOHYA), metadata={"modelspec.architecture": "chroma/lora"})
    assert identify(path).family == "chroma"


THIRD_LEVEL = {f"{d.LDM}input_blocks.7.1.transformer_blocks.3.attn1.to_q.weight": (5, 5)}
REFUSED: tuple[tuple[str, str, d.Tensors, str], ...] = (
    ("Playground v2.5", "checkpoint", {**d.sdxl(), "edm_mean": (4,), "edm_std": (4,)}, "EDM's schedule"),
    ("CosXL", "checkpoint", {**d.sdxl(), "edm_vpred.sigma_max": ()}, "EDM's schedule"),
    ("SSD-1B", "checkpoint", {**d.sdxl(), **THIRD_LEVEL}, "fewer layers"),
    ("LCM", "checkpoint", {**d.diffusers_unet(768), "time_embedding.cond_proj.weight": (320, 256)}, "takes the guidance as an input"),
    ("SD 2.1 unCLIP", "checkpoint", {**d.sd2(), "embedder.model.visual.proj": (5, 5)}, "needs a picture"),
    ("NF4", "checkpoint", {**d.flux(), "double_blocks.0.img_attn.qkv.weight.absmax": (5,)}, "packed into 4 bits"),
    ("NVFP4", "checkpoint", {**d.flux(), "double_blocks.0.img_attn.qkv.weight_scale_2": ()}, "packed into 4 bits"),
    ("SVDQuant", "checkpoint", {**d.flux_diffusers(), "transformer_blocks.0.attn.to_out.0.qweight": (5, 5)}, "packed into 4 bits"),
    ("Wan's VAE", "vae", {"decoder.middle.0.residual.0.gamma": (5, 1, 1, 1), "encoder.conv1.weight": (5, 3, 3, 3, 3)}, "of videos"),
    ("Redux", "lora", {"redux_up.weight": (12288, 1152), "redux_down.weight": (4096, 12288)}, "a style model (Redux), not a LoRA"),
    ("peft's OFT", "lora", {"base_model.model.down_blocks.0.x.oft_R.weight": (4, 6)}, "of peft's OFT or BOFT"),
    ("cloneofsimo's", "lora", {"unet:0:up": (320, 4), "unet:0:down": (4, 320)}, "in cloneofsimo's format of 2022"),
    ("VeRA", "lora", {"base_model.model.down_blocks.0.x.vera_lambda_b": (4,)}, "of VeRA, which is not applied"),
    ("T-LoRA", "lora", {"lycoris_x.lambda_layer": (1, 4), "lycoris_x.q_layer.weight": (4, 5)}, "of T-LoRA, whose rank changes"),
    ("kohya's OFT", "lora", {"lora_unet_x.oft_diag": (4, 4)}, "of kohya's OFT of 2023"),
    (
        "Canny as a LoRA",
        "lora",
        {**d.peft(d.FLUX_PEFT), "img_in.lora_A.weight": (4, 128), "img_in.lora_B.weight": (3072, 4)},
        "control picture",
    ),
    (
        "ControlNet-XS",
        "controlnet",
        {**d.diffusers_controlnet(768), "control_to_base_for_conv_in.weight": (5, 5, 1, 1)},
        "a ControlNet-XS",
    ),
)


@pytest.mark.parametrize(("group", "tensors", "told"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_not_run_is_refused_with_the_plan(group: str, tensors: d.Tensors, told: str, tmp_path: Path) -> None:
    file = identify(write_safetensors(tmp_path / "x.safetensors", tensors))
    base = file if group == "checkpoint" else Identity(tmp_path, "checkpoint", "safetensors", 1)
    assert told in (find_mismatch(file, group, base) or "")


def test_every_family_has_a_name_for_people() -> None:
    labels = {rule.label for rules in (UNET_RULES, TRANSFORMER_RULES, ADAPTER_RULES) for rule in rules}
    assert {label for label in labels if to_title(label) == label} == set()
    assert to_title("z_image") == "Z-Image"


def test_sdxl_itself_is_whole(tmp_path: Path) -> None:
    whole = {**d.sdxl(), **THIRD_LEVEL, f"{d.LDM}input_blocks.7.1.transformer_blocks.9.attn1.to_q.weight": (5, 5)}
    assert identify(write_safetensors(tmp_path / "x.safetensors", whole)).variant == "base"
