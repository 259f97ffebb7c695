"""Names and shapes of weight files as their writers write them: a few tensors of each, enough to tell what it is."""

from __future__ import annotations

Tensors = dict[str, tuple[int, ...]]

LDM = "model.diffusion_model."


def ldm_unet(cross: int, channels: int = 4, prefix: str = LDM, attention: str = "input_blocks.1.1") -> Tensors:
    return {
        f"{prefix}input_blocks.0.0.weight": (320, channels, 3, 3),
        f"{prefix}time_embed.0.weight": (1280, 320),
        f"{prefix}{attention}.transformer_blocks.0.attn1.to_k.weight": (320, 320),
        f"{prefix}{attention}.transformer_blocks.0.attn2.to_k.weight": (320, cross),
        f"{prefix}middle_block.0.in_layers.0.weight": (1280,),
        f"{prefix}output_blocks.11.1.transformer_blocks.0.norm1.bias": (320,),
        f"{prefix}out.2.weight": (4, 320, 3, 3),
    }


def diffusers_unet(cross: int, channels: int = 4, prefix: str = "") -> Tensors:
    return {
        f"{prefix}conv_in.weight": (320, channels, 3, 3),
        f"{prefix}time_embedding.linear_1.weight": (1280, 320),
        f"{prefix}down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, cross),
        f"{prefix}mid_block.resnets.0.conv1.weight": (1280, 1280, 3, 3),
        f"{prefix}conv_out.weight": (4, 320, 3, 3),
    }


def ldm_vae(prefix: str = "first_stage_model.", latent: int = 4, width: int = 128, quant: bool = True) -> Tensors:
    names: Tensors = {
        f"{prefix}encoder.conv_in.weight": (width, 3, 3, 3),
        f"{prefix}encoder.down.0.block.0.conv1.weight": (width, width, 3, 3),
        f"{prefix}decoder.conv_in.weight": (512, latent, 3, 3),
        f"{prefix}decoder.up.0.block.0.conv1.weight": (width, width, 3, 3),
    }
    return {**names, f"{prefix}quant_conv.weight": (8, 8, 1, 1)} if quant else names


def diffusers_vae(latent: int = 4, prefix: str = "") -> Tensors:
    return {
        f"{prefix}encoder.conv_in.weight": (128, 3, 3, 3),
        f"{prefix}encoder.down_blocks.0.resnets.0.conv1.weight": (128, 128, 3, 3),
        f"{prefix}decoder.conv_in.weight": (512, latent, 3, 3),
        f"{prefix}decoder.up_blocks.0.resnets.0.conv1.weight": (512, 512, 3, 3),
        f"{prefix}decoder.conv_out.weight": (3, 128, 3, 3),
    }


def clip(prefix: str, width: int = 768) -> Tensors:
    return {
        f"{prefix}text_model.embeddings.token_embedding.weight": (49408, width),
        f"{prefix}text_model.embeddings.position_embedding.weight": (77, width),
        f"{prefix}text_model.encoder.layers.0.self_attn.q_proj.weight": (width, width),
    }


def openclip(prefix: str, width: int) -> Tensors:
    return {
        f"{prefix}token_embedding.weight": (49408, width),
        f"{prefix}positional_embedding": (77, width),
        f"{prefix}transformer.resblocks.0.attn.in_proj_weight": (3 * width, width),
        f"{prefix}transformer.resblocks.9.mlp.c_proj.bias": (width,),
        f"{prefix}text_projection": (width, width),
    }


def t5(prefix: str = "", width: int = 4096) -> Tensors:
    return {
        f"{prefix}shared.weight": (32128, width),
        f"{prefix}encoder.embed_tokens.weight": (32128, width),
        f"{prefix}encoder.block.0.layer.0.SelfAttention.q.weight": (width, width),
    }


def ema_of(tensors: Tensors) -> Tensors:
    """LDM's EMA weights have names without dots."""
    return {"model_ema." + name.removeprefix("model.").replace(".", ""): shape for name, shape in tensors.items() if name.startswith(LDM)}


def sd1(channels: int = 4) -> Tensors:
    return {**ldm_unet(768, channels), **ldm_vae(), **clip("cond_stage_model.transformer.")}


def sd2(channels: int = 4) -> Tensors:
    return {**ldm_unet(1024, channels), **ldm_vae(), **openclip("cond_stage_model.model.", 1024)}


def sdxl(channels: int = 4) -> Tensors:
    unet = ldm_unet(2048, channels, attention="input_blocks.4.1")
    return {**unet, **ldm_vae(), **clip("conditioner.embedders.0.transformer."), **openclip("conditioner.embedders.1.model.", 1280)}


def sdxl_refiner() -> Tensors:
    return {**ldm_unet(1280, attention="input_blocks.4.1"), **ldm_vae(), **openclip("conditioner.embedders.0.model.", 1280)}


def flux(prefix: str = "", guidance: bool = True, inputs: int = 64) -> Tensors:
    names: Tensors = {
        f"{prefix}img_in.weight": (3072, inputs),
        f"{prefix}txt_in.weight": (3072, 4096),
        f"{prefix}vector_in.in_layer.weight": (3072, 768),
        f"{prefix}double_blocks.0.img_attn.norm.key_norm.scale": (128,),
        f"{prefix}double_blocks.0.img_attn.qkv.weight": (9216, 3072),
        f"{prefix}single_blocks.0.linear1.weight": (21504, 3072),
        f"{prefix}single_blocks.1.linear1.weight": (21504, 3072),
    }
    return {**names, f"{prefix}guidance_in.in_layer.bias": (3072,)} if guidance else names


def flux_diffusers(prefix: str = "", guidance: bool = True) -> Tensors:
    names: Tensors = {
        f"{prefix}x_embedder.weight": (3072, 64),
        f"{prefix}context_embedder.weight": (3072, 4096),
        f"{prefix}time_text_embed.text_embedder.linear_1.weight": (3072, 768),
        f"{prefix}transformer_blocks.0.attn.add_k_proj.weight": (3072, 3072),
        f"{prefix}single_transformer_blocks.0.proj_mlp.weight": (12288, 3072),
    }
    return {**names, f"{prefix}time_text_embed.guidance_embedder.linear_1.weight": (3072, 256)} if guidance else names


def sd3(prefix: str = LDM, blocks: tuple[int, ...] = (0, 23), dual: bool = False) -> Tensors:
    names: Tensors = {f"{prefix}context_embedder.weight": (1536, 4096), f"{prefix}pos_embed": (1, 36864, 1536)}
    for block in blocks:
        names[f"{prefix}joint_blocks.{block}.context_block.adaLN_modulation.1.bias"] = (9216,)
        names[f"{prefix}joint_blocks.{block}.x_block.attn.qkv.weight"] = (4608, 1536)
    return {**names, f"{prefix}joint_blocks.0.x_block.attn2.qkv.weight": (4608, 1536)} if dual else names


# ---- adapters ---------------------------------------------------------------------------------------------------------

SD_MODULES = (
    ("down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 320, 320),
    ("down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 320, 0),
    ("mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj", 10240, 1280),
    ("up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_v", 1280, 0),
)
"""Name, width out, width in; 0 is the width of the text."""
SGM_MODULES = (
    ("input_blocks_4_1_transformer_blocks_1_attn2_to_k", 640, 0),
    ("middle_block_1_transformer_blocks_0_attn1_to_q", 1280, 1280),
    ("output_blocks_0_1_transformer_blocks_9_attn1_to_q", 1280, 1280),
)
TEXT_MODULES = (("text_model_encoder_layers_0_self_attn_q_proj", 768), ("text_model_encoder_layers_11_mlp_fc1", 768))

Modules = list[tuple[str, int, int]]


def unet_modules(cross: int, prefix: str = "lora_unet_", sgm: bool = False) -> Modules:
    return [(prefix + name, out, into or cross) for name, out, into in (SGM_MODULES if sgm else SD_MODULES)]


def text_modules(width: int, prefix: str = "lora_te_") -> Modules:
    return [(prefix + name, width, width) for name, _ in TEXT_MODULES]


def kohya(modules: Modules, rank: int = 8) -> Tensors:
    names: Tensors = {}
    for name, out, into in modules:
        names |= {f"{name}.lora_down.weight": (rank, into), f"{name}.lora_up.weight": (out, rank)}
    return names


def alphas(modules: Modules, alpha: float) -> dict[str, float]:
    return {f"{name}.alpha": alpha for name, _, _ in modules}


def dotted(modules: Modules, prefix: str) -> Modules:
    """The names of diffusers and peft, which have dots where kohya writes `_`."""
    dots = [
        (name.removeprefix("lora_unet_").replace("down_blocks_", "down_blocks.").replace("up_blocks_", "up_blocks."), out, into)
        for name, out, into in modules
    ]
    changes = (("_attentions_", ".attentions."), ("_transformer_blocks_", ".transformer_blocks."), ("_attn", ".attn"), ("_to_", ".to_"))
    found: Modules = []
    for name, out, into in dots:
        for before, after in (*changes, ("_ff_net_0_proj", ".ff.net.0.proj"), ("mid_block_", "mid_block.")):
            name = name.replace(before, after)
        found.append((prefix + name, out, into))
    return found


def peft(modules: Modules, rank: int = 8) -> Tensors:
    names: Tensors = {}
    for name, out, into in modules:
        names |= {f"{name}.lora_A.weight": (rank, into), f"{name}.lora_B.weight": (out, rank)}
    return names


def old_diffusers(modules: Modules, rank: int = 4) -> Tensors:
    names: Tensors = {}
    for name, out, into in modules:
        names |= {f"{name}.lora.down.weight": (rank, into), f"{name}.lora.up.weight": (out, rank)}
    return names


def processors(cross: int, rank: int = 4) -> Tensors:
    base = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora"
    return {f"{base}.down.weight": (rank, cross), f"{base}.up.weight": (320, rank)}


def locon(modules: Modules, rank: int = 8) -> Tensors:
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    return {**kohya(modules, rank), f"{conv}.lora_down.weight": (rank, 320, 3, 3), f"{conv}.lora_up.weight": (320, rank, 1, 1)}


def loha(modules: Modules, rank: int = 4) -> Tensors:
    names: Tensors = {}
    for name, out, into in modules:
        for half in ("w1", "w2"):
            names |= {f"{name}.hada_{half}_a": (out, rank), f"{name}.hada_{half}_b": (rank, into)}
    return names


def lokr(modules: Modules, factor: int = 8, rank: int = 4) -> Tensors:
    names: Tensors = {}
    for name, out, into in modules:
        names |= {
            f"{name}.lokr_w1": (factor, factor),
            f"{name}.lokr_w2_a": (out // factor, rank),
            f"{name}.lokr_w2_b": (rank, into // factor),
        }
    return names


def dora(modules: Modules) -> Tensors:
    return {**kohya(modules), **{f"{name}.dora_scale": (1, into) for name, _, into in modules}}


def glora(modules: Modules, rank: int = 4) -> Tensors:
    names: Tensors = {}
    for name, out, into in modules:
        names |= {f"{name}.a1.weight": (rank, into), f"{name}.a2.weight": (into, rank)}
        names |= {f"{name}.b1.weight": (rank, into), f"{name}.b2.weight": (out, rank)}
    return names


def ia3(modules: Modules) -> Tensors:
    return {key: shape for name, out, _ in modules for key, shape in ((f"{name}.weight", (out, 1)), (f"{name}.on_input", ()))}


def full(modules: Modules) -> Tensors:
    return {f"{name}.diff": (out, into) for name, out, into in modules}


def oft(modules: Modules, boft: bool = False) -> Tensors:
    return {f"{name}.oft_blocks": (4, 8, 16, 16) if boft else (8, 16, 16) for name, _, _ in modules}


FLUX_KOHYA: Modules = [("lora_unet_double_blocks_0_img_attn_qkv", 9216, 3072), ("lora_unet_single_blocks_5_linear1", 21504, 3072)]
FLUX_PEFT: Modules = [
    ("transformer.transformer_blocks.3.attn.add_k_proj", 3072, 3072),
    ("transformer.single_transformer_blocks.37.attn.to_q", 3072, 3072),
]
SD3_KOHYA: Modules = [("lora_unet_joint_blocks_0_context_block_attn_qkv", 4608, 1536)]


def ldm_controlnet(cross: int, prefix: str = "control_model.") -> Tensors:
    return {
        **ldm_unet(cross, prefix=prefix),
        f"{prefix}zero_convs.0.0.weight": (320, 320, 1, 1),
        f"{prefix}input_hint_block.0.weight": (16, 3, 3, 3),
    }


def diffusers_controlnet(cross: int) -> Tensors:
    return {
        **diffusers_unet(cross),
        "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
        "controlnet_down_blocks.0.weight": (320, 320, 1, 1),
    }


def ip_adapter(cross: int, image: int = 1024) -> Tensors:
    return {
        "image_proj.proj.weight": (4 * cross, image),
        "image_proj.norm.weight": (cross,),
        "ip_adapter.1.to_k_ip.weight": (320, cross),
        "ip_adapter.1.to_v_ip.weight": (320, cross),
    }


def ip_adapter_plus(cross: int, hidden: int) -> Tensors:
    attention = {name: shape for name, shape in ip_adapter(cross).items() if name.startswith("ip_adapter.")}
    resampler = {"latents": (1, 16, 64), "proj_in.weight": (64, hidden), "proj_out.weight": (cross, 64), "layers.0.0.to_q.weight": (64, 64)}
    return {**{f"image_proj.{name}": shape for name, shape in resampler.items()}, **attention}


def ip_adapter_full(cross: int, hidden: int) -> Tensors:
    attention = {name: shape for name, shape in ip_adapter(cross).items() if name.startswith("ip_adapter.")}
    layers = {"proj.0.weight": (hidden, hidden), "proj.2.weight": (cross, hidden), "proj.3.weight": (cross,)}
    return {**{f"image_proj.{name}": shape for name, shape in layers.items()}, **attention}


def ip_adapter_faceid(cross: int) -> Tensors:
    attention = {name: shape for name, shape in ip_adapter(cross).items() if name.startswith("ip_adapter.")}
    layers = {"proj.0.weight": (1024, 512), "proj.2.weight": (4 * cross, 1024), "norm.weight": (cross,)}
    lora = {"ip_adapter.1.to_q_lora.down.weight": (128, 320)}
    return {**{f"image_proj.{name}": shape for name, shape in layers.items()}, **attention, **lora}


def clip_vision(hidden: int, projection: int) -> Tensors:
    return {
        "vision_model.embeddings.class_embedding": (hidden,),
        "vision_model.embeddings.patch_embedding.weight": (hidden, 3, 14, 14),
        "vision_model.encoder.layers.0.mlp.fc1.weight": (4 * hidden, hidden),
        "visual_projection.weight": (projection, hidden),
    }


def hypernetwork(widths: tuple[int, ...]) -> Tensors:
    names: Tensors = {}
    for width in widths:
        for half in (0, 1):
            names |= {f"{width}.{half}.linear.0.weight": (2 * width, width), f"{width}.{half}.linear.1.weight": (width, 2 * width)}
    return names
