"""What a training picture shows, and how a person would ask for it."""

import hashlib
import random
from dataclasses import dataclass

import numpy as np

from jobs.tiny import picture
from jobs.tiny.emoji import Noun

SHARES = {"plain": 0.34, "background": 0.2, "tint": 0.16, "both": 0.12, "small": 0.06, "shifted": 0.03}
SHARES |= {"mirrored": 0.04, "pair": 0.05}
PLACES = {"": (4, 4), "on the left": (0, 4), "on the right": (8, 4), "at the top": (4, 0), "at the bottom": (4, 8)}
PREFIXES = ("", "", "", "", "a picture of ", "an emoji of ", "an icon of ", "a drawing of ", "a photo of ")
SMALL_PX, SHIFTED_PX = 64, 96


@dataclass(frozen=True)
class Scene:
    """One picture. `noun` and `second` index the vocabulary; None means absent, white or untinted."""

    noun: int
    kind: str = "plain"
    tint: str | None = None
    background: str | None = None
    cell_xy: tuple[int, int] | None = None
    second: int | None = None


def _number(*parts: str) -> int:
    return int(hashlib.md5("|".join(parts).encode()).hexdigest(), 16)


def held_out_tint(noun: Noun) -> str:
    """The tint this noun is never trained with."""
    return picture.TINTS[_number("tint", noun.name) % len(picture.TINTS)]


def held_out_background(noun: Noun) -> str:
    """The background this noun is never trained with."""
    return list(picture.BACKGROUNDS)[_number("background", noun.name) % len(picture.BACKGROUNDS)]


def allowed(noun: Noun) -> tuple[list[str], list[str]]:
    """Tints and backgrounds that training may show with this noun."""
    tints = [name for name in picture.TINTS if name != held_out_tint(noun)]
    return tints, [name for name in picture.BACKGROUNDS if name != held_out_background(noun)]


def list_scenes(nouns: list[Noun], both_per_noun: int, pairs_per_noun: int, seed: int) -> list[Scene]:
    """All scenes of the base training, held-out combinations left out."""
    scenes = []
    for index, noun in enumerate(nouns):
        rng = random.Random(f"{seed} {noun.name}")
        tints, backgrounds = allowed(noun)
        scenes.append(Scene(index))
        scenes += [Scene(index, "background", background=name) for name in backgrounds]
        scenes += [Scene(index, "tint", tint=name) for name in tints]
        combinations = [(t, b) for t in tints for b in backgrounds if t != b]
        for tint, background in rng.sample(combinations, min(both_per_noun, len(combinations))):
            scenes.append(Scene(index, "both", tint, background))
        scenes += [Scene(index, "small", cell_xy=cell) for cell in PLACES.values()]
        scenes += [Scene(index, "shifted", cell_xy=(rng.randint(0, 4), rng.randint(0, 4))) for _ in range(4)]
        scenes.append(Scene(index, "mirrored"))
        scenes += [Scene(index, "mirrored", background=name) for name in rng.sample(backgrounds, 2)]
        others = [other for other in range(len(nouns)) if other != index]
        for other in rng.sample(others, min(pairs_per_noun, len(others))):
            scenes.append(Scene(index, "pair", second=other))
    return scenes


def draw(scene: Scene, pictures: np.ndarray) -> np.ndarray:
    """Compose the scene. Shapes: pictures uint8 [noun, h, w, 4] → float [h, w, 3] in 0..1."""
    rgba = pictures[scene.noun]
    if scene.kind == "small" and scene.cell_xy:
        rgba = picture.place(rgba, SMALL_PX, scene.cell_xy)
    elif scene.kind == "shifted" and scene.cell_xy:
        rgba = picture.place(rgba, SHIFTED_PX, scene.cell_xy)
    elif scene.kind == "mirrored":
        rgba = rgba[:, ::-1]
    elif scene.second is not None:
        left = picture.place(rgba, SMALL_PX, PLACES["on the left"])
        right = picture.place(pictures[scene.second], SMALL_PX, PLACES["on the right"])
        rgba = np.concatenate([left[:, :SMALL_PX], right[:, SMALL_PX:]], 1)
    return picture.compose(rgba, scene.background, scene.tint)


def with_article(words: str) -> str:
    """ "a dog", "an apple"."""
    vowel = words[0] in "aeiou" and not words.startswith("uni")
    return f"{'an' if vowel else 'a'} {words}"


def _name(noun: Noun, rng: random.Random) -> str:
    return rng.choice(noun.synonyms) if noun.synonyms and rng.random() < 0.2 else noun.name


def describe(scene: Scene, nouns: list[Noun], rng: random.Random) -> str:
    """One of the many ways to ask for this picture."""
    words = _name(nouns[scene.noun], rng)
    if scene.tint:
        words = f"{scene.tint} {words}"
    if scene.kind == "small":
        words = f"small {words}"
    if scene.kind == "mirrored" and rng.random() < 0.6:
        words = f"mirrored {words}"
    bare = rng.random() > 0.6
    words = words if bare else with_article(words)
    if scene.second is not None:
        other = _name(nouns[scene.second], rng)
        words += " and " + (other if bare else with_article(other))
    words = rng.choice(PREFIXES) + words
    if scene.kind == "small" and scene.cell_xy:
        side = next(name for name, cell in PLACES.items() if cell == scene.cell_xy)
        words += f" {side}" if side else ""
    if scene.background:
        words += rng.choice([" on a {} background", " on {} background", ", {} background"]).format(scene.background)
    elif rng.random() < 0.1:
        words += rng.choice([" on a white background", ", white background"])
    return words
