from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdbatch
from sdbatch.cell import ImagePrompt, Strength
from sdbatch.results.infotext import Infotext, infotext_of, parse, write
from sdbatch.results.png import png_of
from tests.results.samples import INPAINT, RECIPE, make_cell, make_picture, weight_file

# As A1111 and its many readers split the last line.
A1111 = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')

pieces = st.sampled_from(
    ["\n", "Negative prompt: ", "Steps: 20, ", "\\", '"', ",", ":", "{", "}", ", Hashes: {", "\r", "\u2028", "é", "猫", " "]
)
texts = st.lists(st.one_of(pieces, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)), max_size=8).map(
    "".join
)
keys = st.from_regex(r"[A-Z][a-zA-Z0-9 \-/]{1,12}", fullmatch=True).filter(lambda key: key not in ("Hashes", "Steps"))


@given(prompt=texts, negative=texts, parameters=st.dictionaries(keys, texts, max_size=4), hashes=st.dictionaries(texts, texts, max_size=3))
def test_what_is_written_is_read_back(prompt: str, negative: str, parameters: dict[str, str], hashes: dict[str, str]) -> None:
    info = Infotext(prompt, negative, {"Steps": "20", **parameters}, hashes)
    assert parse(write(info)) == info


@given(prompt=texts, negative=texts)
def test_a_prompt_cannot_forge_a_field(prompt: str, negative: str) -> None:
    lines = write(replace(infotext_of(make_cell()), prompt=prompt, negative_prompt=negative)).split("\n")
    assert sum("Negative prompt:" in line for line in lines) == (1 if negative else 0)
    assert [line.startswith("Steps: ") for line in lines].index(True) == len(lines) - 1
    assert len(A1111.findall(lines[-1])) >= 3


def test_the_text_is_the_golden_one() -> None:
    model, vae, ink, neon, bad, edges = (weight_file(name).sha256 for name in ("tiny", "sharp", "ink", "neon", "badhands", "edges"))
    assert write(infotext_of(make_cell(9), {"ink": "0123456789ab"})) == (
        "a red circle, badhands <lora:ink:0.25:0.5> <lora:neon:1>\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 9, Size: 24x16, "
        f"Model hash: {model[:10]}, Model: tiny, VAE hash: {vae[:10]}, VAE: sharp, Clip skip: 2, RNG: CPU, "
        f'ControlNet 0: "Module: canny, Model: edges [{edges[:8]}], Weight: 0.8, Guidance Start: 0, Guidance End: 0.5", '
        f'Lora hashes: "ink: 0123456789ab, neon: {neon[:10]}", TI hashes: "badhands: {bad[:12]}", Version: sdbatch {sdbatch.__version__}, '
        f'Hashes: {{"model": "{model[:10]}", "vae": "{vae[:10]}", "lora:ink": "{ink[:10]}", "lora:neon": "{neon[:10]}", '
        f'"embed:badhands": "{bad[:10]}"}}'
    )


def test_what_was_made_of_a_picture_is_said_in_a1111_s_words() -> None:
    told = infotext_of(make_cell(source=INPAINT)).parameters
    assert (told["Denoising strength"], told["Mask blur"], told["Masked content"]) == ("0.6", "4", "latent noise")
    order = list(told)
    assert order.index("Model") < order.index("Denoising strength") < order.index("Clip skip") < order.index("Mask blur")
    bare = infotext_of(make_cell(source=replace(INPAINT, mask=None))).parameters
    assert bare["Denoising strength"] == "0.6"
    assert not {"Mask blur", "Masked content"} & bare.keys()
    assert "Denoising strength" not in infotext_of(make_cell()).parameters


def test_block_weights_and_hypernetworks_are_said_in_the_prompt_as_a1111_says_them() -> None:
    recipe = replace(make_cell().recipe, hypernetworks=(weight_file("anime"),))
    strengths = (Strength(0.5, 0.25, "MIDD"), Strength(1, 1, "1,0.5"))
    cell = make_cell(recipe=recipe, strengths=strengths, hypernetwork_weights=(0.75,))
    tags = "<lora:ink:0.25:0.5:lbw=MIDD> <lora:neon:1:lbw=1,0.5> <hypernet:anime:0.75>"
    assert infotext_of(cell).prompt == f"a red circle, badhands {tags}"


def test_an_ip_adapter_is_one_more_unit_of_a1111_s_extension() -> None:
    follow = weight_file("follow")
    recipe = replace(make_cell().recipe, ip_adapters=(follow,), image_encoders=(weight_file("eye"),))
    cell = make_cell(recipe=recipe, image_prompts=(ImagePrompt("/home/someone/cat.png", "cd" * 32, 0.6, 0.0, 0.9),))
    told = parse(write(infotext_of(cell))).parameters
    assert told["ControlNet 0"].startswith("Module: canny, Model: edges")
    unit = f"Module: ip-adapter-auto, Model: follow [{follow.sha256[:8]}], Weight: 0.6, Guidance Start: 0, Guidance End: 0.9"
    assert told["ControlNet 1"] == unit


def test_a_plain_cell_says_no_more_than_it_has() -> None:
    plain = replace(RECIPE, vae=None, loras=(), embeddings=(), controlnets=())
    text = write(infotext_of(make_cell(recipe=plain, strengths=(), controls=(), clip_skip=1, negative_prompt="", guidance_scale=7.0)))
    assert text.startswith("a red circle, badhands\nSteps: 20, ") and "CFG scale: 7," in text
    for absent in ("VAE", "Lora", "TI", "ControlNet", "Clip skip", "Negative", "<lora"):
        assert absent not in text


@pytest.mark.parametrize(
    "prompt", ["a cat", "ein Löwe, 猫", "cat\nNegative prompt: forged\nSteps: 1, Sampler: Fake, Seed: 5", 'say "x: y", please']
)
def test_an_independent_parser_reads_the_png(prompt: str, tmp_path: Path) -> None:
    sd_parsers = pytest.importorskip("sd_parsers")
    # Without ControlNets: this reader takes the Model inside their quotes for the checkpoint, in A1111's own files too.
    picture = make_picture(11, prompt=prompt, recipe=replace(RECIPE, controlnets=()), controls=())
    (tmp_path / "x.png").write_bytes(png_of(picture.cell, picture.pixels))
    found = sd_parsers.ParserManager().parse(tmp_path / "x.png")
    assert found.generator.value == "AUTOMATIC1111"
    (sampler,) = found.samplers
    assert sampler.name == "DPM++ 2M" and sampler.parameters["seed"] == "11" and sampler.parameters["steps"] == "20"
    assert sampler.model.name == "tiny" and sampler.model.hash == weight_file("tiny").sha256[:10]
    (shown,), (negative,) = sampler.prompts, sampler.negative_prompts
    assert negative.value == "blurry"
    assert shown.value.replace("\\:", ":").startswith(prompt)
    assert found.metadata["Hashes"]["lora:ink"] == weight_file("ink").sha256[:10]
