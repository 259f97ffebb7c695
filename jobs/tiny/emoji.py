"""Emoji pictures: SVG sets from the npm registry, rendered once to RGBA arrays."""

import io
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

VOCABULARY_FILE = Path(__file__).with_name("vocabulary.yaml")
# Permissive licences only; versions are pinned because a redrawn emoji is another training picture.
PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",  # Apache-2.0, the base style
    "noto_v1": "@iconify-json/noto-v1@1.2.5",  # Apache-2.0, the "blob" generation
    "fluent_flat": "@iconify-json/fluent-emoji-flat@1.2.6",  # MIT
}
MARGIN_PX = 8  # one latent cell, so that shifting by cells does not cut the picture


@dataclass(frozen=True)
class Noun:
    """One word the model knows."""

    name: str
    emoji: str
    synonyms: tuple[str, ...] = ()


def load_nouns(path: Path = VOCABULARY_FILE) -> list[Noun]:
    """Read the vocabulary file, in its order."""
    nouns = []
    for name, text in yaml.safe_load(path.read_text()).items():
        emoji, _, rest = text.partition(" ")
        nouns.append(Noun(name, emoji, tuple(word.strip() for word in rest.split(",") if word.strip())))
    return nouns


def fetch_sets(folder: Path) -> None:
    """Install the emoji sets with npm. Side effects: writes `folder`/node_modules."""
    if (folder / "node_modules").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES.values()]
    subprocess.run(command, cwd=folder, check=True)


def _read_set(folder: Path, name: str) -> tuple[dict, dict[str, str]]:
    package = folder / "node_modules" / PACKAGES[name].rpartition("@")[0]
    icons = json.loads((package / "icons.json").read_text())
    return icons, json.loads((package / "chars.json").read_text())


def _find_icon(icons: dict, chars: dict[str, str], emoji: str) -> str | None:
    code = "-".join(f"{ord(char):x}" for char in emoji if ord(char) != 0xFE0F)
    name = chars.get(code) or chars.get(f"{code}-fe0f")
    if name in icons.get("aliases", {}):
        name = icons["aliases"][name]["parent"]
    return name if name in icons["icons"] else None


def _to_svg(icons: dict, name: str) -> str:
    icon = icons["icons"][name]
    height = icon.get("height", icons.get("height", 16))
    width = icon.get("width", icons.get("width", height))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{box}" width="{width}" height="{height}">{icon["body"]}</svg>'


def _render(svg: str, size_px: int) -> np.ndarray:
    """Draw, cut to what is visible, centre with the margin. Returns uint8 [size, size, 4]."""
    import resvg_py  # here, because pictures drawn before need no renderer

    png = resvg_py.svg_to_bytes(svg_string=svg, width=4 * size_px, height=4 * size_px)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    alpha = np.array(image)[..., 3]
    ys, xs = np.where(alpha > 8)
    image = image.crop((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    scale = (size_px - 2 * MARGIN_PX) / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.LANCZOS)
    canvas = Image.new("RGBA", (size_px, size_px), (255, 255, 255, 0))
    canvas.paste(image, ((size_px - image.width) // 2, (size_px - image.height) // 2))
    return np.array(canvas)


def render_set(set_name: str, nouns: list[Noun], folder: Path, size_px: int) -> np.ndarray:
    """Render nouns in one set. Returns uint8 [noun, size, size, 4].

    Raises: LookupError when the set lacks an emoji.
    """
    fetch_sets(folder)
    icons, chars = _read_set(folder, set_name)
    # noto-v1 ships no character table; its icons carry the names of noto.
    chars = chars or _read_set(folder, "noto")[1]
    rendered = []
    for noun in nouns:
        icon = _find_icon(icons, chars, noun.emoji)
        if icon is None:
            raise LookupError(f"vocabulary: {noun.name} {noun.emoji} is not in {set_name}; choose another noun")
        rendered.append(_render(_to_svg(icons, icon), size_px))
    return np.stack(rendered)


def load_pictures(out: Path, size_px: int) -> dict[str, np.ndarray]:
    """Return every set's pictures of the vocabulary, drawing them on first use."""
    nouns = load_nouns()
    names = [f"{noun.name} {noun.emoji}" for noun in nouns]
    cache = out / f"pictures_{size_px}.npz"
    if cache.exists():
        data = np.load(cache)
        if list(data["names"]) == names:
            return {name: data[name] for name in PACKAGES}
    out.mkdir(parents=True, exist_ok=True)
    pictures = {name: render_set(name, nouns, out / "npm", size_px) for name in PACKAGES}
    np.savez(cache, names=np.array(names), **pictures)
    return pictures
