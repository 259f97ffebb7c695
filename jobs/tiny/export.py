"""Write the trained parts in the ecosystem's formats: `python -m jobs.tiny.export [key=value ...]`."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file

from jobs.tiny import adapter, card, emoji, generate, metadata, network, original, picture, shipped
from jobs.tiny.config import load_config

HERE = Path(__file__).parent
FOLDERS = {"lora": "loras", "embedding": "embeddings"}


def _half(weights: original.Weights) -> original.Weights:
    return {key: value.detach().half().contiguous() for key, value in weights.items()}


def export_base(out: Path, to: Path) -> None:
    """The base as a diffusers folder and as a single file, and the checkpoint fine-tuned from it."""
    pipe = generate.load_parts(out)
    folder = to / shipped.BASE_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    text = pipe.text_encoder.state_dict()
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.half()
    pipe.save_pretrained(folder)
    # Older readers want the `text_model.` prefix that this transformers no longer writes.
    save_file(original.to_text_model(_half(text)), folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(out / "tokenizer", folder / "tokenizer")
    _anonymise(folder)
    describe = "Small Stable Diffusion that draws {} from a fixed list of words"
    _save_checkpoint(pipe.unet, pipe.vae, text, to / shipped.BASE, describe.format("emoji"))
    if (out / "unet_second").exists():
        unet = UNet2DConditionModel.from_pretrained(out / "unet_second")
        _save_checkpoint(unet, pipe.vae, text, to / shipped.SECOND, describe.format("emoji in soft pastel colours"))


def _save_checkpoint(unet: UNet2DConditionModel, vae: AutoencoderKL, text: original.Weights, path: Path, description: str) -> None:
    weights = original.to_single_file(unet.state_dict(), vae.state_dict(), text)
    adapter.save(_half(weights), path, metadata.modelspec(path.stem, "", description))


def _anonymise(folder: Path) -> None:
    """Configurations remember the folder they came from; a shipped one must not."""
    for path in folder.rglob("*.json"):
        settings = json.loads(path.read_text())
        if isinstance(settings, dict) and settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2) + "\n")


def export_controlnet(out: Path, to: Path) -> None:
    """The ControlNet in its original names, and the configuration a reader needs beside it."""
    controlnet = ControlNetModel.from_pretrained(out / "controlnet")
    weights = original.to_original_controlnet(controlnet.state_dict())
    header = metadata.modelspec(shipped.CONTROLNET.stem, "control-net", "Follows white canny edges on black")
    adapter.save(_half(weights), to / shipped.CONTROLNET, header)
    folder = to / shipped.CONTROLNET_CONFIG
    folder.mkdir(parents=True, exist_ok=True)
    controlnet.save_config(folder)
    _anonymise(folder)


def export_vae(out: Path, to: Path) -> None:
    """The second autoencoder, alone in its file and without a prefix, as such files are."""
    vae = AutoencoderKL.from_pretrained(out / "vae_second")
    header = metadata.modelspec(shipped.SECOND_VAE.stem, "vae", "Stronger colours and contrast")
    weights = original.to_original_vae(vae.state_dict())
    adapter.save(_half(weights), to / shipped.SECOND_VAE, header)


def export_all(config: dict[str, Any], out: Path, to: Path) -> None:
    """Export what has been trained so far. Side effects: replaces files under `to`."""
    export_base(out, to)
    if (out / "controlnet").exists():
        export_controlnet(out, to)
    if (out / "vae_second").exists():
        export_vae(out, to)
    for kind, names in {"lora": config["adapters"], "embedding": config["embeddings"]}.items():
        for name in names:
            source, target = out / "adapters" / f"{name}.safetensors", to / FOLDERS[kind] / f"{name}.safetensors"
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    export_references(out, HERE.parents[1] / "tests" / "tiny" / "references.npz")
    for path in to.rglob("*.safetensors"):
        path.chmod(0o644)  # the library writes them for their owner only
    card.write_notice(to)
    card.write_card(config, to)
    total = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    print(f"[export] {total / 1e6:.2f} MB under {to.name}", flush=True)


def export_references(out: Path, path: Path) -> None:
    """Mean colours in 8 × 8 cells of every noun in every set, for tests without the pictures."""
    cells = {}
    for name, pictures in emoji.load_pictures(out, network.SIZE_PX).items():
        rgb = np.stack([picture.compose(rgba) for rgba in pictures])
        cells[name] = (rgb.reshape(len(rgb), 8, 16, 8, 16, 3).mean((2, 4)) * 255).round().astype(np.uint8)
    np.savez_compressed(path, names=np.array([noun.name for noun in emoji.load_nouns()]), **cells)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    config = load_config(parser.parse_args().overrides)
    torch.set_num_threads(1)
    export_all(config, Path(config["out"]), shipped.EMBEDDED)


if __name__ == "__main__":
    main()
