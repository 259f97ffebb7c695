"""Block weights: a factor for each block of the denoiser, another for each image."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

from sdbatch.adapters.dialect import split_component
from sdbatch.adapters.lora import match_lora
from sdbatch.adapters.names import name_table
from sdbatch.adapters.read import TensorFile
from sdbatch.adapters.shapes import shapes_of
from sdbatch.adapters.stack import AdapterStack
from sdbatch.cell import Strength, WeightFile
from sdbatch.errors import ConfigError
from sdbatch.families.lora_blocks import FLUX_BLOCKS, UNET_BLOCKS, block_names, read_lora_blocks, to_text
from sdbatch.naming.block import find_blocks
from tests.adapters.lora_files import kohya
from tests.adapters.test_lora import run
from tests.pipeline.models import TinyModel, add_to_weights

FILE = WeightFile("style", "/style.safetensors", "0")


def named(text: str, family: str = "sd1") -> dict[str, float]:
    return {name: value for name, value in zip(block_names(family), read_lora_blocks(text, family), strict=True) if value}


def test_a_vector_of_17_names_the_blocks_that_a_lora_of_sd1_has() -> None:
    assert named(",".join(str(n) for n in range(1, 18))) == {
        **{"BASE": 1, "IN01": 2, "IN02": 3, "IN04": 4, "IN05": 5, "IN07": 6, "IN08": 7, "M00": 8},
        **{f"OUT{n:02}": n + 6 for n in range(3, 12)},
    }


def test_vectors_of_sdxl_and_flux_and_whole_ones() -> None:
    assert named("1,2,3,4,5,6,7,8,9,10,11,12", "sdxl") == {
        **{"BASE": 1, "IN04": 2, "IN05": 3, "IN07": 4, "IN08": 5, "M00": 6},
        **{f"OUT{n:02}": n + 7 for n in range(6)},
    }
    assert tuple(named(",".join(["1"] * 20), "sdxl")) == ("BASE", *UNET_BLOCKS[1:10], "M00", *UNET_BLOCKS[14:23])
    assert tuple(named(",".join(["1"] * 26))) == UNET_BLOCKS
    assert tuple(named(",".join(["1"] * 61), "flux")) == FLUX_BLOCKS


def test_presets_are_those_of_the_extension() -> None:
    assert set(named("MIDD")) == {"BASE", "IN05", "IN07", "IN08", "M00", "OUT03", "OUT04", "OUT05", "OUT06"}
    assert set(named("OUTS")) == {"BASE", "OUT07", "OUT08", "OUT09", "OUT10", "OUT11"}
    assert set(named("INALL", "sdxl")) == {"BASE", "IN04", "IN05", "IN07", "IN08"}
    assert not named("NONE")
    assert tuple(named("ALL", "flux")) == tuple(named("FLUXALL", "flux")) == FLUX_BLOCKS


@pytest.mark.parametrize(
    ("text", "family", "told"),
    [
        ("MIDDD", "sd1", "there is no preset 'MIDDD'. Did you mean MIDD"),
        ("1,0", "sd1", "2 numbers were given; LoRAs of sd1 have 17 or 26"),
        (",".join(["1"] * 17), "sdxl", "17 numbers were given; LoRAs of sdxl have 12 or 20 or 26"),
        ("1,x", "sd2", "holds something that is no number"),
        ("INS", "flux", "there is no preset 'INS'"),
    ],
)
def test_what_is_no_vector_is_refused(text: str, family: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        read_lora_blocks(text, family)


def test_one_spelling_for_equal_weights() -> None:
    assert to_text([1, 0.5, 0.0]) == to_text("1.0, .5,0") == "1,0.5,0"
    assert to_text("middd ") == "MIDDD"
    assert to_text(None) == ""


def test_each_image_has_its_own_block_weights(model: TinyModel) -> None:
    """The expected factors come from the original code's names of the layers, as the extension reads them."""
    unet = model.pipeline.unet
    layers = {name: m for name, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    file = kohya({"unet": layers})
    lora = match_lora(FILE, TensorFile(file.tensors), {"unet": shapes_of(unet)})
    stack = AdapterStack(unet, [lora.deltas["unet"]])
    rows = [Strength(0.7, 1, "OUTALL"), Strength(0.7, 1), Strength(-0.4, 1, to_text([0.1 * n for n in range(26)])), Strength(1, 1, "NONE")]
    stack.set_cells([[row] for row in rows])
    together = run(model.pipeline, batch=4)
    stack.detach()
    originals = {target.modules[0]: flat for flat, target in name_table(list(layers)).items() if "blocks" in flat and "put" in flat}
    originals |= {target.modules[0]: flat for flat, target in name_table(list(layers)).items() if flat.startswith("middle_block")}
    for image, row in enumerate(rows):
        factors = dict(zip(UNET_BLOCKS, read_lora_blocks(row.blocks or "ALL", "sd1"), strict=True))
        merged = copy.deepcopy(unet)
        for name, delta in file.deltas["unet"].items():
            found = re.match(r"(input|middle|output)_blocks?_(\d+)", originals.get(name, ""))
            factor = factors[{"input": "IN{:02}", "output": "OUT{:02}", "middle": "M00"}[found[1]].format(int(found[2]))] if found else 1.0
            add_to_weights(merged, {name: delta}, row.model * factor)
        expected = run(type("Merged", (), {"unet": merged, "text_encoder": model.pipeline.text_encoder}))
        torch.testing.assert_close(together[image : image + 1], expected, rtol=1e-4, atol=3e-5 * float(expected.abs().max()))


def test_the_text_encoders_have_the_first_factors(model: TinyModel) -> None:
    text_encoder: Any = model.pipeline.text_encoder
    layers = {name: m for name, m in text_encoder.named_modules() if isinstance(m, nn.Linear)}
    lora = match_lora(FILE, TensorFile(kohya({"text_encoder": layers}).tensors), {"text_encoder": shapes_of(text_encoder)})
    blocks = to_text([0.5, 0.25, *[1.0] * 59])
    expected = {("text_encoder", "sd1", "NONE"): 0.0, ("text_encoder", "flux", blocks): 0.4, ("text_encoder_2", "flux", blocks): 0.2}
    for (name, family, text), weight in expected.items():
        stack = AdapterStack(text_encoder, [lora.deltas["text_encoder"], {}], name, family)
        assert stack.weigh([Strength(1, 0.8, text), Strength()]) == pytest.approx((weight, 0.0))
        stack.detach()


def test_flux_layers_lie_in_their_blocks() -> None:
    names = ["transformer_blocks.7.attn.to_q", "single_transformer_blocks.0.proj_mlp", "norm_out.linear", "proj_out", "x_embedder"]
    assert list(find_blocks(names).values()) == ["D07", "S00", "OUT", "OUT", "IN"]
    assert split_component("lora_unet_double_blocks_7_img_attn_qkv")[1] == "double_blocks_7_img_attn_qkv"
