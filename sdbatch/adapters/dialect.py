"""How adapter files name their tensors: each key is a component, a module in it, and the tensor's role to the module.

kohya writes `lora_unet_down_blocks_0_..._to_q.lora_down.weight`, diffusers `unet.down_blocks.0....to_q.lora.down.weight`,
peft `unet.down_blocks.0....to_q.lora_A.weight`, OneTrainer's OMI `clip_g.text_model....lora_down.weight`. With dots and
underscores made the same, one look-up (`names`) serves all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from sdbatch.errors import WeightFileError
from sdbatch.weights.peft import WRAPPER

ROLES: dict[str, str] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.bias": "up_bias",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    **{f".{name}.weight": name for name in ("a1", "a2", "b1", "b2", "bm")},
    **{f".{name}.weight": name for name in ("oft_R", "boft_R")},
    **{f".{name}": name for name in ("alpha", "scale", "diff", "diff_b", "w_norm", "b_norm", "set_weight")},
    **{f".{name}": name for name in ("dora_scale", "oft_blocks", "oft_diag", "rescale", "on_input", "vera_lambda_b", "lambda_layer")},
    **{f".hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
"""How a key ends, and the role of its tensor."""

DENOISER = ("unet", "transformer")
CLIP = ("text_encoder",)
SECOND = ("text_encoder_2",)
T5 = ("text_encoder_3", "text_encoder_2")

COMPONENTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("lora_unet_", DENOISER),
    ("lora_transformer_", DENOISER),
    ("lycoris_", (*DENOISER, *CLIP)),
    ("lora_te_", CLIP),
    ("lora_te1_", CLIP),
    ("lora_te2_", SECOND),
    ("lora_te3_", T5),
    ("unet.base_model.model.", DENOISER),
    ("transformer.base_model.model.", DENOISER),
    ("text_encoder.base_model.model.", CLIP),
    ("text_encoder_2.base_model.model.", SECOND),
    (WRAPPER, (*DENOISER, *CLIP)),
    ("model.diffusion_model.", DENOISER),
    ("diffusion_model.", DENOISER),
    ("unet.", DENOISER),
    ("transformer.", DENOISER),
    ("text_encoder.", CLIP),
    ("text_encoder_2.", SECOND),
    ("text_encoder_3.", T5),
    ("text_encoders.clip_l.transformer.", CLIP),
    ("text_encoders.clip_g.transformer.", SECOND),
    ("text_encoders.clip_h.transformer.", CLIP),
    ("text_encoders.t5xxl.transformer.", T5),
    ("clip_l.", CLIP),
    ("clip_g.", SECOND),
    ("clip_h.", CLIP),
    ("t5.", T5),
    ("", DENOISER),
)
"""How a key begins, and the components it may belong to; the first that fits is taken."""

BUNDLED = re.compile(r"^bundle_emb\.(.+)\.(?:string_to_param\.\*|clip_l|clip_g|t5)$")
"""OneTrainer's embeddings inside a LoRA file: the word that calls them."""

_ROLE_PATTERN = re.compile("(" + "|".join(re.escape(end) for end in sorted(ROLES, key=len, reverse=True)) + ")$")
_ADAPTER_NAME = re.compile(r"(\.lora_(?:A|B|magnitude_vector))\.(?!weight$|bias$)[\w-]+(?=\.(?:weight|bias)$)")
"""peft keeps the name of the adapter in a model's own state: `lora_A.default.weight`."""
_XLABS = re.compile(r"^(.*\.processor\.)(qkv|proj)_lora([12])\.(down|up)\.weight$")


def split_key(key: str) -> tuple[str, str] | None:
    """(module, role) of a tensor's name, or None for one that belongs to no adapter."""
    if found := _XLABS.match(key):
        return f"{found[1]}{found[2]}_{found[3]}", found[4]
    key = _ADAPTER_NAME.sub(r"\1", key)
    if found := _ROLE_PATTERN.search(key):
        return key[: found.start()], ROLES[found.group(1)]
    return None


def group_by_module(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """The tensors by module and role, and the names that belong to none.

    Raises: WeightFileError for a module with two tensors of a role, or with one whose meaning is not known: it would be wrong without.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    others: list[str] = []
    for key, tensor in tensors.items():
        if (found := split_key(key)) is None:
            others.append(key)
        elif groups.setdefault(found[0], {}).setdefault(found[1], tensor) is not tensor:
            raise WeightFileError(f"{found[0]} has its {found[1]} twice, once as {key}. Keep one adapter a file.")
    for module, parts in groups.items():
        # IA3's factor has no word of its own for its role: it is the `.weight` beside `.on_input`.
        if "on_input" in parts and f"{module}.weight" in others:
            others.remove(f"{module}.weight")
            parts["ia3"] = tensors[f"{module}.weight"]
    for key in others:
        if (owner := next((owner for owner in _owners(key) if owner in groups), None)) is not None:
            raise WeightFileError(
                f"{owner} has {key.removeprefix(owner)} too, whose meaning is not known. Choose another version of the file."
            )
    return groups, others


def _owners(key: str) -> Iterator[str]:
    """The modules whose part a tensor may be, by its name."""
    parts = key.split(".")
    return (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))


def split_component(module: str) -> tuple[tuple[str, ...], str]:
    """(components it may belong to, name of the module in it, as the file writes it)."""
    prefix, components = next(row for row in COMPONENTS if module.startswith(row[0]))
    return components, module[len(prefix) :]


def flatten(name: str) -> str:
    """A name with dots made underscores, without the wrappers that some writers put in between."""
    name = name.replace(".processor.", ".").replace(".", "_")
    name = re.sub(r"_to_out$", "_to_out_0", name)
    return name.removeprefix("text_model_")
