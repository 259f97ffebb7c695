"""A sweep of 4 LoRA strengths x N seeds against a hand-written loop and the naive Hydra program.

python -m tests.benchmarks.sweep [--naive] [--steps 20] [--size 128] [--threads 2] [--rounds 3]

With --naive, each program also makes a single image: what its start-up costs is then known, and so is what every
further image costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from sdbatch.weights.catalog import embedded_root
from tests.benchmarks.measure import Cost, measure, table

HERE = Path(__file__).parent
STRENGTHS = [0.25, 0.5, 0.75, 1.0]
SEEDS = 16
OURS, LOOP, NAIVE = "sdbatch", "hand-written loop, batch 8", "naive Hydra, a load per image"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--naive", action="store_true", help="also the naive program: a pipeline load per image")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tracking", default="mlflow", choices=["mlflow", "none"])
    asked = parser.parse_args()
    programs = commands(asked, STRENGTHS, SEEDS)
    environment = {"OMP_NUM_THREADS": str(asked.threads), "HF_HUB_OFFLINE": "1"}
    found: dict[str, list[Cost]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(asked.rounds):
            for name, command in programs.items():
                if turn and name == NAIVE:
                    continue  # minutes, and its ratio is not a close call
                found[name].append(measure(command, Path(scratch) / f"{turn}-{name.split()[0]}", environment))
        middle = {name: sorted(costs, key=lambda cost: cost.cpu_s)[len(costs) // 2] for name, costs in found.items()}
        print(table(middle, LOOP))
        if asked.naive:
            singles = commands(asked, STRENGTHS[:1], 1)
            single = {name: measure(command, Path(scratch) / f"one-{name.split()[0]}", environment) for name, command in singles.items()}
            print(table({f"{name}: 1 image": cost for name, cost in single.items()}, f"{LOOP}: 1 image"))
            print_further(middle, single)
    ratios = [ours.cpu_s / theirs.cpu_s for ours, theirs in zip(found[OURS], found[LOOP], strict=True)]
    rounds = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    print(f"sdbatch / hand-written loop, CPU, round by round: {rounds}; median {statistics.median(ratios):.3f}")


def commands(asked: argparse.Namespace, strengths: list[float], seeds: int) -> dict[str, list[str]]:
    """Each program's command for these strengths and the first `seeds` seeds."""
    root = embedded_root()
    settings: dict[str, Any] = {
        "model": str(root / "checkpoints/tiny_diffusers"),
        "lora": str(root / "loras/style_b.safetensors"),
        "prompt": "a red fox",
        "steps": asked.steps,
        "guidance_scale": 2.5,
        "size": asked.size,
        "strengths": strengths,
        "seeds": seeds,
        "threads": asked.threads,
    }
    swept = ",".join(map(str, strengths))
    sweep = ["lora=[style_b]", f"lora.style_b.weight={swept}", "lora.style_b.text_encoder_weight=0", f"seed=range(0,{seeds})", "-m"]
    fixed = [f"steps={asked.steps}", f"width={asked.size}", f"height={asked.size}", "prompt=a red fox"]
    place = ["batch_size=8", f"memory.threads={asked.threads}", f"tracking={asked.tracking}"]
    found = {
        OURS: [sys.executable, "-m", "sdbatch", *sweep, *fixed, *place],
        LOOP: [sys.executable, str(HERE / "hand_loop.py"), json.dumps(settings)],
    }
    if asked.naive:
        plain = {key: value for key, value in settings.items() if key not in ("strengths", "seeds", "threads")}
        keys = [f"+{key}={json.dumps(value)}" for key, value in {**plain, "tracking": asked.tracking}.items()]
        found[NAIVE] = [sys.executable, str(HERE / "naive_hydra.py"), *keys, f"+strength={swept}", f"+seed=range(0,{seeds})", "-m"]
    return found


def print_further(many: dict[str, Cost], single: dict[str, Cost]) -> None:
    """What each image after the first costs, start-up aside."""
    further = {name: (many[name].cpu_s - single[name].cpu_s) / (len(STRENGTHS) * SEEDS - 1) for name in many}
    for name, cpu_s in further.items():
        print(f"{name:<34}{cpu_s * 1000:9.0f} ms CPU for each further image, {cpu_s / further[OURS]:.1f} x sdbatch's")


if __name__ == "__main__":
    main()
