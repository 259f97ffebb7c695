"""Block weights: the presets' published numbers, and which tensor lies in which block."""

from __future__ import annotations

import pytest

from sdbatch.errors import ConfigError
from sdbatch.merge.blocks import PRESETS, Blocks, read_blocks
from sdbatch.naming.file import to_original

PUBLISHED = {
    "GRAD_V": "1,0.9166666667,0.8333333333,0.75,0.6666666667,0.5833333333,0.5,0.4166666667,0.3333333333,0.25,0.1666666667,0.0833333333,0,"
    "0.0833333333,0.1666666667,0.25,0.3333333333,0.4166666667,0.5,0.5833333333,0.6666666667,0.75,0.8333333333,0.9166666667,1",
    "WRAP08": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1",
    "WRAP16": "1,1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1",
    "MID12_50": "0,0,0,0,0,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0,0,0,0,0,0",
    "OUT07": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1,1,1",
    "OUT12_5": "0,0,0,0,0,0,0,0,0,0,0,0,0.5,1,1,1,1,1,1,1,1,1,1,1,1",
    "RING08_SOFT": "0,0,0,0,0,0.5,1,1,1,0.5,0,0,0,0,0,0.5,1,1,1,0.5,0,0,0,0,0",
    "RING10_3": "0,0,0,0,0,0,1,1,1,1,1,0,0,0,1,1,1,1,1,0,0,0,0,0,0",
    "SMOOTHSTEP": "0,0.00506365740740741,0.0196759259259259,0.04296875,0.0740740740740741,0.112123842592593,0.15625,0.205584490740741,"
    "0.259259259259259,0.31640625,0.376157407407407,0.437644675925926,0.5,0.562355324074074,0.623842592592592,0.68359375,"
    "0.740740740740741,0.794415509259259,0.84375,0.887876157407408,0.925925925925926,0.95703125,0.980324074074074,0.994936342592593,1",
    "R_SMOOTHSTEP*3": "1,0.984809027777778,0.940972222222222,0.87109375,0.777777777777778,0.663628472222222,0.53125,0.383246527777778,"
    "0.222222222222222,0.05078125,0.128472222222222,0.312934027777778,0.5,0.687065972222222,0.871527777777778,0.94921875,"
    "0.777777777777778,0.616753472222222,0.46875,0.336371527777777,0.222222222222222,0.12890625,0.0590277777777777,0.0151909722222232,0",
    "SMOOTHSTEP/4": "0,0.0740740740740741,0.259259259259259,0.5,0.740740740740741,0.925925925925926,1,0.925925925925926,0.740740740740741,"
    "0.5,0.259259259259259,0.0740740740740741,0,0.0740740740740741,0.259259259259259,0.5,0.740740740740741,0.925925925925926,1,"
    "0.925925925925926,0.740740740740741,0.5,0.259259259259259,0.0740740740740741,0",
    "COSINE": "1,0.995722430686905,0.982962913144534,0.961939766255643,0.933012701892219,0.896676670145617,0.853553390593274,"
    "0.80438071450436,0.75,0.691341716182545,0.62940952255126,0.565263096110026,0.5,0.434736903889974,0.37059047744874,0.308658283817455,"
    "0.25,0.195619285495639,0.146446609406726,0.103323329854382,0.0669872981077805,0.0380602337443566,0.0170370868554658,"
    "0.00427756931309475,0",
    "TRUE_CUBIC_HERMITE": "0,0.199031876929012,0.325761959876543,0.424641927083333,0.498456790123457,0.549991560570988,0.58203125,"
    "0.597360869984568,0.598765432098765,0.589029947916667,0.570939429012346,0.547278886959876,0.520833333333333,0.49438777970679,"
    "0.470727237654321,0.45263671875,0.442901234567901,0.444305796682099,0.459635416666667,0.491675106095678,0.543209876543211,"
    "0.617024739583333,0.715904706790124,0.842634789737655,1",
    "FAKE_REVERSE_CUBIC_HERMITE": "1,0.842423804012346,0.71508487654321,0.615234375,0.540123456790123,0.487003279320988,0.453125,"
    "0.435739776234568,0.432098765432099,0.439453125,0.455054012345679,0.476152584876543,0.5,0.523847415123457,0.544945987654321,"
    "0.560546875,0.567901234567901,0.564260223765432,0.546875,0.512996720679013,0.459876543209876,0.384765625,0.28491512345679,"
    "0.157576195987653,0",
}
"""As the block-weighted mergers for A1111 publish them."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_its_published_numbers(name: str) -> None:
    assert read_blocks(name) == pytest.approx([float(number) for number in PUBLISHED[name].split(",")], abs=1e-9)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_25_ratios(name: str) -> None:
    found = read_blocks(name)
    assert len(found) == 25
    assert all(-1e-9 <= ratio <= 1 + 1e-9 for ratio in found)


def sd1_names(layers: int = 2, blocks: int = 4) -> list[str]:
    """A tensor of every place in an SD 1.x UNet (SDXL: 3 blocks), by common name."""
    names = ["conv_in.weight", "conv_out.weight", "time_embedding.linear_1.weight", "mid_block.attentions.0.norm.weight"]
    for block in range(blocks):
        names += [f"down_blocks.{block}.resnets.{layer}.conv1.weight" for layer in range(layers)]
        names += [f"up_blocks.{block}.resnets.{layer}.conv1.weight" for layer in range(layers + 1)]
        names += [f"up_blocks.{block}.attentions.{layer}.proj_in.weight" for layer in range(layers + 1) if block]
        names += [f"down_blocks.{block}.downsamplers.0.conv.weight"] if block < blocks - 1 else []
        names += [f"up_blocks.{block}.upsamplers.0.conv.weight"] if block < blocks - 1 else []
    return [f"unet.{name}" for name in names] + ["vae.conv.weight", "text_encoder.text_model.final_layer_norm.weight"]


@pytest.mark.parametrize(("blocks", "inputs"), [(4, 12), (3, 9)])
def test_the_block_is_the_number_in_the_original_name(blocks: int, inputs: int) -> None:
    names = sd1_names(blocks=blocks)
    numbered = Blocks(range(2 * inputs + 1), -1, names)
    for own, piece in to_original(names, "sd1").items():
        parts = own.removeprefix("model.diffusion_model.").split(".")
        found = numbered.ratio(piece.names[0])
        match parts[0]:
            case "input_blocks":
                assert found == int(parts[1]), own
            case "middle_block":
                assert found == inputs
            case "output_blocks":
                assert found == inputs + 1 + int(parts[1]), own
            case "out":
                assert found == 2 * inputs
            case _:
                assert found == -1, own


def test_25_numbers_for_sd1_19_for_sdxl_and_base_in_front() -> None:
    names = sd1_names()
    weights = [index / 24 for index in range(25)]
    plain = Blocks(weights, 0.5, names)
    assert plain.ratio("unet.down_blocks.0.resnets.0.conv1.weight") == weights[1]
    assert plain.ratio("unet.time_embedding.linear_1.weight") == 0.5
    assert plain.ratio("text_encoder.text_model.final_layer_norm.weight") == 0.5
    with_base = Blocks([0.9, *weights], 0.5, names)
    assert with_base.ratio("unet.time_embedding.linear_1.weight") == 0.9
    assert with_base.ratio("unet.up_blocks.3.resnets.2.conv1.weight") == 1.0
    sdxl = sd1_names(blocks=3)
    assert Blocks([index / 18 for index in range(19)], 0.0, sdxl).ratio("unet.mid_block.attentions.0.norm.weight") == 0.5
    stretched = Blocks(read_blocks("GRAD_A"), 0.0, sdxl)
    assert stretched.ratio("unet.mid_block.attentions.0.norm.weight") == pytest.approx(1)
    assert stretched.ratio("unet.conv_in.weight") == 0
    with pytest.raises(ConfigError, match="7 block weights: this model has 19 blocks"):
        Blocks([0.0] * 7, 0.0, sdxl)


def test_a_model_without_blocks_is_told_so() -> None:
    with pytest.raises(ConfigError, match="has no UNet"):
        Blocks([0.0] * 25, 0.0, ["transformer.x_embedder.weight"])


def test_what_is_neither_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean WRAP12"):
        read_blocks("WRAP_12")
    assert read_blocks("[0, 0.5, 1]") == (0, 0.5, 1)
