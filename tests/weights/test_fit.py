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
        # FLUX.1 has the CLIP of SD 1.x.
        fits = base == made_for or (group, base, made_for) == ("embedding", "flux", "sd1")
        assert (find_mismatch(read(tensors), group, model) is None) == fits, group


def test_an_embedding_of_flux_may_have_vectors_for_t5_but_must_have_them_for_clip(read: Read) -> None:
    flux = read(FLUX)
    both, alone = {"clip_l": (2, 768), "t5": (2, 4096)}, {"t5": (2, 4096)}
    assert find_mismatch(read(both), "embedding", flux) is None
    assert "with 768+4096-wide tokens" in (find_mismatch(read(alone), "embedding", flux) or "")
    assert find_mismatch(read(both), "embedding", read(d.sd1())) is not None


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
    assert describe(read(d.flux())) == "a transformer without VAE and text encoder for FLUX.1 dev (4096-wide cross-attention)"


def test_what_is_not_known_is_not_refused(read: Read) -> None:
    unknown_lora = read(d.kohya([("lora_unet_mid_block_attentions_0_proj_in", 1280, 1280)]))
    assert find_mismatch(unknown_lora, "lora", read(d.sd1())) is None
    small = read({**d.ldm_unet(32), **d.ldm_vae(), **d.clip("cond_stage_model.transformer.", 32)})
    assert small.family is None
    assert find_mismatch(read(d.kohya(d.unet_modules(32))), "lora", small) is None
    assert "32-wide" in (find_mismatch(read(d.kohya(d.unet_modules(768))), "lora", small) or "")


ENCODERS: dict[str, d.Tensors] = {"clip_l": d.clip(""), "clip_h": d.openclip("", 1024), "clip_g": d.clip("", 1280), "t5_xxl": d.t5()}
PLACES: dict[str, tuple[str, ...]] = {"sd1": ("clip_l",), "sd2": ("clip_h",), "sdxl": ("clip_l", "clip_g"), "flux": ("clip_l", "t5_xxl")}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("place", [0, 1])
def test_text_encoders_fit_their_place_only(read: Read, base: str, encoder: str, place: int) -> None:
    mismatch = find_mismatch(read(ENCODERS[encoder]), ("text_encoder", "text_encoder_2")[place], read(BASES[base]))
    assert (mismatch is None) == (PLACES[base][place : place + 1] == (encoder,))


def test_a_small_t5_is_no_clip_of_the_same_width(read: Read) -> None:
    told = find_mismatch(read(d.t5("", 768)), "text_encoder", read(d.sd1()))
    assert told == "is a text encoder (768-wide tokens), the model is SD 1.x, whose first text encoder is a CLIP with 768-wide tokens"
    assert "which has 1 text encoder" in (find_mismatch(read(d.t5()), "text_encoder_2", read(d.sd1())) or "")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("channels", [4, 16])
def test_vaes(read: Read, base: str, channels: int) -> None:
    mismatch = find_mismatch(read(d.ldm_vae("", channels)), "vae", read(BASES[base]))
    assert (mismatch is None) == (channels == (16 if base == "flux" else 4))


def test_the_tiny_vae_fits_the_tiny_model_only(read: Read) -> None:
    tiny = {**d.ldm_unet(128), **d.ldm_vae(width=16), **d.clip("cond_stage_model.transformer.", 128)}
    for vae, base, fits in ((16, tiny, True), (128, tiny, False), (16, d.sd1(), False)):
        assert (find_mismatch(read(d.ldm_vae("", width=vae)), "vae", read(base)) is None) == fits


SLOTS = ("checkpoint", "vae", "text_encoder", "lora", "embedding", "hypernetwork", "controlnet", "ip_adapter", "image_encoder", "upscaler")
KINDS: dict[str, d.Tensors] = {
    "checkpoint": d.sd1(),
    "vae": d.ldm_vae(""),
    "text_encoder": d.clip(""),
    "lora": d.kohya(d.unet_modules(768)),
    "embedding": EMBEDDINGS["sd1"],
    "hypernetwork": d.hypernetwork((768, 320, 640, 1280)),
    "controlnet": d.ldm_controlnet(768),
    "ip_adapter": d.ip_adapter(768),
    "image_encoder": d.clip_vision(1280, 1024),
    "upscaler": {"model.0.weight": (64, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)},
}


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_in_the_wrong_slot_is_named_for_what_it_is(read: Read, slot: str, kind: str) -> None:
    mismatch = find_mismatch(read(KINDS[kind]), slot, read(d.sd1()))
    assert (mismatch is None) == (kind == slot)
    assert mismatch is None or f"use it as {kind}=" in mismatch


@pytest.mark.parametrize(
    ("tensors", "group", "said"),
    [
        ({"decoder.layers.0.weight": (64, 4, 3, 3), "encoder.layers.0.weight": (64, 3, 3, 3)}, "vae", "a small stand-in for previews"),
        ({"lora_controlnet": (1,), "input_blocks.0.0.up": (1, 2)}, "controlnet", "a Control-LoRA; choose a full ControlNet"),
        ({**d.diffusers_controlnet(768), "task_embedding": (6, 320)}, "controlnet", "several ControlNets in one"),
        ({"lllite_unet_input_blocks_1_1_attn1_to_q.down.0.weight": (16, 320)}, "controlnet", "a ControlNet-LLLite"),
        ({"adapter.conv_in.weight": (320, 192, 3, 3), "adapter.body.0.resnets.0.block1.weight": (5, 5)}, "controlnet", "is no ControlNet"),
        ({"emp_params_out": (2, 768)}, "embedding", "trained on the outputs of the text encoder"),
        (d.sd1(8), "checkpoint", "which edits by instruction"),
        (d.sd2(5), "checkpoint", "which needs a depth map"),
        ({**d.ema_of(d.sd1()), **d.ldm_vae()}, "checkpoint", "only averaged weights under names that nothing loads"),
    ],
)
def test_what_sdbatch_does_not_run_is_said_in_the_plan(read: Read, tensors: d.Tensors, group: str, said: str) -> None:
    file = read(tensors)
    assert said in (find_mismatch(file, group, file if group == "checkpoint" else read(d.sd1())) or "")


def test_flux_runs_no_ip_adapter(read: Read) -> None:
    xlabs = {
        "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": (3072, 4096),
        "ip_adapter_proj_model.proj.weight": (9, 768),
    }
    flux = read(FLUX)
    assert "is an IP-Adapter for FLUX.1, the model is FLUX.1 dev, with which sdbatch runs no IP-Adapter" in (
        find_mismatch(read(xlabs), "ip_adapter", flux) or ""
    )
    assert "is an IP-Adapter for FLUX.1, the model is SDXL" in (find_mismatch(read(xlabs), "ip_adapter", read(d.sdxl())) or "")


def test_flux_runs_no_controlnet(read: Read) -> None:
    made_for_it = {**d.flux_diffusers(), "controlnet_blocks.0.weight": (5, 5), "controlnet_x_embedder.weight": (5, 5)}
    assert "with which sdbatch runs no ControlNet" in (find_mismatch(read(made_for_it), "controlnet", read(FLUX)) or "")


def test_a_lora_of_text_encoders_alone_must_know_them(read: Read) -> None:
    numbered = read(d.kohya(d.text_modules(768, "lora_te1_")))
    assert numbered.family is None
    assert find_mismatch(numbered, "lora", read(d.sd1())) is None
    assert "1024-wide tokens" in (find_mismatch(numbered, "lora", read(d.sd2())) or "")


def test_checkpoints_to_merge_are_of_one_architecture(read: Read) -> None:
    assert find_mismatch(read(d.sd1(9)), "checkpoint", read(d.sd1())) is None
    assert find_mismatch(read(d.sdxl()), "checkpoint", read(d.sd1())) == (
        "is a checkpoint for SDXL (2048-wide cross-attention), the model is SD 1.x (768-wide)"
    )


def test_a_pickle_that_torch_would_refuse_is_refused_in_the_plan(read: Read) -> None:
    base = replace(read(d.sd1()), foreign=("numpy.dtype",))
    assert find_mismatch(base, "checkpoint", base) == (
        "is a checkpoint for SD 1.x (768-wide cross-attention), but its pickle also holds numpy.dtype, which is never loaded; "
        "use a .safetensors version"
    )
