"""The program people write first: stock Hydra, one job per image, the pipeline loaded in each."""

from __future__ import annotations

# pyright: reportPrivateImportUsage=false, reportUntypedFunctionDecorator=false, reportCallIssue=false
import os
from pathlib import Path
from typing import Any

import hydra
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path=None)
def main(config: DictConfig) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    pipe: Any = StableDiffusionPipeline.from_pretrained(config.model, torch_dtype=torch.float32, safety_checker=None)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if config.lora:
        pipe.load_lora_weights(config.lora, adapter_name="style")
        pipe.set_adapters(["style"], [config.strength])
    generator = torch.Generator().manual_seed(config.seed)
    image = pipe(
        config.prompt,
        num_inference_steps=config.steps,
        guidance_scale=config.guidance_scale,
        height=config.size,
        width=config.size,
        generator=generator,
    ).images[0]
    image.save(Path.cwd() / f"{config.strength}_{config.seed}.png")


if __name__ == "__main__":
    main()
