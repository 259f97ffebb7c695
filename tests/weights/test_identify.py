"""Every kind of every family in the dialects of its writers, told from the header alone."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from sdbatch.weights.identify import identify
from sdbatch.weights.identity import GROUP_OF_KIND, Identity
from sdbatch.weights.kinds import GROUPS
from tests.weights import dialects as d
from tests.weights.writer import write_safetensors

UNET, TEXT = d.unet_modules, d.text_modules


def check(identity: Identity, expected: dict[str, Any]) -> None:
    assert {name: getattr(identity, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        pytest.param(d.sd1(), {"family": "sd1", "variant": "base", "cross_attention_width": 768, "embedding_widths": (768,)}, id="sd1"),
        pytest.param(d.sd1(9), {"family": "sd1", "variant": "inpainting"}, id="sd1-inpainting"),
        pytest.param(d.sd1(8), {"family": "sd1", "variant": "pix2pix"}, id="sd1-pix2pix"),
        pytest.param(d.sd2(), {"family": "sd2", "cross_attention_width": 1024, "embedding_widths": (1024,)}, id="sd2"),
        pytest.param(d.sd2(9), {"family": "sd2", "variant": "inpainting"}, id="sd2-inpainting"),
        pytest.param(d.sd2(5), {"family": "sd2", "variant": "depth"}, id="sd2-depth"),
        pytest.param(
            d.sdxl(), {"family": "sdxl", "variant": "base", "cross_attention_width": 2048, "embedding_widths": (768, 1280)}, id="sdxl"
        ),
        pytest.param(d.sdxl(9), {"family": "sdxl", "variant": "inpainting"}, id="sdxl-inpainting"),
        pytest.param(
            d.sdxl_refiner(),
            {"family": "sdxl", "variant": "refiner", "embedding_widths": (1280,), "parts": ("unet", "vae", "text_encoder_2")},
            id="sdxl-refiner",
        ),
        pytest.param(
            {
                **d.flux(d.LDM),
                **d.clip("text_encoders.clip_l.transformer."),
                **d.t5("text_encoders.t5xxl.transformer."),
                **d.ldm_vae("vae.", 16),
            },
            {"family": "flux", "variant": "dev", "embedding_widths": (768, 4096), "latent_channels": 16, "prediction_type": "flow"},
            id="flux-all-in-one",
        ),
        pytest.param(
            {**d.sd3(), **d.ldm_vae("first_stage_model.", 16), **d.clip("text_encoders.clip_l.transformer.")},
            {"family": "sd3", "variant": "3-medium", "latent_channels": 16},
            id="sd3",
        ),
        pytest.param({**d.sd3(blocks=(0, 37)), **d.ldm_vae(latent=16)}, {"family": "sd3", "variant": "3.5-large"}, id="sd3.5-large"),
        pytest.param({**d.sd3(dual=True), **d.ldm_vae(latent=16)}, {"family": "sd3", "variant": "3.5-medium"}, id="sd3.5-medium"),
        pytest.param(
            {**d.ldm_unet(128), **d.ldm_vae(width=16), **d.clip("cond_stage_model.transformer.", 128)}, {"family": "tiny"}, id="tiny"
        ),
    ],
)
def test_checkpoints(tmp_path: Path, tensors: d.Tensors, expected: dict[str, Any]) -> None:
    identity = identify(write_safetensors(tmp_path / "any name.bin", tensors))
    check(identity, {"kind": "checkpoint", "group": "checkpoint", "dtype": "F16", "pruning": "pruned", **expected})
    assert "vae" in identity.parts


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (d.ldm_unet(768), {"family": "sd1", "parts": ("unet",), "latent_channels": 4}),
        (d.ldm_unet(2048, prefix=""), {"family": "sdxl", "parts": ("unet",)}),
        (d.diffusers_unet(1024), {"family": "sd2", "parts": ("unet",), "latent_channels": 4}),
        (d.diffusers_unet(768, 9), {"family": "sd1", "variant": "inpainting"}),
        (d.flux(), {"family": "flux", "variant": "dev", "parts": ("transformer",), "latent_channels": 16}),
        (d.flux(guidance=False), {"family": "flux", "variant": "schnell"}),
        (d.flux(inputs=384), {"family": "flux", "variant": "fill"}),
        (d.flux(d.LDM, inputs=128), {"family": "flux", "variant": "control"}),
        (d.flux_diffusers(), {"family": "flux", "variant": "dev", "cross_attention_width": 4096}),
        (d.flux_diffusers(guidance=False), {"family": "flux", "variant": "schnell"}),
        (d.sd3(""), {"family": "sd3", "parts": ("transformer",)}),
        ({**d.flux(), "distilled_guidance_layer.in_proj.bias": (5,)}, {"family": "chroma"}),
        ({**d.flux(), "single_stream_modulation.lin.weight": (5, 5)}, {"family": "flux2"}),
        ({"double_layers.0.attn.w1q.weight": (5, 5), "cond_seq_linear.weight": (5, 5)}, {"family": "auraflow"}),
        ({"blocks.0.cross_attn.q_linear.weight": (5, 5)}, {"family": "sana"}),
        ({"head.modulation": (1, 2, 5), "blocks.0.cross_attn.k.weight": (5, 5)}, {"family": "wan"}),
        (
            {**d.diffusers_unet(2048), "encoder_hid_proj.weight": (2048, 4096), "add_embedding.linear_1.weight": (5, 5)},
            {"family": "kolors"},
        ),
    ],
)
def test_denoisers_alone(tmp_path: Path, tensors: d.Tensors, expected: dict[str, Any]) -> None:
    check(identify(write_safetensors(tmp_path / "x.safetensors", tensors)), {"kind": "denoiser", "group": "checkpoint", **expected})


@pytest.mark.parametrize(
    ("tensors", "pruning"),
    [(d.sd1(), "pruned"), ({**d.sd1(), **d.ema_of(d.sd1())}, "full"), ({**d.ema_of(d.sd1()), **d.ldm_vae()}, "ema-only")],
)
def test_ema(tmp_path: Path, tensors: d.Tensors, pruning: str) -> None:
    check(identify(write_safetensors(tmp_path / "x.safetensors", tensors)), {"kind": "checkpoint", "family": "sd1", "pruning": pruning})


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (d.ldm_vae(), {"latent_channels": 4, "variant": "vae"}),
        (d.ldm_vae(""), {"latent_channels": 4, "variant": "vae"}),
        (d.diffusers_vae(), {"latent_channels": 4, "variant": "vae"}),
        (d.ldm_vae("", 16, quant=False), {"latent_channels": 16}),
        (d.ldm_vae("", width=16), {"family": "tiny"}),
        ({"decoder.layers.0.weight": (64, 4, 3, 3), "encoder.layers.0.weight": (64, 3, 3, 3)}, {"variant": "taesd"}),
    ],
)
def test_vaes(tmp_path: Path, tensors: d.Tensors, expected: dict[str, Any]) -> None:
    check(identify(write_safetensors(tmp_path / "x.safetensors", tensors)), {"kind": "vae", "group": "vae", **expected})


@pytest.mark.parametrize(
    ("tensors", "variant", "widths"),
    [
        (d.clip(""), "clip_l", (768,)),
        (d.clip("", 1280), "clip_g", (1280,)),
        (d.clip("", 128), "tiny", (128,)),
        (d.openclip("", 1024), "clip_h", (1024,)),
        (d.openclip("cond_stage_model.model.", 1024), "clip_h", (1024,)),
        (d.t5(), "t5_xxl", (4096,)),
    ],
)
def test_text_encoders(tmp_path: Path, tensors: d.Tensors, variant: str, widths: tuple[int, ...]) -> None:
    check(
        identify(write_safetensors(tmp_path / "x.safetensors", tensors)),
        {"kind": "text_encoder", "variant": variant, "embedding_widths": widths},
    )


@pytest.mark.parametrize(
    ("tensors", "algorithm"),
    [
        (d.kohya(UNET(768)), "lora"),
        (d.kohya(UNET(768) + TEXT(768)), "lora"),
        (d.peft(d.dotted(UNET(768), "unet.")), "lora"),
        (d.peft(d.dotted(UNET(768), "base_model.model.")), "lora"),
        (d.old_diffusers(d.dotted(UNET(768), "unet.")), "lora"),
        (d.processors(768), "lora"),
        (d.locon(UNET(768)), "locon"),
        (d.loha(UNET(768)), "loha"),
        (d.lokr(UNET(768)), "lokr"),
        (d.dora(UNET(768)), "dora"),
        (d.full(UNET(768)), "full"),
    ],
)
def test_lora_algorithms(tmp_path: Path, tensors: d.Tensors, algorithm: str) -> None:
    identity = identify(write_safetensors(tmp_path / "x.safetensors", tensors))
    check(identity, {"kind": "lora", "group": "lora", "family": "sd1", "cross_attention_width": 768})
    assert identity.lora is not None
    assert identity.lora.algorithm == algorithm


@pytest.mark.parametrize(
    ("tensors", "algorithm"),
    [(d.glora(UNET(768)), "glora"), (d.ia3(UNET(768)), "ia3"), (d.oft(UNET(768)), "oft"), (d.oft(UNET(768), True), "boft")],
)
def test_lycoris_without_widths_is_told_by_its_metadata(tmp_path: Path, tensors: d.Tensors, algorithm: str) -> None:
    identity = identify(write_safetensors(tmp_path / "x.safetensors", tensors, metadata={"ss_base_model_version": "sd_v1"}))
    check(identity, {"kind": "lora", "family": "sd1"})
    assert identity.lora is not None
    assert identity.lora.algorithm == algorithm


def test_dylora_is_told_by_its_metadata(tmp_path: Path) -> None:
    metadata = {"ss_network_args": '{"algo": "dylora"}'}
    identity = identify(write_safetensors(tmp_path / "x.safetensors", d.kohya(UNET(768)), metadata=metadata))
    assert identity.lora is not None
    assert identity.lora.algorithm == "dylora"


@pytest.mark.parametrize(
    ("tensors", "metadata", "family"),
    [
        (d.kohya(UNET(1024)), {}, "sd2"),
        (d.kohya(UNET(2048)), {}, "sdxl"),
        (d.kohya(UNET(128)), {}, "tiny"),
        (d.kohya(UNET(2048, sgm=True)), {}, "sdxl"),
        (d.peft(d.dotted(UNET(2048), "unet.")), {"ss_base_model_version": "sd_v1"}, "sdxl"),
        (d.kohya(TEXT(768, "lora_te1_") + TEXT(1280, "lora_te2_")), {}, "sdxl"),
        (d.kohya(TEXT(768)), {}, "sd1"),
        (d.kohya(TEXT(1024)), {}, "sd2"),
        (d.kohya(d.FLUX_KOHYA), {}, "flux"),
        (d.peft(d.FLUX_PEFT), {}, "flux"),
        (d.lokr(d.FLUX_KOHYA), {}, "flux"),
        (d.kohya(d.SD3_KOHYA), {}, "sd3"),
        (d.peft([("transformer.transformer_blocks.0.attn.add_k_proj", 3072, 3072)]), {}, "flux"),
        (d.peft([("transformer.transformer_blocks.0.attn.to_q", 1536, 1536)]), {}, "sd3"),
        (d.peft([("unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q", 640, 640)]), {}, "sdxl"),
        (d.kohya(TEXT(768, "lora_te1_")), {}, None),
        (
            d.kohya([("lora_unet_mid_block_attentions_0_proj_in", 1280, 1280)]),
            {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
            "sdxl",
        ),
        (d.kohya([("lora_unet_mid_block_attentions_0_proj_in", 1280, 1280)]), {"ss_v2": "True"}, "sd2"),
        (d.kohya([("lora_unet_mid_block_attentions_0_proj_in", 1280, 1280)]), {}, None),
    ],
)
def test_families_of_loras(tmp_path: Path, tensors: d.Tensors, metadata: dict[str, str], family: str | None) -> None:
    check(identify(write_safetensors(tmp_path / "x.safetensors", tensors, metadata=metadata)), {"kind": "lora", "family": family})


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_blocks_of_other_dialects(tmp_path: Path, dtype: str) -> None:
    modules = [
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", 768, 768),
        ("text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj", 1280, 1280),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 640, 2048),
        ("unet.mid_block.attentions.0.proj_in", 1280, 1280),
        ("transformer.single_transformer_blocks.12.attn.to_q", 3072, 3072),
        ("something.else", 5, 5),
    ]
    identity = identify(write_safetensors(tmp_path / "x.safetensors", d.peft(modules), dtype))
    assert identity.lora is not None
    assert [block.block for block in identity.lora.blocks] == ["text_encoder", "text_encoder_2", "down_1", "mid", "single_12", "other"]
    assert identity.embedding_widths == (768, 1280)


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_rank_and_alpha_by_block(tmp_path: Path, dtype: str) -> None:
    modules = UNET(768)
    tensors = {**d.kohya(modules[:2], 8), **d.kohya(modules[2:], 16), **d.kohya(TEXT(768), 4)}
    alphas = {**d.alphas(modules[:1], 4), **d.alphas(modules[1:], 1.5)}
    identity = identify(write_safetensors(tmp_path / "x.safetensors", tensors, dtype, scalars=alphas))
    assert identity.lora is not None
    blocks = {
        block.block: (block.modules, block.rank_min, block.rank_max, block.alpha_min, block.alpha_max) for block in identity.lora.blocks
    }
    assert blocks == {
        "text_encoder": (2, 4, 4, None, None),
        "down_0": (2, 8, 8, 1.5, 4),
        "mid": (1, 16, 16, 1.5, 1.5),
        "up_1": (1, 16, 16, 1.5, 1.5),
    }
    assert list(blocks) == ["text_encoder", "down_0", "mid", "up_1"]
    assert identity.embedding_widths == (768,)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (d.ldm_controlnet(768), {"kind": "controlnet", "family": "sd1", "variant": "base"}),
        (d.ldm_controlnet(1024, ""), {"kind": "controlnet", "family": "sd2"}),
        (d.diffusers_controlnet(768), {"kind": "controlnet", "family": "sd1", "cross_attention_width": 768}),
        (d.diffusers_controlnet(2048), {"kind": "controlnet", "family": "sdxl"}),
        ({**d.diffusers_controlnet(2048), "task_embedding": (6, 320)}, {"kind": "controlnet", "family": "sdxl", "variant": "union"}),
        ({"lora_controlnet": (1,), "input_blocks.0.0.up": (1, 2)}, {"kind": "controlnet", "variant": "control-lora"}),
        (
            {**d.flux_diffusers(), "controlnet_blocks.0.weight": (5, 5), "controlnet_x_embedder.weight": (5, 5)},
            {"kind": "controlnet", "family": "flux"},
        ),
        (
            {"adapter.conv_in.weight": (320, 192, 3, 3), "adapter.body.0.resnets.0.block1.weight": (5, 5)},
            {"kind": "t2i_adapter", "family": "sd1"},
        ),
        ({"conv_in.weight": (320, 768, 3, 3), "body.0.block1.weight": (5, 5)}, {"kind": "t2i_adapter", "family": "sdxl"}),
        (d.ip_adapter(768), {"kind": "ip_adapter", "family": "sd1", "variant": "base", "image_embedding_width": 1024}),
        (d.ip_adapter(2048, 1280), {"kind": "ip_adapter", "family": "sdxl", "image_embedding_width": 1280}),
        (
            d.ip_adapter_plus(768, 1280),
            {"kind": "ip_adapter", "variant": "plus", "image_embedding_width": None, "image_hidden_width": 1280},
        ),
        (d.ip_adapter_full(768, 1280), {"kind": "ip_adapter", "family": "sd1", "variant": "full", "image_hidden_width": 1280}),
        (d.ip_adapter_faceid(768), {"kind": "ip_adapter", "family": "sd1", "variant": "faceid"}),
        (
            d.clip_vision(1280, 1024),
            {"kind": "image_encoder", "variant": "clip_vit_h", "image_embedding_width": 1024, "image_hidden_width": 1280},
        ),
        ({"emb_params": (8, 768)}, {"kind": "embedding", "family": "sd1", "embedding_vectors": 8, "embedding_widths": (768,)}),
        ({"clip_g": (4, 1280), "clip_l": (4, 768)}, {"kind": "embedding", "family": "sdxl", "embedding_widths": (768, 1280)}),
        ({"<my-style>": (768,)}, {"kind": "embedding", "family": "sd1", "embedding_vectors": 1}),
        ({"emb_params": (2, 1024)}, {"kind": "embedding", "family": "sd2"}),
        ({"emb_params": (2, 128)}, {"kind": "embedding", "family": "tiny"}),
        (d.hypernetwork((768, 320, 640, 1280)), {"kind": "hypernetwork", "family": "sd1", "cross_attention_width": 768}),
        (d.hypernetwork((320, 640, 1024, 1280)), {"kind": "hypernetwork", "family": "sd2"}),
        (d.hypernetwork((320, 640, 768, 1024, 1280)), {"kind": "hypernetwork", "family": None, "cross_attention_width": None}),
        ({"model.0.weight": (64, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)}, {"kind": "upscaler", "variant": "esrgan"}),
        ({"conv_first.weight": (64, 3, 3, 3), "body.0.rdb1.conv1.weight": (32, 64, 3, 3)}, {"kind": "upscaler", "variant": "esrgan"}),
        (
            {"body.0.weight": (64, 3, 3, 3), "body.1.weight": (64,), "body.2.weight": (64, 64, 3, 3)},
            {"kind": "upscaler", "variant": "compact"},
        ),
        ({"layers.0.residual_group.blocks.0.attn.relative_position_bias_table": (225, 6)}, {"kind": "upscaler", "variant": "swinir"}),
        ({"vision_model.embeddings.class_embedding": (1024,), "visual_projection.weight": (768, 1024)}, {"kind": "image_encoder"}),
        ({"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,)}, {"kind": "motion_module"}),
        ({"something.else.weight": (5, 5)}, {"kind": "unknown", "family": None, "group": None}),
        ({}, {"kind": "unknown"}),
    ],
)
def test_other_kinds(tmp_path: Path, tensors: d.Tensors, expected: dict[str, Any]) -> None:
    check(identify(write_safetensors(tmp_path / "x.safetensors", tensors)), expected)


@pytest.mark.parametrize(
    ("extra", "metadata", "expected"),
    [
        ({"v_pred": (0,)}, {}, ("v_prediction", False)),
        ({"v_pred": (0,), "ztsnr": (0,)}, {}, ("v_prediction", True)),
        ({}, {"modelspec.prediction_type": "v"}, ("v_prediction", False)),
        ({}, {"modelspec.prediction_type": "epsilon"}, ("epsilon", False)),
        ({}, {}, (None, False)),
    ],
)
def test_prediction_of_sdxl(tmp_path: Path, extra: d.Tensors, metadata: dict[str, str], expected: tuple[str | None, bool]) -> None:
    identity = identify(write_safetensors(tmp_path / "x.safetensors", {**d.sdxl(), **extra}, metadata=metadata))
    assert (identity.prediction_type, identity.zero_snr) == expected


@pytest.mark.parametrize(("spread", "prediction", "variant"), [(0.02, "epsilon", "512"), (0.3, "v_prediction", "768-v")])
@pytest.mark.parametrize("dtype", ["F16", "F32", "BF16"])
def test_sd2_is_told_by_the_spread_of_one_bias(tmp_path: Path, dtype: str, spread: float, prediction: str, variant: str) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", d.sd2(), dtype)
    start = next(info.start for name, info in identify_tensors(path).items() if name.endswith("norm1.bias"))
    assert start is not None
    values = [spread if i % 2 else -spread for i in range(320)]
    if dtype == "BF16":
        content = b"".join(struct.pack("<f", value)[2:] for value in values)
    else:
        content = struct.pack(f"<320{'e' if dtype == 'F16' else 'f'}", *values)
    with path.open("r+b") as out:
        out.seek(start)
        out.write(content)
    check(identify(path), {"family": "sd2", "prediction_type": prediction, "variant": variant})


def identify_tensors(path: Path) -> Any:
    from sdbatch.weights.reader import read_header

    return read_header(path).tensors


def test_alphas_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    modules = UNET(768)[:1]
    identity = identify(write_safetensors(tmp_path / "x.safetensors", d.kohya(modules), scalars=d.alphas(modules, float("nan"))))
    assert identity.lora is not None
    assert [block.alpha_max for block in identity.lora.blocks] == [None]


def test_every_kind_has_a_group_of_the_catalogue() -> None:
    assert set(GROUP_OF_KIND.values()) == {group.removesuffix("_2") for group in GROUPS}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": "ohwx man, oil paint"}, ("ohwx man", "oil paint")),
        ({"ss_tag_frequency": '{"10_set": {"mystyle": 20, "cat": 3, "dog": 19}}'}, ("mystyle", "dog")),
        ({"ss_tag_frequency": '{"10_sks dog": {}}'}, ("sks dog",)),
        ({"ss_tag_frequency": "{broken"}, ()),
        ({"ss_tag_frequency": "[1, 2]"}, ()),
        ({"ss_tag_frequency": '{"a": {"b": "c"}}'}, ("a",)),
        ({"modelspec.trigger_phrase": "<script>alert(1)</script>\x1b[31m"}, ("<script>alert(1)</script>?[31m",)),
        ({}, ()),
    ],
)
def test_trigger_words(tmp_path: Path, metadata: dict[str, str], words: tuple[str, ...]) -> None:
    assert identify(write_safetensors(tmp_path / "x.safetensors", d.kohya(UNET(768)), metadata=metadata)).trigger_words == words


def test_metadata_is_cleaned_and_bounded(tmp_path: Path) -> None:
    metadata = {"ss_output_name": "a\x1b[31mb\nc", "thumbnail": "x" * 100_000, **{f"k{i:04}": "v" for i in range(500)}}
    identity = identify(write_safetensors(tmp_path / "x.safetensors", d.kohya(UNET(768)), metadata=metadata))
    assert "thumbnail" not in identity.metadata
    assert len(identity.metadata) <= 200
    assert all(value.isprintable() for value in identity.metadata.values())
