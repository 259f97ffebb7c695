"""Measurements of what stands around the base: LoRA and kin, embeddings, ControlNet, second VAE, second checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
from diffusers import StableDiffusionControlNetPipeline
from PIL import Image

from jobs.tiny import adapter, edge, emoji, feature, generate, network, picture, scene, shipped
from jobs.tiny.bench import Bench, share

Figures = dict[str, Any]
STYLES = {
    "style_a": "fluent_flat",
    "style_b": "noto_v1",
    "pixel_locon": "pixelate",
    "sepia_loha": "sepia",
}
STRENGTHS = (0.0, 0.5, 1.0)


def measure_styles(b: Bench) -> Figures:
    """Each style at strengths 0, ½, 1: nearer to the style's picture of the noun than to the base's, noun retained."""
    chosen = b.spread(b.lora_nouns)
    plain = generate.generate(b.pipe, b.prompts(chosen), chosen)
    figures: Figures = {}
    for name, source in STYLES.items():
        path = b.embedded / "loras" / f"{name}.safetensors"
        if not path.exists():
            continue
        figures[name], images = {}, list(plain[:8])
        for strength in STRENGTHS:
            with adapter.merged(b.pipe, path, strength):
                made = generate.generate(b.pipe, b.prompts(chosen), chosen) if strength else plain
            figures[name][str(strength)] = judge_style(b, made, chosen, source)
            images += made[:8] if strength else []
        figures[name]["zero_identical"] = is_identical(b, path, chosen[:2])
        b.show(images, name, 8)
    return figures


def is_identical(b: Bench, path: Path, chosen: list[int]) -> bool:
    """Strength 0 and taking the adapter off again both give the very same bytes."""
    plain = generate.generate(b.pipe, b.prompts(chosen), chosen)
    with adapter.merged(b.pipe, path, 0.0):
        zero = generate.generate(b.pipe, b.prompts(chosen), chosen)
    with adapter.merged(b.pipe, path, 1.0):
        pass
    after = generate.generate(b.pipe, b.prompts(chosen), chosen)
    return all(p.tobytes() == z.tobytes() == a.tobytes() for p, z, a in zip(plain, zero, after, strict=True))


def judge_style(b: Bench, images: list[Image.Image], chosen: list[int], source: str) -> Figures:
    """Share classified as the style, mean margin, share whose noun is still the nearest of all in both looks."""
    features, wanted = feature.describe(images), np.array(chosen)
    to_base, to_style = ((features * b.decoded_references(make)[wanted]).sum(1) for make in ("noto", source))
    nearest = feature.nearest(features, np.concatenate([b.references(), b.references(source)])) % len(b.nouns)
    return {
        "style": share(to_style > to_base),
        "margin": round(float((to_style - to_base).mean()), 4),
        "subject": share(nearest == wanted),
    }


def measure_concept(b: Bench) -> Figures:
    """The concept LoRA: nearest of all nouns and the new one, with and without the file."""
    path = b.embedded / "loras" / "dinosaur.safetensors"
    new = emoji.render_set("noto", [emoji.Noun("dinosaur", "🦖")], b.out / "npm", network.SIZE_PX)
    references = np.concatenate([b.references(), feature.describe_rgba(new)])
    figures: Figures = {}
    images = []
    for strength in (0.0, 1.0):
        with adapter.merged(b.pipe, path, strength):
            made = generate.generate(b.pipe, ["a dinosaur"] * 8, list(range(8)))
            chosen = b.spread(16)
            others = generate.generate(b.pipe, b.prompts(chosen), chosen)
        found = feature.nearest(feature.describe(made), references)
        kept = feature.nearest(feature.describe(others), references)
        figures[str(strength)] = {"new": share(found == len(b.nouns)), "others": share(kept == np.array(chosen))}
        images += made
    b.show(images, "dinosaur", 8)
    return figures


def measure_embeddings(b: Bench) -> Figures:
    """The positive embedding's look, and what the negative one does to saturation."""
    chosen = b.spread(b.control_nouns)
    prompts = b.prompts(chosen)
    plain = generate.generate(b.pipe, prompts, chosen)
    for name in ("vaporwave", "dull"):
        b.pipe.load_textual_inversion(b.embedded / "embeddings" / f"{name}.safetensors", token=name)
    positive = generate.generate(b.pipe, [f"{prompt}, vaporwave" for prompt in prompts], chosen)
    negative = generate.generate(b.pipe, prompts, chosen, negative_prompt=["dull"] * len(prompts))
    b.pipe.unload_textual_inversion()
    scenes = [scene.Scene(i, "both", t, g) for i in chosen for t, g in ((None, None), ("pink", "purple"))]
    ideals = feature.describe_arrays(np.stack([b.draw(item) for item in scenes])).reshape(len(chosen), 2, -1)
    look = np.einsum("nf,ncf->nc", feature.describe(positive), ideals).argmax(1) == 1
    b.show(plain[:8] + positive[:8] + negative[:8], "embeddings", 8)
    return {"vaporwave": share(look), "saturation": _saturation(plain), "saturation_not_dull": _saturation(negative)}


def _saturation(images: list[Image.Image]) -> float:
    rgb = feature.to_array(images)
    return round(float((rgb.max(-1) - rgb.min(-1)).mean()), 4)


def load_controlnet(b: Bench) -> StableDiffusionControlNetPipeline:
    """The base with the shipped ControlNet."""
    parts = {name: part for name, part in b.pipe.components.items() if name != "image_encoder"}
    controlnet = shipped.load_controlnet(b.embedded)
    pipe = StableDiffusionControlNetPipeline(**parts, controlnet=controlnet, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure_controlnet(b: Bench) -> Figures:
    """Edge agreement at scale 0 and 1: edges of the picture itself, of its mirror image, of that smaller in a corner."""
    pipe, chosen = load_controlnet(b), b.spread(b.control_nouns)
    figures: Figures = {}
    images = []
    for kind in ("plain", "flipped", "moved"):
        targets = [_target(b, index, kind) for index in chosen]
        edges = [edge.canny(rgb) for rgb in targets]
        conditions = [picture.to_image(edge.to_condition(rgb)) for rgb in targets]
        wanted, figures[kind] = feature.describe_arrays(np.stack(targets)), {}
        images += conditions[:8]
        for scale in (0.0, 1.0):
            more = {"image": conditions, "controlnet_conditioning_scale": scale}
            made = generate.generate(pipe, b.prompts(chosen), chosen, **more)
            scores = [edge.agreement(edge.canny(a), e) for a, e in zip(feature.to_array(made), edges, strict=True)]
            likeness = (feature.describe(made) * wanted).sum(1).mean()
            figures[kind][str(scale)] = {
                "edges": round(float(np.mean(scores)), 4),
                "likeness": round(float(likeness), 4),
            }
            images += made[:8]
    b.show(images, "controlnet", 8)
    return figures


def _target(b: Bench, index: int, kind: str) -> np.ndarray:
    """The picture, its mirror image, or that at three quarters of the size in a corner."""
    if kind == "plain":
        return b.draw(scene.Scene(index))
    if kind == "flipped":
        return b.draw(scene.Scene(index))[:, ::-1]
    corner = ((0, 0), (4, 0), (0, 4), (4, 4))[index % 4]
    return b.draw(scene.Scene(index, "shifted", cell_xy=corner))[:, ::-1]


def measure_variants(b: Bench) -> Figures:
    """The second checkpoint's look and the second VAE's colours."""
    chosen = b.spread(b.control_nouns)
    plain = generate.generate(b.pipe, b.prompts(chosen), chosen)
    second = shipped.load_file(b.embedded, shipped.SECOND)
    pastel = generate.generate(second, b.prompts(chosen), chosen)
    vae = b.pipe.vae
    b.pipe.vae = shipped.load_second_vae(b.embedded)
    vivid = generate.generate(b.pipe, b.prompts(chosen), chosen)
    b.pipe.vae = vae
    b.show(plain[:8] + pastel[:8] + vivid[:8], "variants", 8)
    look = judge_style(b, pastel, chosen, "pastel")
    return {"pastel": look, "saturation": _saturation(plain), "saturation_vivid": _saturation(vivid)}
