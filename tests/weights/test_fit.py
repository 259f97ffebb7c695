"""What does not fit is said in one sentence, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sdbatch.weights.fit import describe, find_mismatch
from sdbatch.weights.identify import identify
from sdbatch.weights.identity import Identity
from tests.weights import dialects as d
from tests.weights.writer import write_safetensors

Read = Callable[[d.Tensors], Identity]

FLUX = {**d.flux(d.LDM), **d.ldm_vae("vae.", 16), **d.clip("text_encoders.clip_l.transformer."), **d.t5("text_encoders.t5xxl.transformer.")}
BASES = {"sd1": d.sd1(), "sd2": d.sd2(), "sdxl": d.sdxl(), "flux": FLUX}
SD_WIDTHS = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
EMBEDDINGS: dict[str, d.Tensors] = {
    "sd1": {"emb_params": (2, 768)},
    "sd2": {"emb_params": (2, 1024)},
    "sdxl": {"clip_l": (2, 768), "clip_g": (2, 1280)},
}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def make(tensors: d.Tensors) -> Identity:
        return identify(write_safetensors(tmp_path / "x.safetensors", tensors))

    return make


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("made_for", ["sd1", "sd2", "sdxl", "flux"])
def test_loras(read: Read, base: str, made_for: str) -> None:
    tensors = d.kohya(d.FLUX_KOHYA) if made_for == "flux" else d.kohya(d.unet_modules(SD_WIDTHS[made_for]))
    mismatch = find_mismatch(read(tensors), "lora", read(BASES[base]))
    assert (mismatch is None) == (base == made_for)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("made_for", SD_WIDTHS)
def test_controlnets_ip_adapters_and_embeddings(read: Read, base: str, made_for: str) -> None:
    width = SD_WIDTHS[made_for]
    model = read(BASES[base])
    for group, tensors in (
        ("controlnet", d.ldm_controlnet(width)),
        ("ip_adapter", d.ip_adapter(width)),
        ("embedding", EMBEDDINGS[made_for]),
    ):
        assert (find_mismatch(read(tensors), group, model) is None) == (base == made_for), group


def test_sentences(read: Read) -> None:
    sdxl, sd1 = read(d.sdxl()), read(d.sd1())
    assert find_mismatch(read(d.kohya(d.unet_modules(768))), "lora", sdxl) == (
        "is a LoRA for SD 1.x (768-wide cross-attention), the model is SDXL (2048-wide)"
    )
    assert (
        find_mismatch(read(d.ldm_vae(latent=16)), "vae", sd1) == "is a VAE (16 latent channels), the model is SD 1.x with 4 latent channels"
    )
    assert find_mismatch(read(EMBEDDINGS["sd1"]), "embedding", sdxl) == (
        "is an embedding for SD 1.x (768-wide tokens), the model is SDXL with 768+1280-wide tokens"
    )
    assert find_mismatch(read(d.ldm_vae()), "lora", sd1) == "is a VAE (4 latent channels), not a LoRA; use it as vae="
    assert find_mismatch(read({"x": (1, 1)}), "lora", sd1) == "is of no known kind, not a LoRA; no group takes it"
    assert describe(read(d.flux())) == "a UNet or transformer without VAE and text encoder for FLUX.1 (4096-wide cross-attention)"


def test_what_is_not_known_is_not_refused(read: Read) -> None:
    unknown_lora = read(d.kohya([("lora_unet_mid_block_attentions_0_proj_in", 1280, 1280)]))
    assert find_mismatch(unknown_lora, "lora", read(d.sd1())) is None
    small = read({**d.ldm_unet(32), **d.ldm_vae(), **d.clip("cond_stage_model.transformer.", 32)})
    assert small.family is None
    assert find_mismatch(read(d.kohya(d.unet_modules(32))), "lora", small) is None
    assert "32-wide" in (find_mismatch(read(d.kohya(d.unet_modules(768))), "lora", small) or "")


def test_vaes_and_text_encoders(read: Read) -> None:
    assert find_mismatch(read(d.ldm_vae("")), "vae", read(d.sdxl())) is None
    assert find_mismatch(read(d.clip("")), "text_encoder", read(d.sd1())) is None
    assert "1024-wide" in (find_mismatch(read(d.openclip("", 1024)), "text_encoder", read(d.sd1())) or "")


def test_a_pickle_that_torch_would_refuse_is_refused_in_the_plan(read: Read) -> None:
    base = replace(read(d.sd1()), foreign=("numpy.dtype",))
    assert find_mismatch(base, "checkpoint", base) == (
        "is a checkpoint for SD 1.x (768-wide cross-attention), but its pickle also holds numpy.dtype, which is never loaded; "
        "use a .safetensors version"
    )
