"""How long it takes to swap one LoRA for another on a UNet of Stable Diffusion 1.5's full size.

    python -m tests.benchmarks.swap [--mb 100] [--device cpu] [--dtype float32]

The UNet has random weights; the files are kohya's LoRAs and DoRAs of every linear layer and every convolution of its attention,
in float16, as large as asked. The figures are of the time from a file on disk to live hooks, the first one taken off.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from sdbatch.adapters.lora import load_lora
from sdbatch.adapters.stack import AdapterStack
from sdbatch.cell import WeightFile

REPEATS = 5


def build_unet(device: str, dtype: torch.dtype) -> nn.Module:
    """860 million random weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    unet = unet.to_empty(device=device).to(dtype)
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.02)
    return unet.eval().requires_grad_(False)


def write_lora(unet: nn.Module, path: Path, size_bytes: int, *, dora: bool) -> WeightFile:
    """A LoRA of the attention blocks, of a rank that makes it as large as asked."""
    layers = {name: m for name, m in unet.named_modules() if "attentions" in name and isinstance(m, nn.Linear | nn.Conv2d)}
    weights = {name: layer.get_parameter("weight") for name, layer in layers.items()}
    per_rank = sum(2 * (weight.shape[0] + weight[0].numel()) for weight in weights.values())
    rank = max(1, round(size_bytes / per_rank))
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": torch.randn(rank, *weight.shape[1:]).half(), f"{key}.alpha": torch.tensor(rank / 2)}
        tensors[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2)).half() * 0.01
        if dora:
            tensors[f"{key}.dora_scale"] = weight.float().flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1)).half()
    save_file(tensors, path)
    return WeightFile(path.stem, str(path), path.stem)


def swap(unet: nn.Module, files: list[WeightFile]) -> tuple[float, float]:
    """Seconds of wall and of CPU time of the median swap."""
    stack: AdapterStack | None = None
    spent: list[tuple[float, float]] = []
    for index in range(REPEATS):
        begun = time.perf_counter(), time.process_time()
        if stack is not None:
            stack.detach()
        lora = load_lora(files[index % 2], {"unet": unet})
        stack = AdapterStack(unet, [lora.deltas["unet"]])
        stack.set_strengths(torch.tensor([[1.0]]))
        if next(unet.parameters()).is_cuda:
            torch.cuda.synchronize()
        spent.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    assert stack is not None
    stack.detach()
    return sorted(spent[1:])[len(spent[1:]) // 2]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    asked = parser.parse_args()
    unet = build_unet(asked.device, getattr(torch, asked.dtype))
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("LoRA", "DoRA"):
            files = [write_lora(unet, Path(folder) / f"{kind}{n}.safetensors", asked.mb * 10**6, dora=kind == "DoRA") for n in range(2)]
            size_mb = Path(files[0].path).stat().st_size / 1e6
            wall_s, cpu_s = swap(unet, files)
            print(f"{kind} of {size_mb:.0f} MB on {asked.device} in {asked.dtype}: a swap takes {wall_s:.2f} s, {cpu_s:.2f} s of CPU")


if __name__ == "__main__":
    main()
