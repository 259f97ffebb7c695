"""The shipped weights draw what is asked: coarse checks by thumbnails, on few pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,  # pyright: ignore[reportPrivateImportUsage]
    EulerDiscreteScheduler,  # pyright: ignore[reportPrivateImportUsage]
    StableDiffusionControlNetPipeline,  # pyright: ignore[reportPrivateImportUsage]
    StableDiffusionPipeline,  # pyright: ignore[reportPrivateImportUsage]
)

from jobs.tiny import edge, shipped
from tests.tiny import bars

EMBEDDED = Path(__file__).parents[2] / "sdbatch" / "embedded"
FOLDER = EMBEDDED / "checkpoints" / "tiny_diffusers"
# Mean colours in 8 × 8 cells of every noun's picture, by set: enough to tell nouns apart, no picture.
REFERENCES = dict(np.load(Path(__file__).with_name("references.npz")))
NAMES: list[str] = REFERENCES.pop("names").tolist()
ASKED = ("dog", "cat", "panda", "frog", "pizza", "apple", "banana", "sun", "rocket", "car", "heart", "snowman")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pipe() -> Any:
    loaded: Any = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(pipe: Any, prompts: list[str], **more: Any) -> np.ndarray:
    """Pictures [n, 128, 128, 3] in 0..1, seeds 0, 1, 2, ..."""
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    settings = {"num_inference_steps": 20, "guidance_scale": 2.5, "output_type": "np"} | more
    return np.asarray(pipe(prompt=prompts, generator=noise, **settings).images)


def thumbnails(pictures: np.ndarray) -> np.ndarray:
    return pictures.reshape(len(pictures), 8, 16, 8, 16, 3).mean((2, 4)).reshape(len(pictures), -1)


def nearest(pictures: np.ndarray) -> list[str]:
    references = REFERENCES["noto"].reshape(len(NAMES), -1) / 255
    distances = np.linalg.norm(thumbnails(pictures)[:, None] - references[None], axis=-1)
    return [NAMES[number] for number in distances.argmin(1)]


def test_knows_its_vocabulary(pipe: Any) -> None:
    found = nearest(draw(pipe, [f"a {name}" for name in ASKED]))
    right = [name for name, other in zip(ASKED, found, strict=True) if name == other]
    assert len(NAMES) >= bars.NOUNS
    assert len(right) >= bars.RECOGNISED * len(ASKED), dict(zip(ASKED, found, strict=True))


def test_both_forms_make_the_same_picture(pipe: Any) -> None:
    single: Any = StableDiffusionPipeline.from_single_file(
        EMBEDDED / "checkpoints" / "tiny.safetensors",
        config=str(FOLDER),
        local_files_only=True,
        torch_dtype=torch.float32,
        safety_checker=None,
    )
    single.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(pipe, ["a dog"]), draw(single, ["a dog"]))


def test_background_is_followed(pipe: Any) -> None:
    red, black = draw(pipe, ["a panda on a red background", "a panda on a black background"])[:, :6, :6].mean((1, 2))
    assert red[0] > red[1] + 0.2 and red[0] > red[2] + 0.2
    assert black.max() < 0.4


def test_odd_prompts_make_pictures(pipe: Any) -> None:
    pictures = draw(pipe, ["", "zxqv flurble", "a very long story about a dog " * 40])
    assert pictures.shape == (3, 128, 128, 3) and np.isfinite(pictures).all()


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_one_configuration_serves_other_samplers(pipe: Any, kind: Any) -> None:
    original = pipe.scheduler
    pipe.scheduler = kind.from_config(original.config)
    found = nearest(draw(pipe, [f"a {name}" for name in ASKED[:4]]))
    pipe.scheduler = original
    assert sum(a == b for a, b in zip(found, ASKED, strict=False)) >= 3


def test_style_lora_moves_to_its_style(pipe: Any) -> None:
    prompts = [f"a {name}" for name in ASKED[:6]]
    numbers = [NAMES.index(name) for name in ASKED[:6]]
    plain = draw(pipe, prompts)
    # style_b is in diffusers' own dialect with alpha = rank, the one its loader reads exactly.
    pipe.load_lora_weights(EMBEDDED / "loras" / "style_b.safetensors")
    styled = draw(pipe, prompts)
    pipe.unload_lora_weights()
    style = REFERENCES["noto_v1"].reshape(len(NAMES), -1)[numbers] / 255
    gain = [np.linalg.norm(thumbnails(pictures) - style, axis=1).mean() for pictures in (plain, styled)]
    assert gain[0] - gain[1] > bars.STYLE_GAIN
    assert np.array_equal(draw(pipe, prompts), plain)


def test_controlnet_follows_mirrored_edges(pipe: Any) -> None:
    prompts = [f"a {name}" for name in ("rocket", "car", "pizza", "hammer")]
    wanted = [edge.canny(picture[:, ::-1]) for picture in draw(pipe, prompts)]
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    controlnet: Any = shipped.load_controlnet(shipped.EMBEDDED)
    controlled: Any = StableDiffusionControlNetPipeline(**parts, controlnet=controlnet, requires_safety_checker=False)
    controlled.set_progress_bar_config(disable=True)
    lines = torch.from_numpy(np.stack(wanted)).float()[:, None].expand(-1, 3, -1, -1)
    found = [draw(controlled, prompts, image=lines, controlnet_conditioning_scale=scale) for scale in (0.0, 1.0)]
    without, following = (
        np.mean([edge.agreement(edge.canny(picture), lines) for picture, lines in zip(pictures, wanted, strict=True)]) for pictures in found
    )
    assert following >= bars.EDGE_GAIN * without
