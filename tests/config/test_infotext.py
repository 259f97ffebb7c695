"""A1111's infotext as a command line: what sdbatch wrote gives the same image again, what others wrote as much as it tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdbatch.config.infotext import command_of
from sdbatch.results.infotext import Infotext, infotext_of, parse, write
from tests.conftest import Sdbatch
from tests.planning import image_ids, plan_of

A1111 = """masterpiece, (red car:1.2), <lora:style a:0.8:0.5>, <hypernet:anime>
street at "night"
Negative prompt: EasyNegative, lowres
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1234567890, Size: 512x768, Model hash: 6ce0161689, \
Model: v1-5-pruned-emaonly, VAE hash: 735e4c3a44, VAE: vae-ft-mse-840000-ema-pruned.safetensors, Denoising strength: 0.4, \
Clip skip: 2, ENSD: 31337, Hires upscale: 2, Hires upscaler: 4x-UltraSharp, TI hashes: "EasyNegative: c74b4e810b03", Version: v1.10.1"""


def test_what_a1111_wrote_becomes_a_command() -> None:
    command = command_of(parse(A1111.replace("\\\n", "")))
    assert command.words == [
        "checkpoint=v1-5-pruned-emaonly",
        "checkpoint.sha256=6ce0161689",
        "vae=vae-ft-mse-840000-ema-pruned",
        "vae.sha256=735e4c3a44",
        'lora=["style a"]',
        "hypernetwork=[anime]",
        "embedding=[EasyNegative]",
        "lora.style a.weight=0.5",
        "lora.style a.text_encoder_weight=0.8",
        "sampler=dpmpp_2m_karras",
        "task=hires",
        "task.upscaler=4x-UltraSharp",
        "task.scale=2",
        "task.strength=0.4",
        "task.steps=50",  # A1111 runs 20 of them, as of the first pass
        "steps=20",
        "guidance_scale=7",
        "seed=1234567890",
        "clip_skip=2",
        "width=512",
        "height=768",
        'prompt="masterpiece, (red car:1.2)\nstreet at \\"night\\""',
        'negative_prompt="EasyNegative, lowres"',
    ]
    assert any("noise was drawn on a GPU" in line for line in command.left)
    assert "not read: ENSD: 31337" in command.left


def test_what_cannot_be_read_is_told() -> None:
    command = command_of(Infotext("a car", "", {"Steps": "many", "Sampler": "Restart", "Denoising strength": "0.6"}))
    assert command.words == ['prompt="a car"']
    assert {"not read: Steps: many", "not read: Sampler: Restart"} <= set(command.left)
    assert any("task=img2img task.image=FILE task.strength=0.6" in line for line in command.left)


@pytest.mark.parametrize(
    "given",
    [
        ["lora=[red,blue]", "lora.red.weight=0.35", "lora.blue.text_encoder_weight=0", "lora.blue.blocks=MIDD", "seed=4294967295"],
        ["sampler=ddim_trailing", "vae=soft", "clip_skip=2", "guidance_rescale=0.7", "negative_prompt=blurry"],
        ["task=hires", "task.upscaler=latent_bicubic", "task.strength=0.3", "steps=13", "task.steps=17"],
        ["task=hires", "task.width=256", "task.height=192", "width=128", "height=128", "task.upscaler=lanczos", "guidance_scale=2.25"],
        ["""prompt='a "fox", (sitting:1.2) [a|b] {c}'""", "checkpoint=other"],
        ["prompt='a nice fox'", "embedding=[nice]"],
    ],
    ids=lambda given: given[0],
)
@pytest.mark.usefixtures("workspace")
def test_what_sdbatch_wrote_gives_the_same_image(given: list[str]) -> None:
    plan = plan_of(*given)
    command = command_of(parse(write(infotext_of(plan.cell(0)))))
    again = plan_of(*command.words)
    assert not command.left
    assert len(again) == 1
    told = again.cell(0)
    if (first := plan.cell(0).hires) is not None and (second := told.hires) is not None:
        # Written in another way: of the steps only those that are run are told, and a size may come from a factor.
        assert int(second.steps * second.strength) == int(first.steps * first.strength)
        assert replace(second, steps=first.steps) == first
        assert replace(told, hires=None, image_id="", config="") == replace(plan.cell(0), hires=None, image_id="", config="")
    else:
        assert image_ids(again) == image_ids(plan)


def test_inspect_tells_the_command_of_a_picture_and_says_what_it_cannot_read(workspace: Path, sdbatch: Sdbatch) -> None:
    from PIL import Image, PngImagePlugin

    for key in ("parameters", "workflow"):
        texts = PngImagePlugin.PngInfo()
        texts.add_text(key, A1111)
        Image.new("RGB", (8, 8)).save(workspace / f"{key}.png", pnginfo=texts)
    told = sdbatch("inspect", "parameters.png", "workflow.png", "control.png", "models/loras/red.safetensors")
    assert told.returncode == 1
    assert told.stdout.startswith("sdbatch \\\n  checkpoint=v1-5-pruned-emaonly")
    assert "models/loras/red.safetensors" in told.stdout
    assert "workflow.png: holds ComfyUI's graph" in told.stderr
    assert "control.png: holds nothing of how it was made" in told.stderr
    assert "sdbatch inspect" in sdbatch("replay", "parameters.png").stderr
