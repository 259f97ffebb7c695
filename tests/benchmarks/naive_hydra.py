"""The program people write first: stock Hydra, one job per image, the pipeline loaded and an MLflow run begun in each."""

from __future__ import annotations

# pyright: reportPrivateImportUsage=false, reportUntypedFunctionDecorator=false, reportCallIssue=false
import os
from pathlib import Path
from typing import Any

import hydra
import mlflow
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
    file = Path.cwd() / f"{config.strength}_{config.seed}.png"
    image.save(file)
    if config.tracking == "mlflow":
        mlflow.set_tracking_uri(f"sqlite:///{Path.cwd()}/mlflow.db")
        with mlflow.start_run():
            mlflow.log_params({str(key): value for key, value in config.items()})
            mlflow.log_artifact(str(file))


if __name__ == "__main__":
    main()
