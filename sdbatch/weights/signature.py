"""What tells the kinds and parts of weight files apart: tensor names, as data.

Each table is read top to bottom, the first row that matches is the answer. A new kind or dialect is a new row.
"""

from __future__ import annotations

from dataclasses import replace

from sdbatch.weights.key import Rule

LORA_SUFFIXES = (
    ".lora_down.weight$",  # kohya, LyCORIS
    ".lora_A.",  # peft, diffusers; in a model's own state the adapter's name stands behind
    ".lora.down.weight$",  # OneTrainer, old diffusers
    "_lora.down.weight$",  # diffusers' attention processors
    "_lora1.down.weight$",  # XLabs'
    "_lora2.down.weight$",
    ".lora_linear_layer.down.weight$",
)

UPSCALER_RULES: tuple[Rule, ...] = (
    Rule("esrgan", any=("^model.1.sub.0.RDB1.conv1.0.weight$", "RDB1.conv1.weight$", ".rdb1.conv1.weight$", "^RRDB_trunk.")),
    Rule("swinir", any=("^layers.0.residual_group.blocks.0.attn.relative_position_bias_table$",)),
    Rule("dat", any=("^layers.0.blocks.0.attn.temperature$",)),
    Rule("span", any=("^block_1.c1_r.sk.weight$",)),
    Rule("omnisr", any=("^residual_layer.0.",)),
    Rule("plksr", any=("^feats.0.weight$", "^dblocks.0.")),
    Rule("real-cugan", any=("^unet1.conv1.conv.0.weight$",)),
    Rule("compact", all=("^body.0.weight$", "^body.1.weight$", "^body.2.weight$")),  # Real-ESRGAN's
)
"""Networks that enlarge pictures, of those that are run."""

KIND_RULES: tuple[Rule, ...] = (
    Rule(
        "ip_adapter",
        any=("^ip_adapter.", "^image_proj.", ".to_k_ip.weight$", ".ip_adapter_double_stream_k_proj.", "^ip_adapter_proj_model."),
    ),
    Rule("controlnet", any=("^lllite_unet_",)),
    Rule("controlnet", any=("^control_model.", "^input_hint_block.", "controlnet_cond_embedding.", "^zero_convs.", "^lora_controlnet$")),
    Rule("controlnet", any=("^controlnet_blocks.", "^controlnet_down_blocks.", "^controlnet_x_embedder.", "^control_all_x_embedder.")),
    Rule("t2i_adapter", any=("^adapter.body.0.", "^body.0.block1.weight$", "^body.0.in_conv.weight$", "^body.0.resnets.0.block1.weight$")),
    Rule("lora", any=LORA_SUFFIXES),
    Rule("lora", any=(".hada_w1_a$", ".lokr_w1$", ".lokr_w1_a$", ".oft_blocks$", ".oft_diag$", ".on_input$", ".dora_scale$")),
    Rule("lora", any=("^unet:0:up$", "^text_encoder:0:up$", ".oft_R.", ".boft_R.", ".vera_lambda_b", ".lambda_layer$")),
    Rule("lora", all=(".a1.weight$", ".b1.weight$")),
    Rule("lora", any=(".diff$", ".diff_b$")),
    Rule("embedding", any=("^emb_params$", "^string_to_param.", "^clip_l$", "^clip_g$", "^bundle_emb.")),
    Rule("hypernetwork", any=(".0.linear.0.weight$", ".0.linear1.weight$"), all=(".0.linear", ".1.linear"), none=("single_blocks.",)),
    Rule("style_model", any=("^redux_up.weight$", "^style_embedding$")),
    Rule("motion_module", any=(".motion_modules.0.",), none=("conv_in.weight$", "input_blocks.0.0.weight$")),
    *(replace(rule, label="upscaler") for rule in UPSCALER_RULES),
    Rule("upscaler", any=(".residual_group.blocks.0.attn.relative_position_bias_table$", "^layers.0.residual_group.", "^to_feat.weight$")),
)
"""Kinds that are neither whole checkpoints nor one of their parts."""

LORA_ALGORITHMS: tuple[Rule, ...] = (
    Rule("dora", any=(".dora_scale$", ".lora_magnitude_vector$", ".lora_magnitude_vector.weight$")),
    Rule("loha", any=(".hada_w1_a$",)),
    Rule("lokr", any=(".lokr_w1$", ".lokr_w1_a$")),
    Rule("vera", any=(".vera_lambda_b",)),
    Rule("tlora", any=(".lambda_layer$",)),
    Rule("oft", any=(".oft_blocks$", ".oft_diag$", ".oft_R.", ".boft_R.")),  # BOFT is told apart by its dimensions
    Rule("ia3", any=(".on_input$",)),
    Rule("glora", all=(".a1.weight$", ".b1.weight$")),
    Rule("locon", any=(".lora_mid.weight$",)),
    Rule("lora", any=LORA_SUFFIXES),
    Rule("full", any=(".diff$", ".diff_b$")),
)

PART_RULES: tuple[Rule, ...] = (
    Rule("unet", any=("^model.diffusion_model.input_blocks.", "^unet.down_blocks.", "^unet.conv_in.", "^diffusion_model.input_blocks.")),
    Rule("unet", any=("^input_blocks.0.0.weight$", "^time_embedding.linear_1.weight$")),
    Rule("transformer", any=("^model.diffusion_model.",), none=("^model.diffusion_model.input_blocks.",)),
    Rule("transformer", any=("^transformer.",), none=("^transformer.resblocks.", "^transformer.text_model.", "^transformer.encoder.")),
    Rule("ema", any=("^model_ema.",)),
    Rule("vae", any=("^first_stage_model.", "^vae.")),
    Rule("text_encoder", any=("^cond_stage_model.", "^conditioner.embedders.0.transformer.", "^text_encoders.clip_l.", "^text_encoder.")),
    # The SDXL refiner has the second encoder alone, in the first place.
    Rule(
        "text_encoder_2", any=("^conditioner.embedders.1.", "^conditioner.embedders.0.model.", "^text_encoders.clip_g.", "^text_encoder_2.")
    ),
    Rule("text_encoder_2", any=("^text_encoders.t5xxl.",), none=("^text_encoders.clip_g.",)),
    Rule("text_encoder_3", any=("^text_encoders.t5xxl.",), all=("^text_encoders.clip_g.",)),
    Rule("text_encoder_3", any=("^text_encoder_3.",)),
    Rule("image_encoder", any=("^image_encoder.", "^embedder.model.visual.")),
)
"""Parts of a checkpoint; every row that matches adds its part."""

VAE_RULES: tuple[Rule, ...] = (
    Rule("video", any=("decoder.norm_out.gamma$", "decoder.middle.0.residual.0.gamma$", "decoder.conv_in.conv.weight$", ".time_conv_out.")),
    Rule("vae", any=("decoder.conv_in.weight$",), all=("encoder.",)),
    Rule("taesd", any=("^decoder.layers.0.weight$", "^taesd_decoder.", "^decoder.1.weight$"), none=("decoder.conv_in.",)),
    Rule("dc-ae", any=("decoder.stages.", "encoder.project_in.")),
    Rule("decoder", any=("^decoder.conv_in.weight$",), none=("encoder.conv_in.weight$",)),
)

TEXT_ENCODER_RULES: tuple[Rule, ...] = (
    Rule("t5", any=("encoder.block.0.layer.0.SelfAttention.",)),
    Rule("clip", any=("text_model.embeddings.token_embedding.weight$", "^embeddings.token_embedding.weight$")),
    Rule("openclip", any=("transformer.resblocks.0.attn.in_proj_weight$",), all=("token_embedding.weight$",)),
    Rule("llm", any=("^model.embed_tokens.weight$", "^embed_tokens.weight$"), all=("layers.0.self_attn.",)),
)

IMAGE_ENCODER_RULES: tuple[Rule, ...] = (Rule("clip_vision", any=("^vision_model.", "^visual.", "^model.vision_model.")),)

V_PREDICTION_MARKERS = ("^v_pred$", "^v-pred$", "^model.v_pred$")
"""Empty tensors that merging tools leave in v-prediction checkpoints."""
ZERO_SNR_MARKERS = ("^ztsnr$", "^model.ztsnr$")
