"""The weights in the original (CompVis) single-file layout, which A1111 and ComfyUI read."""

import torch

from sdbatch.adapters.piece import join_all, write_component
from sdbatch.naming import names_of
from sdbatch.naming.file import to_original

Weights = dict[str, torch.Tensor]


def to_text_model(weights: Weights) -> Weights:
    """CLIP text weights under `text_model.`, which every version of transformers reads."""
    return {key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in weights.items()}


def to_original_vae(weights: Weights) -> Weights:
    """Autoencoder weights without a prefix, as a file of one autoencoder has them."""
    return write_component(weights, names_of("vae", weights))


def to_original_controlnet(weights: Weights) -> Weights:
    """ControlNet weights under `control_model.`."""
    return {f"control_model.{key}": value for key, value in write_component(weights, names_of("controlnet", weights)).items()}


def to_single_file(unet: Weights, vae: Weights, text: Weights) -> Weights:
    """All weights of one checkpoint."""
    parts = {"unet": unet, "vae": vae, "text_encoder": to_text_model(text)}
    weights = {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}
    return join_all(to_original(weights, "sd1"), weights)
