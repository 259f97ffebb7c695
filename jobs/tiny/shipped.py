"""The shipped family as a training folder, so that any part goes on from the weights a clone holds."""

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionPipeline

EMBEDDED = Path(__file__).parents[2] / "sdbatch" / "embedded"
BASE, BASE_FOLDER = Path("checkpoints", "tiny.safetensors"), Path("checkpoints", "tiny_diffusers")
SECOND = Path("checkpoints", "tiny_pastel.safetensors")
SECOND_VAE = Path("vae", "tiny_vivid.safetensors")
CONTROLNET, CONTROLNET_CONFIG = Path("controlnet", "tiny_canny.safetensors"), Path("configs", "tiny_canny")


def load_folder(embedded: Path) -> StableDiffusionPipeline:
    """The base from its diffusers folder, in float32."""
    return _quiet(StableDiffusionPipeline.from_pretrained(embedded / BASE_FOLDER, torch_dtype=torch.float32, safety_checker=None))


def load_file(embedded: Path, path: Path) -> StableDiffusionPipeline:
    """A single-file checkpoint in float32."""
    config = str(embedded / BASE_FOLDER)
    return _quiet(
        StableDiffusionPipeline.from_single_file(
            embedded / path, config=config, local_files_only=True, torch_dtype=torch.float32, safety_checker=None
        )
    )


def load_second_vae(embedded: Path) -> AutoencoderKL:
    """The second autoencoder in float32."""
    config = str(embedded / BASE_FOLDER)
    return AutoencoderKL.from_single_file(embedded / SECOND_VAE, config=config, subfolder="vae", torch_dtype=torch.float32)


def load_controlnet(embedded: Path) -> ControlNetModel:
    """The ControlNet in float32."""
    config = str(embedded / CONTROLNET_CONFIG)
    return ControlNetModel.from_single_file(embedded / CONTROLNET, config=config, local_files_only=True, torch_dtype=torch.float32)


def _quiet(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def lay_out(embedded: Path, out: Path) -> None:
    """Put the shipped weights where training looks for them, unless `out` holds a training of its own.

    Side effects: writes networks in float32, adapters as they are, under `out`.
    """
    if (out / "vae_raw").exists():  # the first thing that training from nothing writes, the last that is laid out
        return
    base = load_folder(embedded)
    base.unet.save_pretrained(out / "unet")
    base.text_encoder.save_pretrained(out / "text_encoder")
    load_file(embedded, SECOND).unet.save_pretrained(out / "unet_second")
    load_second_vae(embedded).save_pretrained(out / "vae_second")
    load_controlnet(embedded).save_pretrained(out / "controlnet")
    for path in (*(embedded / "loras").iterdir(), *(embedded / "embeddings").iterdir()):
        (out / "adapters").mkdir(exist_ok=True)
        shutil.copy(path, out / "adapters")
    shutil.copytree(embedded / BASE_FOLDER / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    for name in ("vae", "vae_frozen", "vae_raw"):
        base.vae.save_pretrained(out / name)
    print(f"[init] began {out} from the shipped weights; init=scratch begins from nothing", flush=True)
