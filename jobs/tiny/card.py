"""NOTICE and MODEL_CARD.md beside the weights, written from the recipe and the measured figures."""

import json
from pathlib import Path
from typing import Any

from jobs.tiny import emoji, picture

HERE = Path(__file__).parent
EDGE_BARS = {"moved": 2.0}  # the base meets the others without a ControlNet, wholly or for every symmetric noun
BARS = (
    # what, where in evaluation.json, the bar, True when more is better
    ("retrieval top-1, every noun × 4 seeds", "retrieval/top1", 0.95, True),
    ("held-out tint right", "composition/tint/right", 0.85, True),
    ("held-out background right", "composition/background/right", 0.80, True),
    ("recognised by eye of 64 common prompts", "by_eye/recognised", 58, True),
    ("style_a at strength 1: classified as the style", "styles/style_a/1.0/style", 0.80, True),
    ("style_a at strength 1: subject retained", "styles/style_a/1.0/subject", 0.80, True),
    ("style_b at strength 1: classified as the style", "styles/style_b/1.0/style", 0.80, True),
    ("style_b at strength 1: subject retained", "styles/style_b/1.0/subject", 0.80, True),
    ("seconds an image, 20 guided steps, 2 threads", "speed/seconds_per_image_batch_1", 1.5, False),
    ("batch of 8: share of the per-image time of batch 1", "speed/batch_8_to_1", 0.60, False),
)


def write_notice(to: Path) -> None:
    """NOTICE and the upstream licence texts."""
    for path in (HERE / "notice").iterdir():
        (to / path.name).write_text(path.read_text())


def _look_up(results: dict[str, Any], path: str) -> float | None:
    value: Any = results
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def table_of_bars(results: dict[str, Any]) -> str:
    """Each bar, where the committed weights stand, and whether that is enough."""
    rows = ["| what | bar | measured | |", "|---|---|---|---|"]
    for what, path, bar, more in BARS:
        value = _look_up(results, path)
        enough = value is not None and (value >= bar if more else value <= bar)
        shown = "not measured" if value is None else f"{value:g}"
        rows.append(f"| {what} | {'≥' if more else '≤'} {bar:g} | {shown} | {'reached' if enough else 'short'} |")
    return "\n".join([*rows, *_score_rows(results), *_edge_rows(results)])


def _score_rows(results: dict[str, Any]) -> list[str]:
    """How much nearer to the style than to the base, on average: it must rise with the strength."""
    rows = []
    for name, figures in results.get("styles", {}).items():
        scores = [figures[strength]["margin"] for strength in ("0.0", "0.5", "1.0")]
        verdict = "reached" if scores[0] < scores[1] < scores[2] else "short"
        rows.append(f"| {name}: style score at strengths 0, 0.5, 1 | rising | {', '.join(f'{s:.2f}' for s in scores)} | {verdict} |")
    return rows


def _edge_rows(results: dict[str, Any]) -> list[str]:
    rows = []
    for kind, figures in results.get("controlnet", {}).items():
        without, found = figures["0.0"]["edges"], figures["1.0"]["edges"]
        ratio = found / max(without, 1e-6)
        bar = EDGE_BARS.get(kind)
        verdict = "" if bar is None else "reached" if ratio >= bar else "short"
        shown = f"{without:.2f} → {found:.2f}, {ratio:.2f} ×"
        rows.append(f"| ControlNet edge agreement, {kind} edges, scale 0 → 1 | {f'≥ {bar:g} ×' if bar else ''} | {shown} | {verdict} |")
    return rows


def table_of_files(to: Path) -> str:
    """Every weight file and its size."""
    rows = ["| file | kB |", "|---|---|"]
    for path in sorted(to.rglob("*.safetensors")):
        rows.append(f"| {path.relative_to(to)} | {path.stat().st_size / 1000:.0f} |")
    total = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    return "\n".join([*rows, f"| everything here | {total / 1000:.0f} |"])


def write_card(config: dict[str, Any], to: Path) -> None:
    """Fill the template. Side effects: replaces `to`/MODEL_CARD.md."""
    path = to / "evaluation.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    nouns = emoji.load_nouns()
    words = ", ".join(f"{n.name} ({', '.join(n.synonyms)})" if n.synonyms else n.name for n in nouns)
    adapters = "\n".join(
        f"* `{name}` ({part.get('kind', 'embedding')}): {part['description']}"
        + (f". Trigger words: `{part['trigger']}` (optional)" if part.get("trigger") else "")
        for name, part in {**config["adapters"], **config["embeddings"]}.items()
    )
    text = (HERE / "card.md").read_text().format(
        nouns=len(nouns),
        words=words,
        tints=", ".join(picture.TINTS),
        backgrounds=", ".join(picture.BACKGROUNDS),
        bars=table_of_bars(results),
        files=table_of_files(to),
        adapters=adapters,
        figures=json.dumps(results, indent=1, ensure_ascii=False),
    )  # fmt: skip
    (to / "MODEL_CARD.md").write_text(text)
