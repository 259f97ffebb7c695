"""Train one part of the family: `python -m jobs.tiny.train PART [key=value ...]`."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from jobs.tiny import (
    emoji,
    latent,
    network,
    shipped,
    tokenizer,
    train_adapter,
    train_controlnet,
    train_decoder,
    train_embedding,
    train_second,
    train_text,
    train_unet,
    train_vae,
)
from jobs.tiny.config import load_config

Part = Callable[[dict[str, Any], Path], None]
PARTS: dict[str, Part] = {
    "vae": train_vae.train,
    "freeze": latent.freeze,
    "decoder": train_decoder.train,
    "tokenizer": tokenizer.build,
    "text": train_text.train,
    "unet": train_unet.train,
    "controlnet": train_controlnet.train,
    "second_checkpoint": train_second.train,
    "second_vae": train_decoder.train_second,
}
ALONE = ("freeze", "tokenizer")  # parts without a training loop


def run_part(part: str, config: dict[str, Any], out: Path) -> None:
    """Train one part in this process. Side effects: writes under `out`."""
    if part in config["adapters"]:
        train_adapter.train(config, out, part)
    elif part in config["embeddings"]:
        train_embedding.train(config, out, part)
    else:
        PARTS[part](config, out)


def _run(process: int, part: str, config: dict[str, Any], meeting: str) -> None:
    torch.set_num_threads(config["threads"])
    if config["workers"] > 1:
        store = f"file://{meeting}"
        dist.init_process_group("gloo", init_method=store, rank=process, world_size=config["workers"])
    run_part(part, config, Path(config["out"]))
    if dist.is_initialized():
        dist.destroy_process_group()


def main() -> None:
    """Read the configuration and start the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = load_config([])
    parser.add_argument("part", choices=[*PARTS, *defaults["adapters"], *defaults["embeddings"]])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    config = load_config(arguments.overrides)
    if config["device"] == "auto":
        config["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    if config["device"].startswith("cuda") or arguments.part in ALONE:
        config["workers"] = 1
    out = Path(config["out"])
    if config["init"] == "embedded":
        shipped.lay_out(shipped.EMBEDDED, out)
    emoji.load_pictures(out, network.SIZE_PX)  # once, before several processes would fetch them together
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (arguments.part, config, f"{folder}/meeting"), nprocs=config["workers"])


if __name__ == "__main__":
    main()
