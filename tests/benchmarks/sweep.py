"""A 64-image sweep (4 LoRA strengths x 16 seeds) against a hand-written loop and the naive Hydra program.

python -m tests.benchmarks.sweep [--naive] [--threads 2] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from sdbatch.weights.catalog import embedded_root
from tests.benchmarks.measure import Cost, measure, table

HERE = Path(__file__).parent
STRENGTHS = [0.25, 0.5, 0.75, 1.0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--naive", action="store_true", help="also the naive program: a pipeline load per image")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tracking", default="mlflow", choices=["mlflow", "none"])
    asked = parser.parse_args()
    root = embedded_root()
    settings = {
        "model": str(root / "checkpoints/tiny_diffusers"),
        "lora": str(root / "loras/style_b.safetensors"),
        "prompt": "a red fox",
        "steps": 20,
        "guidance_scale": 2.5,
        "size": 128,
        "strengths": STRENGTHS,
        "seeds": 16,
        "threads": asked.threads,
    }
    strengths = ",".join(map(str, STRENGTHS))
    sdbatch = ["lora=[style_b]", f"lora.style_b.weight={strengths}", "lora.style_b.text_encoder_weight=0", "seed=range(0,16)", "-m"]
    commands = {
        "sdbatch": [
            sys.executable,
            "-m",
            "sdbatch",
            *sdbatch,
            "batch_size=8",
            f"memory.threads={asked.threads}",
            f"tracking={asked.tracking}",
        ],
        "hand-written loop, batch 8": [sys.executable, str(HERE / "hand_loop.py"), json.dumps(settings)],
    }
    if asked.naive:
        plain = {key: value for key, value in settings.items() if key not in ("strengths", "seeds", "threads")}
        fixed = [f"+{key}={json.dumps(value)}" for key, value in plain.items()]
        swept = [f"+strength={strengths}", "+seed=range(0,16)", "-m"]
        commands["naive Hydra, a load per image"] = [sys.executable, str(HERE / "naive_hydra.py"), *fixed, *swept]
    environment = {"OMP_NUM_THREADS": str(asked.threads), "HF_HUB_OFFLINE": "1"}
    found: dict[str, list[Cost]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(asked.rounds):
            for name, command in commands.items():
                if turn and name.startswith("naive"):
                    continue  # minutes, and its ratio is not a close call
                found[name].append(measure(command, Path(scratch) / f"{turn}-{name.split()[0]}", environment))
    middle = {name: sorted(costs, key=lambda cost: cost.cpu_s)[len(costs) // 2] for name, costs in found.items()}
    print(table(middle, "hand-written loop, batch 8"))
    ratios = [ours.cpu_s / theirs.cpu_s for ours, theirs in zip(found["sdbatch"], found["hand-written loop, batch 8"], strict=True)]
    rounds = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    print(f"sdbatch / hand-written loop, CPU, round by round: {rounds}; median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
