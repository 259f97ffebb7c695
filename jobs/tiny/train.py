"""Train one part of the family: `python -m jobs.tiny.train PART [key=value ...]`."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from omegaconf import OmegaConf

from jobs.tiny import (
    latent,
    tokenizer,
    train_adapter,
    train_controlnet,
    train_embedding,
    train_text,
    train_unet,
    train_vae,
    train_variant,
)

Part = Callable[[dict[str, Any], Path], None]
PARTS: dict[str, Part] = {
    "vae": train_vae.train,
    "freeze": latent.freeze,
    "decoder": train_vae.train_decoder,
    "tokenizer": tokenizer.build,
    "text": train_text.train,
    "unet": train_unet.train,
    "controlnet": train_controlnet.train,
    "second_checkpoint": train_variant.train_checkpoint,
    "second_vae": train_variant.train_vae,
}
ALONE = ("freeze", "tokenizer")  # parts without a training loop


def _run(process: int, part: str, config: dict[str, Any], meeting: str) -> None:
    torch.set_num_threads(config["threads"])
    if config["workers"] > 1:
        store = f"file://{meeting}"
        dist.init_process_group("gloo", init_method=store, rank=process, world_size=config["workers"])
    out = Path(config["out"])
    if part in config["adapters"]:
        train_adapter.train(config, out, part)
    elif part in config["embeddings"]:
        train_embedding.train(config, out, part)
    else:
        PARTS[part](config, out)
    if dist.is_initialized():
        dist.destroy_process_group()


def main() -> None:
    """Read the configuration and start the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = OmegaConf.load(Path(__file__).with_name("config.yaml"))
    parser.add_argument("part", choices=[*PARTS, *defaults.adapters, *defaults.embeddings])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    merged = OmegaConf.merge(defaults, OmegaConf.from_dotlist(arguments.overrides))
    config: dict[str, Any] = OmegaConf.to_container(merged, resolve=True)  # type: ignore[assignment]
    if config["device"] == "auto":
        config["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    if config["device"] == "cuda" or arguments.part in ALONE:
        config["workers"] = 1
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (arguments.part, config, f"{folder}/meeting"), nprocs=config["workers"])


if __name__ == "__main__":
    main()
