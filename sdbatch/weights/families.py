"""The architectures and the facts by which their files are told apart and checked against each other: two tables.

A UNet's family is told by the width of the text it reads, a transformer's by its names.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdbatch.weights.key import Rule


@dataclass(frozen=True, slots=True)
class FamilyFacts:
    """What must fit together within one family."""

    name: str
    """As in the family table and `family=`."""
    title: str
    """As people say it."""
    cross_attention_width: int
    """Width of the text states that the denoiser reads."""
    embedding_widths: tuple[int, ...]
    """Token widths of the text encoders, in their order."""
    latent_channels: int
    modelspec: str
    """How `modelspec.architecture` begins."""
    base_versions: tuple[str, ...] = ()
    """How kohya's `ss_base_model_version` begins."""


FAMILIES: tuple[FamilyFacts, ...] = (
    FamilyFacts("tiny", "sdbatch's tiny", 128, (128,), 4, "sdbatch-tiny"),
    FamilyFacts("sd1", "SD 1.x", 768, (768,), 4, "stable-diffusion-v1", ("sd_v1", "sd_1.5", "sd1")),
    FamilyFacts("sd2", "SD 2.x", 1024, (1024,), 4, "stable-diffusion-v2", ("sd_v2", "sd_2", "sd2")),
    FamilyFacts("sdxl", "SDXL", 2048, (768, 1280), 4, "stable-diffusion-xl-v1", ("sdxl",)),
    FamilyFacts("flux", "FLUX.1", 4096, (768, 4096), 16, "flux-1", ("flux1", "flux")),
    FamilyFacts("sd3", "SD 3.x", 4096, (768, 1280, 4096), 16, "stable-diffusion-v3", ("sd3",)),
)

T5_WIDTH = 4096
"""Token width of T5 XXL; a text encoder of any other width is a CLIP."""

BY_NAME: dict[str, FamilyFacts] = {facts.name: facts for facts in FAMILIES}

_OTHER_TITLES: dict[str, str] = {
    **{"flux2": "FLUX.2", "flux3": "FLUX.3", "chroma": "Chroma", "bria": "Bria or LongCat-Image", "longcat": "LongCat-Image"},
    **{"qwen_image": "Qwen-Image", "z_image": "Z-Image", "ovis": "Ovis-Image", "glm_image": "GLM-Image", "ernie_image": "ERNIE-Image"},
    **{"hidream": "HiDream", "lumina2": "Lumina 2", "omnigen2": "OmniGen 2", "krea2": "Krea 2", "ideogram4": "Ideogram 4"},
    **{"auraflow": "AuraFlow", "pixart": "PixArt", "sana": "Sana", "cascade": "Stable Cascade", "kolors": "Kolors"},
    **{"hunyuan_dit": "Hunyuan-DiT", "hunyuan_video": "HunyuanVideo", "cogview": "CogView", "cogvideo": "CogVideoX", "wan": "Wan"},
    **{"ltx": "LTX-Video", "cosmos": "Cosmos", "anima": "Anima", "mochi": "Mochi", "svd": "Stable Video Diffusion"},
    **{"animatediff": "AnimateDiff", "modelscope": "ModelScope", "dreamlite": "DreamLite"},
    **{"kandinsky2": "Kandinsky 2", "kandinsky3": "Kandinsky 3", "kandinsky5": "Kandinsky 5"},
}
"""Architectures that are told apart, not run."""


def to_title(family: str) -> str:
    """A family as people say it."""
    return BY_NAME[family].title if family in BY_NAME else _OTHER_TITLES.get(family, family)


BY_UNET_WIDTH: dict[int, str] = {128: "tiny", 768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl"}
"""Cross-attention width of a UNet or of its adapter -> family. 1280 is the SDXL refiner, which reads one text encoder."""

BY_TRANSFORMER_WIDTH: dict[int, str] = {3072: "flux", 1536: "sd3", 2432: "sd3", 6144: "flux2"}
"""Width of an adapter's transformer -> family, where its names tell no more than `transformer_blocks` or FLUX's own."""

UNET_RULES: tuple[Rule, ...] = (
    Rule("kandinsky2", any=("encoder_hid_proj.image_embeds.",)),
    Rule("kolors", any=("encoder_hid_proj.weight$",), all=("add_embedding.linear_1.weight$",)),
    Rule("kandinsky3", any=("add_time_condition.attention.",)),
    Rule("dreamlite", any=("down_blocks.0.resnets.0.conv1.depthwise.",)),
    Rule("animatediff", any=(".motion_modules.0.", "_motion_modules_0_")),
    Rule("svd", any=("time_mixer.mix_factor$", "time_stack.", "temporal_transformer_blocks")),
    Rule("modelscope", any=(".temp_convs.",)),
)
"""UNets, and adapters of them, that the width alone would call something else."""

TRANSFORMER_RULES: tuple[Rule, ...] = (
    Rule("cascade", any=("clip_txt_mapper.weight$", "clip_txt_pooled_mapper.weight$", "effnet_mapper.0.weight$")),
    Rule("flux3", any=("early_stream_modulations.", "ref_time_in.in_layer.")),
    Rule("flux2", any=("single_stream_modulation.lin", "double_stream_modulation_img.")),
    Rule("chroma", any=("distilled_guidance_layer.",)),
    Rule("hunyuan_video", any=("txt_in.individual_token_refiner.", "context_embedder.token_refiner.")),
    Rule("ovis", any=("double_blocks.0.img_mlp.gate_proj.", "context_embedder_norm.weight$")),
    # Its relatives do not read the summary of CLIP.
    Rule("flux", any=("double_blocks.0.img_attn.norm.", "double_blocks.0.img_attn.qkv."), all=("vector_in.in_layer.",)),
    Rule("flux", all=("single_transformer_blocks.0.", "time_text_embed.text_embedder.")),
    Rule("longcat", any=("double_blocks.0.img_attn.qkv.",), all=("single_blocks.0.linear1.",)),
    Rule("bria", all=("single_transformer_blocks.0.attn.", "time_embed.timestep_embedder."), none=("time_text_embed.",)),
    Rule("hidream", any=("double_stream_blocks.0.block.",)),
    Rule("sd3", any=("joint_blocks.0.context_block.",)),
    Rule("auraflow", any=("double_layers.0.attn.w1q.", "joint_transformer_blocks.0.")),
    Rule("qwen_image", all=("transformer_blocks.0.img_mlp.", "transformer_blocks.0.attn.add_k_proj.")),
    Rule("qwen_image", any=("txt_in.text_norm.weight$",)),
    Rule("krea2", any=("txtfusion.projector.weight$", "text_fusion.projector.weight$")),
    Rule("ideogram4", any=("llm_cond_proj.weight$",)),
    Rule("sd3", all=("transformer_blocks.0.attn.add_k_proj.", "pos_embed.proj.weight$")),
    Rule("glm_image", any=("glyph_projector.",)),
    Rule("cogview", all=("time_condition_embed.", "patch_embed.text_proj.")),
    Rule("cogvideo", all=("transformer_blocks.0.norm1.linear.weight$", "patch_embed.text_proj.")),
    Rule("bria", any=("perceiver.latent_queries$",)),
    Rule("z_image", any=("layers.0.adaLN_modulation.0.weight$",)),
    Rule("omnigen2", any=("ref_image_patch_embedder.",)),
    Rule("lumina2", any=("cap_embedder.0.weight$", "time_caption_embed.caption_embedder.")),
    Rule("ernie_image", any=("layers.0.adaLN_sa_ln.weight$",)),
    Rule("pixart", all=("blocks.0.cross_attn.q_linear.", "blocks.0.mlp.fc1.")),
    Rule("sana", any=("blocks.0.cross_attn.q_linear.",)),
    Rule("sana", all=("caption_projection.linear_1.weight$", "transformer_blocks.0.ff.conv_inverted.")),
    Rule("ltx", any=("patchify_proj.weight$",)),
    Rule("ltx", all=("transformer_blocks.0.scale_shift_table$", "transformer_blocks.0.attn1.norm_q.")),
    Rule("pixart", all=("caption_projection.linear_1.weight$", "adaln_single.linear.weight$")),
    Rule("hunyuan_dit", any=("text_embedding_padding$", "blocks.0.default_modulation.")),
    Rule("wan", any=("head.modulation$", "condition_embedder.time_embedder."), none=("double_blocks.",)),
    Rule("mochi", any=("blocks.0.attn.qkv_x.weight$", "time_embed.pooler.")),
    Rule("kandinsky5", any=("visual_transformer_blocks.0.",)),
    Rule("anima", any=("llm_adapter.blocks.0.",)),
    Rule("cosmos", any=("x_embedder.proj.1.weight$", "learnable_pos_embed.pos_emb_h$")),
)

ADAPTER_RULES: tuple[Rule, ...] = (
    Rule("chroma", any=("distilled_guidance_layer",)),
    Rule("flux3", any=("mode_blocks.image.", "early_stream_modulations.")),
    Rule("flux2", any=("to_qkv_mlp_proj.", "to_qkv_mlp_proj_", "double_stream_modulation_img")),
    Rule("auraflow", any=("joint_transformer_blocks.", "joint_transformer_blocks_", "double_layers.")),
    Rule("hidream", any=("double_stream_blocks.", "double_stream_blocks_")),
    Rule("hunyuan_video", any=("token_refiner", "double_blocks.0.img_attn_qkv.", "double_blocks_19_", "single_blocks_38_")),
    Rule("hunyuan_video", any=("double_blocks.19.", "single_blocks.38.", "single_transformer_blocks.38.")),  # FLUX.1 has 19 and 38
    Rule("flux", any=("double_blocks_", "single_blocks_", "double_blocks.", "single_blocks.", "single_transformer_blocks")),
    Rule("sd3", any=("joint_blocks_", "joint_blocks.")),
    Rule("qwen_image", any=("transformer_blocks.0.img_mlp.", "transformer_blocks_0_img_mlp", "blocks.40.attn.add_", "blocks_40_attn_add_")),
    Rule("sdxl", any=("attentions_0_transformer_blocks_1_", "attentions.0.transformer_blocks.1.", "_1_transformer_blocks_1_attn")),
    Rule("cosmos", any=("blocks.0.self_attn.q_proj.", "blocks_0_self_attn_q_proj.")),
    Rule(
        "wan",
        any=("blocks.0.cross_attn.k.", "blocks_0_cross_attn_k", "^transformer.blocks.0.attn1.", "^diffusion_model.blocks.0.self_attn."),
    ),
    Rule("z_image", any=("layers.0.attention.to_q.", "layers_0_attention_to_q.")),
    Rule("lumina2", any=("layers.0.attention.qkv.", "layers_0_attention_qkv.", "layers.0.attn.to_q.")),
    Rule("sdxl", any=("lora_te2_", "text_encoder_2."), none=("lora_te3_", "te2_encoder_block_", "text_encoder_2.encoder.block.")),
)
"""Families of adapters whose modules do not tell the width of the text."""
