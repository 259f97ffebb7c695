"""Headers of the shipped files: what A1111, kohya and `modelspec` readers look for."""

import json
from typing import Any

LICENCE = "Derived from Noto Emoji (Apache-2.0) and Fluent Emoji (MIT); see NOTICE"
AUTHOR = "sdbatch"
ARCHITECTURE = "stable-diffusion-v1"
SIZE = "128x128"


def modelspec(title: str, kind: str, description: str, **more: str) -> dict[str, str]:
    """`modelspec.*` keys. `kind` is empty for a checkpoint, else such as "lora"."""
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{ARCHITECTURE}/{kind}" if kind else ARCHITECTURE,
        "implementation": "diffusers",
        "title": title,
        "author": AUTHOR,
        "description": description,
        "license": LICENCE,
        "resolution": SIZE,
        "prediction_type": "v",
        **more,
    }
    return {f"modelspec.{key}": value for key, value in spec.items()}


def of_adapter(name: str, section: dict[str, Any], steps: int, pictures: int) -> dict[str, str]:
    """Header of a LoRA, LoCon or LoHa."""
    if section["dialect"] == "diffusers":
        return modelspec(name, "lora", section["description"], trigger_phrase=section["trigger"])
    rank, alpha = section["rank"], section.get("alpha", section["rank"])
    header = {
        "ss_output_name": name,
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": "tiny.safetensors",
        "ss_v2": "False",
        "ss_network_module": "networks.lora" if section["kind"] == "lora" else "lycoris.kohya",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_resolution": "(128, 128)",
        "ss_clip_skip": "None",
        "ss_learning_rate": str(section["lr"]),
        "ss_steps": str(steps),
        "ss_max_train_steps": str(steps),
        "ss_num_train_images": str(pictures),
        "ss_batch_size_per_device": str(section["batch"]),
        "ss_optimizer": "jobs.tiny.muon.Muon" if section.get("muon") else "torch.optim.adamw.AdamW",
        "ss_mixed_precision": "no",
        "ss_training_comment": section["description"],
        "ss_tag_frequency": json.dumps({f"1_{name}": {section["trigger"] or name: pictures}}),
    }
    if section["kind"] == "locon":
        header["ss_network_args"] = json.dumps({"algo": "locon", "conv_dim": str(rank), "conv_alpha": str(alpha), "preset": "full"})
    elif section["kind"] == "loha":
        header["ss_network_args"] = json.dumps({"algo": "loha", "preset": "attn-only"})
    return header
