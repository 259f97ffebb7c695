"""The baseline: a hand-written diffusers loop for one LoRA at some strengths and seeds, as good as its author can.

Loads once, encodes each prompt once, batches seeds, decodes in batches, saves PNG on a thread and a table at the end.
"""

from __future__ import annotations

# pyright: reportPrivateImportUsage=false
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image

BATCH = 8


def main(settings: dict[str, Any]) -> None:
    torch.set_num_threads(settings["threads"])
    torch.set_grad_enabled(False)
    pipe: Any = StableDiffusionPipeline.from_pretrained(str(settings["model"]), torch_dtype=torch.float32, safety_checker=None)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if settings["lora"]:
        pipe.load_lora_weights(str(settings["lora"]), adapter_name="style")
    out = Path("images")
    out.mkdir()
    rows: list[dict[str, object]] = []
    strengths, seeds = settings["strengths"], settings["seeds"]
    with ThreadPoolExecutor(1) as writer:
        for strength in strengths:
            if settings["lora"]:
                pipe.set_adapters(["style"], [strength])
            embeds, negative = pipe.encode_prompt(settings["prompt"], "cpu", 1, True, "")
            for start in range(0, seeds, BATCH):
                batch = list(range(start, min(start + BATCH, seeds)))
                images = pipe(
                    prompt_embeds=embeds.expand(len(batch), -1, -1),
                    negative_prompt_embeds=negative.expand(len(batch), -1, -1),
                    generator=[torch.Generator().manual_seed(seed) for seed in batch],
                    num_inference_steps=settings["steps"],
                    guidance_scale=settings["guidance_scale"],
                    height=settings["size"],
                    width=settings["size"],
                    output_type="np",
                ).images
                for seed, image in zip(batch, images, strict=True):
                    name = f"{strength}_{seed}.png"
                    pixels = Image.fromarray((image * 255).round().astype("uint8"))
                    writer.submit(pixels.save, out / name, compress_level=1)
                    rows.append({"strength": strength, "seed": seed, "file": name})
    pq.write_table(pa.Table.from_pylist(rows), "rows.parquet")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
