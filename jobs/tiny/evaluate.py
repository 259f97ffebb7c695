"""Measure the shipped family: `python -m jobs.tiny.evaluate [PART ...] [--out FOLDER]`.

Prints and saves `sdbatch/embedded/evaluation.json`; sheets go to `<out>/evaluation`. Parts measured before are kept.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jobs.tiny import card, measure, measure_stack
from jobs.tiny.bench import Bench
from jobs.tiny.config import load_config
from jobs.tiny.shipped import EMBEDDED

PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "speed": measure.measure_speed,
    "retrieval": measure.measure_retrieval,
    "composition": measure.measure_composition,
    "robustness": measure.measure_robustness,
    "forms": measure.measure_forms,
    "samplers": measure.measure_samplers,
    "styles": measure_stack.measure_styles,
    "concept": measure_stack.measure_concept,
    "embeddings": measure_stack.measure_embeddings,
    "controlnet": measure_stack.measure_controlnet,
    "variants": measure_stack.measure_variants,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--out", type=Path, help="training folder: reference pictures are cached, sheets written there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recognised", type=int, help="how many of the 64 pictures of common.png a person recognised")
    arguments = parser.parse_args()
    config = load_config([])
    torch.set_num_threads(arguments.threads)
    b = Bench(EMBEDDED, arguments.out or Path(config["out"]))
    path = EMBEDDED / "evaluation.json"
    if arguments.recognised is not None:
        keep(path, "by_eye", {"recognised": arguments.recognised, "of": 64})
    for name in arguments.parts or ([] if arguments.recognised is not None else PARTS):
        keep(path, name, PARTS[name](b))
    card.write_card(config, EMBEDDED)


def keep(path: Path, name: str, figures: dict[str, Any]) -> None:
    """Print one part's figures and put them among the saved ones."""
    print(name, json.dumps(figures, ensure_ascii=False), flush=True)
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = figures
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
