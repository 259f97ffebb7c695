"""The typed, documented Parquet schema of one row per image.

Only types that pandas, DuckDB and Hugging Face `datasets` all open are used; hence lists of {key, value} where a map
would do (`datasets` has no map type).
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 1
"""Raised when a column changes its meaning or type; a new column does not raise it."""

OK, FAILED, NAN, FLAT = "ok", "failed", "nan", "flat"
STATUSES = (OK, FAILED, NAN, FLAT)
"""`ok` is the only success; `nan` and `flat` were made but show nothing, `failed` raised."""

_TEXT = pa.string()
_ENTRIES = pa.list_(pa.struct([pa.field("key", _TEXT), pa.field("value", _TEXT)]))
_LORAS = pa.list_(
    pa.struct(
        [
            pa.field("name", _TEXT),
            pa.field("sha256", _TEXT),
            pa.field("autov3", _TEXT),
            pa.field("weight", pa.float64()),
            pa.field("text_encoder_weight", pa.float64()),
            pa.field("blocks", _TEXT),
            pa.field("applied_keys", pa.int32()),
            pa.field("total_keys", pa.int32()),
        ]
    )
)
_FILES = pa.list_(pa.struct([pa.field("name", _TEXT), pa.field("sha256", _TEXT)]))
_HYPERNETWORKS = pa.list_(pa.struct([pa.field("name", _TEXT), pa.field("sha256", _TEXT), pa.field("weight", pa.float64())]))
_CONTROLNETS = pa.list_(
    pa.struct(
        [
            pa.field("name", _TEXT),
            pa.field("sha256", _TEXT),
            pa.field("image", _TEXT),
            pa.field("image_sha256", _TEXT),
            pa.field("preprocessor", _TEXT),
            pa.field("weight", pa.float64()),
            pa.field("start", pa.float64()),
            pa.field("end", pa.float64()),
        ]
    )
)

_IP_ADAPTERS = pa.list_(
    pa.struct(
        [
            pa.field("name", _TEXT),
            pa.field("sha256", _TEXT),
            pa.field("image", _TEXT),
            pa.field("image_sha256", _TEXT),
            pa.field("weight", pa.float64()),
            pa.field("start", pa.float64()),
            pa.field("end", pa.float64()),
        ]
    )
)

_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("image_id", _TEXT, "32 hex digits: hash of everything that changes the image, weight files by content"),
    ("sweep", _TEXT, "name of the sweep this image was made for"),
    ("recipe_id", _TEXT, "12 hex digits: hash of the weights in memory and how they are wired"),
    ("axes", _ENTRIES, "the axes of the sweep and this image's values, each value as JSON"),
    ("config", _TEXT, "the whole resolved configuration of this image, canonical JSON"),
    ("status", _TEXT, "ok, failed (raised), nan (not finite, not saved) or flat (one colour)"),
    ("error", _TEXT, "why status is not ok; null when it is"),
    ("prompt", _TEXT, "the prompt as the text encoder got it"),
    ("negative_prompt", _TEXT, "the negative prompt, empty for none"),
    ("seed", pa.int64(), "seed of this image's own CPU noise generator, 0 to 2**32 - 1"),
    ("sampler", _TEXT, "sampler option as typed, such as dpmpp_2m_karras"),
    ("sampler_label", _TEXT, "sampler as A1111 names it, such as DPM++ 2M"),
    ("sampler_schedule", _TEXT, "A1111's schedule type, such as Karras"),
    ("scheduler", _TEXT, "class of diffusers that ran the sampler"),
    ("scheduler_options", _TEXT, "options of that class, canonical JSON"),
    ("steps", pa.int32(), "denoising steps asked for"),
    ("guidance_scale", pa.float64(), "classifier-free guidance, 1 is none"),
    ("guidance_rescale", pa.float64(), "share of the guided prediction that has the spread of the unguided one, 0 is none"),
    ("clip_skip", pa.int32(), "A1111's counting: 1 is the last layer of the text encoder, 2 the one before"),
    ("task", _TEXT, "txt2img, hires, img2img or inpaint"),
    ("task_image", _TEXT, "file name of the picture it started from; null: from noise"),
    ("task_image_sha256", _TEXT, "SHA-256 of that file"),
    (
        "task_strength",
        pa.float64(),
        "share of the steps run on the picture, or in the second pass, 0 to 1; null: all, from noise",
    ),
    ("task_resize", _TEXT, "how the picture was brought to size: stretch, crop or pad"),
    ("task_mask", _TEXT, "file name of the mask, white is made anew; null: none"),
    ("task_mask_sha256", _TEXT, "SHA-256 of the mask file"),
    ("task_mask_blur", pa.int32(), "blur of the mask in pixels"),
    ("task_fill", _TEXT, "what it started from under the mask: original, noise or nothing"),
    ("task_paste", pa.bool_(), "whether the picture's own pixels were put back outside of the mask"),
    ("task_steps", pa.int32(), "steps of the second pass of a hires fix, of which the strength runs its share; null: there was none"),
    ("task_width", pa.int32(), "width in pixels at which the second pass denoised; null: there was none"),
    ("task_height", pa.int32(), "height in pixels at which the second pass denoised"),
    ("task_upscaler", _TEXT, "what enlarged between the passes: latent, latent_nearest, ..., lanczos, or the name of a network"),
    ("task_upscaler_sha256", _TEXT, "SHA-256 of that network's file; null: it needed none"),
    ("width", pa.int32(), "width in pixels at which it was denoised, of a hires fix first"),
    ("height", pa.int32(), "height in pixels at which it was denoised, of a hires fix first"),
    ("family", _TEXT, "architecture, such as sd1"),
    ("engine", _TEXT, "diffusers, or rehearsal: a test pattern in place of an image"),
    ("prediction_type", _TEXT, "epsilon or v_prediction; null: what the checkpoint's config says"),
    ("checkpoint", _TEXT, "name of the checkpoint"),
    ("checkpoint_sha256", _TEXT, "SHA-256 of the checkpoint; its first 10 digits are Civitai's AutoV2"),
    ("merge", _TEXT, "how the checkpoint was merged with others in memory: method, numbers, names and SHA-256, JSON; null: it was not"),
    ("vae", _TEXT, "name of the VAE; null: the one baked into the checkpoint"),
    ("vae_sha256", _TEXT, "SHA-256 of the VAE file; null: baked"),
    ("text_encoder", _TEXT, "name of the text encoder; null: the one baked into the checkpoint"),
    ("text_encoder_sha256", _TEXT, "SHA-256 of the text encoder file; null: baked"),
    ("text_encoder_2", _TEXT, "name of the second text encoder; null: the one baked into the checkpoint, or none"),
    ("text_encoder_2_sha256", _TEXT, "SHA-256 of the second text encoder file; null: baked, or none"),
    ("upscaler", _TEXT, "name of the network that enlarged the picture; null: none, or Lanczos"),
    ("upscaler_sha256", _TEXT, "SHA-256 of the upscaler file; null: none"),
    (
        "upscale",
        pa.float64(),
        "final size over the last pass's as asked for; null: the upscaler's own factor, or not enlarged",
    ),
    ("loras", _LORAS, "the LoRA stack in its order; 1 is as trained; blocks as typed; applied of total keys, null when not counted"),
    ("embeddings", _FILES, "the textual-inversion embeddings at hand"),
    ("hypernetworks", _HYPERNETWORKS, "the hypernetworks in their order; 1 is as trained"),
    ("controlnets", _CONTROLNETS, "the ControlNets with their inputs; image is a file name; start and end as shares of the steps"),
    ("ip_adapters", _IP_ADAPTERS, "the IP-Adapters with their pictures; image is a file name; start and end as shares of the steps"),
    ("image_encoders", _FILES, "the image encoders that the IP-Adapters see through"),
    ("image", _TEXT, "path of the PNG relative to the sweep folder, with /, a block of images as a folder; null when none was saved"),
    ("image_offset", pa.int64(), "where the PNG begins in its tar block; null: the image is a file, or in a Parquet block"),
    ("image_bytes", pa.int64(), "size of the PNG file in bytes"),
    ("image_sha256", _TEXT, "SHA-256 of the PNG file"),
    ("image_width", pa.int32(), "width in pixels of the finished picture, enlarged or not"),
    ("image_height", pa.int32(), "height in pixels of the finished picture"),
    ("image_mean", pa.float64(), "mean of all pixels and channels, 0 black to 1 white"),
    ("image_std", pa.float64(), "standard deviation of all pixels and channels, 0 is one colour"),
    ("batch_size", pa.int32(), "images denoised together; part of what decides the last bits of the pixels"),
    ("batch_slot", pa.int32(), "place in that batch, from 0"),
    ("device", _TEXT, "device that denoised it, such as cpu or NVIDIA H200"),
    ("dtype", _TEXT, "dtype of the denoiser's weights"),
    ("threads", pa.int32(), "CPU threads of torch"),
    ("retried_fp32", pa.bool_(), "true when the first decode was not finite and was redone in float32"),
    ("attempts", pa.int32(), "tries this image took, crashes included; 1 is the first"),
    ("encode_s", pa.float64(), "seconds of text encoding, this image's share of its batch"),
    ("denoise_s", pa.float64(), "seconds of denoising, this image's share of its batch"),
    ("decode_s", pa.float64(), "seconds of VAE decoding and of enlarging, this image's share of its batch"),
    ("versions", _ENTRIES, "versions of sdbatch and of the libraries that computed the image"),
    ("host", _TEXT, "machine that made it"),
    ("worker", _TEXT, "worker process that made it"),
    ("made_at", pa.timestamp("us", tz="UTC"), "when the row was made, UTC; not used for ordering a sweep"),
    ("schema_version", pa.int32(), "version of this schema"),
)

SCHEMA: pa.Schema = pa.schema(
    [pa.field(name, kind, metadata={"description": text}) for name, kind, text in _COLUMNS],
    metadata={"sdbatch.schema_version": str(SCHEMA_VERSION)},
)
"""One row per image. The names are an interface: people query them."""

VOLATILE = ("encode_s", "denoise_s", "decode_s", "attempts", "host", "worker", "made_at")
"""Columns that differ between two makings of the same image; all others are equal."""
