"""Which variant of its kind and family a file is."""

from __future__ import annotations

from sdbatch.weights import geometry
from sdbatch.weights.header import Header
from sdbatch.weights.key import Keys, Rule, first_match
from sdbatch.weights.signature import TEXT_ENCODER_RULES, UPSCALER_RULES, VAE_RULES

_BY_INPUT_CHANNELS: dict[int, str] = {9: "inpainting", 8: "pix2pix", 5: "depth", 7: "upscale"}
"""What a UNet looks at beside its 4 latent channels."""

_FLUX_BY_INPUT: dict[int, str] = {384: "fill", 128: "control"}

_CLIP_BY_WIDTH: dict[int, str] = {128: "tiny", 768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
_T5_BY_WIDTH: dict[int, str] = {512: "t5_small", 768: "t5_base", 1024: "t5_large", 2048: "t5_xl", 4096: "t5_xxl"}

_CONTROLNET_RULES: tuple[Rule, ...] = (
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
        case "vae":
            return first_match(VAE_RULES, keys)
        case "text_encoder":
            table = _T5_BY_WIDTH if first_match(TEXT_ENCODER_RULES, keys) == "t5" else _CLIP_BY_WIDTH
            widths = geometry.find_embedding_widths(header, kind)
            return table.get(widths[0]) if widths else None
        case "controlnet":
            return first_match(_CONTROLNET_RULES, keys) or "base"
        case "embedding":
            return first_match(_EMBEDDING_RULES, keys)
        case "t2i_adapter":
            return "t2i"
        case "ip_adapter":
            return first_match(_IP_ADAPTER_RULES, keys) or "base"
        case "image_encoder":
            width = geometry.find_image_hidden_width(header, kind)
            return first_match(_IMAGE_ENCODER_RULES, keys) or _IMAGE_ENCODER_BY_WIDTH.get(width or 0, "clip")
        case "upscaler":
            return first_match(UPSCALER_RULES, keys)
        case _:
            return None


def _find_base_variant(header: Header, keys: Keys, family: str | None, prediction: str | None) -> str | None:
    if family == "flux":
        inputs = next((info.shape[-1] for name, info in header.tensors.items() if name.endswith(("img_in.weight", "x_embedder.weight"))), 0)
        return _FLUX_BY_INPUT.get(inputs) or ("dev" if keys.has_any(("guidance_in.", ".guidance_embedder.")) else "schnell")
    if family == "sd3":
        return first_match(_SD3_RULES, keys) or "3-medium"
    channels = geometry.find_input_channels(header)
    if channels in _BY_INPUT_CHANNELS:
        return _BY_INPUT_CHANNELS[channels]
    if family == "sdxl":
        return "refiner" if geometry.find_cross_attention_width(header, "checkpoint") == 1280 else "base"
    if family == "sd2" and prediction:
        return "768-v" if prediction == "v_prediction" else "512"
    return "base" if channels else None
