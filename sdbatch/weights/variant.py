"""Which variant of its kind and family a file is."""

from __future__ import annotations

from typing import Any, cast

from sdbatch.weights import geometry
from sdbatch.weights.header import Header
from sdbatch.weights.key import Keys, Rule, first_match
from sdbatch.weights.signature import TEXT_ENCODER_RULES, UPSCALER_RULES, VAE_RULES

_BY_INPUT_CHANNELS: dict[int, str] = {9: "inpainting", 8: "pix2pix", 5: "depth", 7: "upscale"}
"""What a UNet looks at beside its 4 latent channels."""

_FLUX_BY_INPUT: dict[int, str] = {384: "fill", 128: "control"}

_CLIP_BY_WIDTH: dict[int, str] = {128: "tiny", 768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
_T5_BY_WIDTH: dict[int, str] = {512: "t5_small", 768: "t5_base", 1024: "t5_large", 2048: "t5_xl", 4096: "t5_xxl"}

_QUANTISED = Rule("quantised", any=(".absmax$", ".qweight$", ".weight_scale_2$"))  # bitsandbytes, Nunchaku, NVIDIA
_UNET_RULES: tuple[Rule, ...] = (
    Rule("edm", any=("^edm_mean$", "^edm_vpred.sigma_max$")),  # Playground v2.5, CosXL
    Rule("lcm", any=("time_embedding.cond_proj.weight$", "time_embed.cond_proj.weight$")),
    Rule("unclip", any=("^embedder.model.visual.", "^noise_augmentor.", "^image_noising_scheduler.", "^image_normalizer.")),
)
"""UNets of a known shape that were trained for another schedule, or to see more than the text."""

_DISTILLED = Rule(
    "distilled",
    any=("down_blocks.2.attentions.0.", "input_blocks.7.1."),
    none=(".transformer_blocks.9.", "down_blocks.3.", "input_blocks.9."),
)
"""SDXL has ten layers in each attention of its third level; the refiner, which has fewer, has a fourth level."""

_CONTROLNET_RULES: tuple[Rule, ...] = (
    Rule("xs", any=("control_to_base_for_conv_in.",)),
    Rule("control-lora", any=("^lora_controlnet$",)),
    Rule("lllite", any=("^lllite_unet_",)),
    Rule("union", any=("task_embedding", "controlnet_mode_embedder.", "control_add_embedding.")),
)

_IP_ADAPTER_RULES: tuple[Rule, ...] = (
    Rule("full", any=("^image_proj.proj.3.weight$",)),
    Rule("faceid", any=(".to_q_lora.", "^image_proj.perceiver_resampler.", "^image_proj.proj.0.weight$")),
    Rule("plus", any=("^image_proj.latents$", "^image_proj.layers.0.0.")),
)

_EMBEDDING_RULES: tuple[Rule, ...] = (Rule("output", any=("^clip_l_out$", "^clip_g_out$", "^t5_out$", "^emp_params_out$")),)
"""OneTrainer's embeddings that are added behind the text encoder."""

_LORA_RULES: tuple[Rule, ...] = (
    Rule("cloneofsimo", any=("^unet:0:up$", "^text_encoder:0:up$")),
    Rule("kohya's oft", any=(".oft_diag$",)),
    Rule("peft's oft", any=(".oft_R.", ".boft_R.")),
)
"""Forms that change the weight in a way that is not applied."""

_BY_NAMES: dict[str, tuple[Rule, ...]] = {
    "vae": VAE_RULES,
    "controlnet": _CONTROLNET_RULES,
    "embedding": _EMBEDDING_RULES,
    "ip_adapter": _IP_ADAPTER_RULES,
    "upscaler": UPSCALER_RULES,
}
_PLAIN = {"controlnet": "base", "t2i_adapter": "t2i", "ip_adapter": "base"}
"""Kind -> the variant of a file that no rule names."""

_IMAGE_ENCODER_RULES: tuple[Rule, ...] = (
    Rule("openclip", any=("^visual.",)),
    Rule("siglip", any=("vision_model.head.",)),
    Rule("bare", none=("visual_projection.",)),
)
_IMAGE_ENCODER_BY_WIDTH: dict[int, str] = {768: "clip_vit_b", 1024: "clip_vit_l", 1280: "clip_vit_h", 1664: "clip_vit_bigg"}

_SD3_RULES: tuple[Rule, ...] = (
    Rule("3.5-large", any=("joint_blocks.37.", "transformer_blocks.37.")),
    Rule("3.5-medium", any=("joint_blocks.0.x_block.attn2.", "transformer_blocks.0.attn2.")),
)


def find_variant(header: Header, keys: Keys, kind: str, family: str | None, prediction: str | None) -> str | None:
    """The variant: what a base was trained to look at, which text encoder, which upscaler network. None: nothing to tell."""
    match kind:
        case "checkpoint" | "denoiser":
            return _find_base_variant(header, keys, family, prediction)
        case "lora":
            return "control" if _takes_a_picture(header) else first_match(_LORA_RULES, keys)
        case "text_encoder":
            table = _T5_BY_WIDTH if first_match(TEXT_ENCODER_RULES, keys) == "t5" else _CLIP_BY_WIDTH
            widths = geometry.find_embedding_widths(header, kind)
            return table.get(widths[0]) if widths else None
        case "image_encoder":
            width = geometry.find_image_hidden_width(header, kind)
            return first_match(_IMAGE_ENCODER_RULES, keys) or _IMAGE_ENCODER_BY_WIDTH.get(width or 0, "clip")
        case _:
            return first_match(_BY_NAMES.get(kind, ()), keys) or _PLAIN.get(kind)


def _find_base_variant(header: Header, keys: Keys, family: str | None, prediction: str | None) -> str | None:
    if _QUANTISED.matches(keys):
        return _QUANTISED.label
    if family == "flux":
        inputs = next((info.shape[-1] for name, info in header.tensors.items() if name.endswith(("img_in.weight", "x_embedder.weight"))), 0)
        return _FLUX_BY_INPUT.get(inputs) or ("dev" if keys.has_any(("guidance_in.", ".guidance_embedder.")) else "schnell")
    if family == "sd3":
        return first_match(_SD3_RULES, keys) or "3-medium"
    if found := "edm" if _has_edm_schedule(header) else first_match(_UNET_RULES, keys):
        return found
    channels = geometry.find_input_channels(header)
    if channels in _BY_INPUT_CHANNELS:
        return _BY_INPUT_CHANNELS[channels]
    if family == "sdxl" and header.format != "folder" and _DISTILLED.matches(keys):
        return _DISTILLED.label
    if family == "sdxl":
        return "refiner" if geometry.find_cross_attention_width(header, "checkpoint") == 1280 else "base"
    if family == "sd2" and prediction:
        return "768-v" if prediction == "v_prediction" else "512"
    return "base" if channels else None


def _takes_a_picture(header: Header) -> bool:
    """FLUX.1's LoRAs of Canny and Depth widen the first layer, which reads 64 numbers."""
    first = (info.shape for name, info in header.tensors.items() if name.endswith(("img_in.lora_A.weight", "x_embedder.lora_A.weight")))
    return any(shape[-1:] == (128,) for shape in first)


def _has_edm_schedule(header: Header) -> bool:
    config = header.values.get("scheduler.scheduler_config")
    return isinstance(config, dict) and str(cast("dict[str, Any]", config).get("_class_name")).startswith("EDM")
