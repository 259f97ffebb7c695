"""What a LoRA or LyCORIS file changes: its algorithm, and rank and alpha by block."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

from sdbatch.weights.header import FlawError, Header, TensorInfo
from sdbatch.weights.key import Keys, first_match
from sdbatch.weights.peft import WRAPPER, PeftSettings, read_metadata, read_settings
from sdbatch.weights.signature import LORA_ALGORITHMS
from sdbatch.weights.value import read_values

MAX_ALPHAS = 4000
"""Alphas read from one file; full LyCORIS files of the largest families have about 1,500."""

_ROLES = frozenset(
    (
        *("alpha", "rescale", "dora_scale", "lora_magnitude_vector", "on_input", "diff", "diff_b", "w_norm", "b_norm"),
        *("lora_down", "lora_up", "lora_mid", "lora_A", "lora_B", "oft_blocks", "oft_diag", "a1", "a2", "b1", "b2"),
        *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2"),
    )
)
"""The last word of a tensor's name, `.weight` and `.default` aside: what it is to its module."""

_ENCODERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("lora_te2_", "text_encoder_2_", "te2_", "clip_g_"), "text_encoder_2"),
    (("lora_te3_", "text_encoder_3_", "t5xxl_"), "text_encoder_3"),
    (("lora_te_", "lora_te1_", "text_encoder_", "text_model_", "te_", "te1_", "clip_l_", "lora_prior_te_"), "text_encoder"),
)
"""How the name of a text encoder's module begins, with `_` for `.`; the first that matches."""

_BLOCKS: tuple[tuple[re.Pattern[str], str], ...] = (
    # A look back that follows the words lets the search jump to them.
    (re.compile(r"down_blocks_(?<![a-z]down_blocks_)(\d+)"), "down_{}"),
    (re.compile(r"mid(?:_block|dle_block)(?<![a-z]mid_block)(?<![a-z]middle_block)"), "mid"),
    (re.compile(r"up_blocks_(?<![a-z]up_blocks_)(\d+)"), "up_{}"),
    (re.compile(r"input_blocks_(?<![a-z]input_blocks_)(\d+)"), "in_{}"),
    (re.compile(r"output_blocks_(?<![a-z]output_blocks_)(\d+)"), "out_{}"),
    (re.compile(r"double_blocks_(?<![a-z]double_blocks_)(\d+)"), "double_{}"),
    (re.compile(r"single_blocks_(?<![a-z]single_blocks_)(\d+)"), "single_{}"),
    (re.compile(r"single_transformer_blocks_(\d+)"), "single_{}"),
    (re.compile(r"joint_blocks_(\d+)"), "joint_{}"),
    (re.compile(r"^(?:lora_unet_|lora_transformer_|transformer_|diffusion_model_)?transformer_blocks_(\d+)"), "double_{}"),
)
"""Where any other module sits; the first that matches."""


_UNET_BLOCKS = ("down_", "mid", "up_", "in_", "out_")
_TEXT_READERS = ("attn2_to_k", "attn2_to_v", "attn2_processor_to_k", "attn2_processor_to_v")


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """The adapted modules of one block."""

    block: str
    """`down_0`, `mid`, `up_3`, `in_4`, `double_12`, `text_encoder`, `text_encoder_2`, ..., `other`."""
    modules: int
    rank_min: int | None
    """None where the algorithm has no rank."""
    rank_max: int | None
    alpha_min: float | None
    """None where the file does not say: then the strength is not scaled."""
    alpha_max: float | None


@dataclass(frozen=True, slots=True)
class LoraFacts:
    """What the header of an adapter file says about it."""

    algorithm: str
    """lora, locon, loha, lokr, dylora, dora, oft, boft, ia3, glora, vera, tlora or full (differences)."""
    modules: int
    blocks: tuple[BlockFacts, ...]
    cross_attention_width: int | None
    """Width of the text that its cross-attention modules read; None when it has none."""
    embedding_widths: tuple[int, ...]
    """Widths of the text encoders that it changes, in their order."""
    transformer_width: int | None = None
    """Width of the stream of a transformer (FLUX, SD 3) that it changes; None for UNets."""


@dataclass(slots=True)
class _Module:
    """The tensors of one adapted module, by their role."""

    name: str
    tensors: dict[str, TensorInfo] = field(default_factory=dict[str, TensorInfo])
    alpha_key: str | None = None

    def shape(self, *roles: str) -> tuple[int, ...] | None:
        for role in roles:
            if role in self.tensors:
                return self.tensors[role].shape
        return None


def read_lora_facts(header: Header, keys: Keys) -> LoraFacts:
    """Algorithm, and rank and alpha by block, of an adapter file."""
    modules = _group(header)
    alphas = _read_alphas(header, modules)
    blocks: dict[str, list[_Module]] = {}
    for module in modules.values():
        blocks.setdefault(_to_block(module.name), []).append(module)
    return LoraFacts(
        algorithm=_to_algorithm(header, keys, modules),
        modules=len(modules),
        blocks=tuple(_summarize(name, blocks[name], alphas) for name in sorted(blocks, key=_block_order)),
        cross_attention_width=_find_cross_attention_width(modules),
        embedding_widths=_find_embedding_widths(blocks),
        transformer_width=_find_transformer_width(blocks),
    )


def _group(header: Header) -> dict[str, _Module]:
    modules: dict[str, _Module] = {}
    for name, info in header.tensors.items():
        module_name, role = _split(name.replace(WRAPPER, "", 1))
        module = modules.get(module_name)
        if module is None:
            module = modules[module_name] = _Module(module_name.replace(".", "_"))
        module.tensors[role] = info
        if role == "alpha":
            module.alpha_key = name
    return {name: module for name, module in modules.items() if not _ROLES.isdisjoint(module.tensors)}


def _split(name: str) -> tuple[str, str]:
    """Module and role: `a.b.lora_A.weight` is `lora_A` of `a.b`, `x_lora.down.weight` is `lora_down` of `x`."""
    module, _, role = name.removesuffix(".weight").rpartition(".")
    if name.endswith(".weight") and module.endswith((".lora_A", ".lora_B")):
        module, _, role = module.rpartition(".")  # what stood behind is the adapter's name
    if role in ("down", "up"):
        # diffusers wrote `.lora.down`, `_lora.down` and `.lora_linear_layer.down`.
        return module.removesuffix("_linear_layer").removesuffix("lora").rstrip("._"), f"lora_{role}"
    return module, role


def _to_algorithm(header: Header, keys: Keys, modules: Mapping[str, _Module]) -> str:
    label = first_match(LORA_ALGORITHMS, keys) or "lora"
    trained = header.metadata.get("ss_network_args", "") + header.metadata.get("ss_network_module", "")
    down = [module.shape("lora_down", "lora_A") for module in modules.values()]
    if label == "lora" and "dylora" in trained.lower():
        return "dylora"
    if label == "lora" and any(shape and len(shape) == 4 and max(shape[2:]) > 1 for shape in down):
        return "locon"
    if label == "oft" and any(len(module.shape("oft_blocks") or ()) == 4 for module in modules.values()):
        return "boft"
    return label


def _read_alphas(header: Header, modules: Mapping[str, _Module]) -> dict[str, float]:
    """Module, as `_Module.name` -> its alpha, where the file says it."""
    keys = {module.alpha_key: module.name for module in modules.values() if module.alpha_key}
    read = read_values(header, list(keys)[:MAX_ALPHAS])
    found = {keys[key]: values[0] for key, values in read.items() if len(values) == 1 and isfinite(values[0])}
    return {**_read_peft_alphas(header, modules), **found}


def _read_peft_alphas(header: Header, modules: Mapping[str, _Module]) -> dict[str, float]:
    try:
        said = read_metadata(header.metadata)
        components = {name.partition(".")[0] for name in modules} if said else set[str]()
        settings = {name: read_settings(said, "" if "lora_alpha" in said else name) for name in components}
    except FlawError:
        return {}  # the loader refuses it
    found = {module.name: _peft_alpha(settings, name, module) for name, module in modules.items()} if said else {}
    return {name: alpha for name, alpha in found.items() if alpha is not None}


def _peft_alpha(settings: Mapping[str, PeftSettings], name: str, module: _Module) -> float | None:
    component, rank = name.partition(".")[0], _to_rank(module)
    return None if rank is None else settings[component].alpha_of(name, rank)


def _to_rank(module: _Module) -> int | None:
    if shape := module.shape("lora_down", "lora_A", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        return shape[0] if shape else None
    if shape := module.shape("lora_up", "lora_B", "lokr_w1_a", "lokr_w2_a"):
        return shape[1] if len(shape) > 1 else None
    return None


def _to_input_width(module: _Module) -> int | None:
    """How wide the input of the adapted module is."""
    if shape := module.shape("lora_down", "lora_A", "hada_w1_b", "diff"):
        return shape[1] if len(shape) > 1 else None
    left, right = module.shape("lokr_w1", "lokr_w1_b"), module.shape("lokr_w2", "lokr_w2_b")
    if left and right and len(left) > 1 and len(right) > 1:
        return left[1] * right[1]
    return None


def _find_cross_attention_width(modules: Mapping[str, _Module]) -> int | None:
    for module in modules.values():
        # Transformers of other families have an `attn2` too.
        if module.name.endswith(_TEXT_READERS) and _to_block(module.name).startswith(_UNET_BLOCKS):
            return _to_input_width(module)
    return None


def _find_embedding_widths(blocks: Mapping[str, list[_Module]]) -> tuple[int, ...]:
    widths: list[int] = []
    for block in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        inputs = (
            _to_input_width(module) for module in blocks.get(block, []) if module.name.endswith(("q_proj", "k_proj", "v_proj", "_q", "_k"))
        )
        if width := next((width for width in inputs if width), None):
            widths.append(width)
    return tuple(widths)


def _find_transformer_width(blocks: Mapping[str, list[_Module]]) -> int | None:
    inputs = (
        _to_input_width(module)
        for block, modules in blocks.items()
        if block.startswith(("double_", "single_", "joint_"))
        for module in modules
        if module.name.endswith(("attn_to_q", "attn_to_k", "attn_to_v", "attn_add_k_proj", "attn_add_q_proj", "attn_qkv"))
    )
    return next((width for width in inputs if width), None)


def _to_block(name: str) -> str:
    for beginnings, block in _ENCODERS:
        if name.startswith(beginnings):
            return block
    for pattern, block in _BLOCKS:
        if match := pattern.search(name):
            return block.format(*match.groups())
    return "other"


def _block_order(block: str) -> tuple[int, int]:
    kind, _, number = block.rpartition("_")
    order = ["text_encoder", "text", "in", "down", "mid", "out", "up", "double", "single", "joint"]
    stem = kind if number.isdigit() and kind != "text_encoder" else block.split("_")[0]
    return (order.index(stem) if stem in order else len(order), int(number) if number.isdigit() else 0)


def _summarize(block: str, modules: list[_Module], alphas: Mapping[str, float]) -> BlockFacts:
    ranks = [rank for module in modules if (rank := _to_rank(module)) is not None]
    known = [alphas[module.name] for module in modules if module.name in alphas]
    return BlockFacts(
        block=block,
        modules=len(modules),
        rank_min=min(ranks, default=None),
        rank_max=max(ranks, default=None),
        alpha_min=min(known, default=None),
        alpha_max=max(known, default=None),
    )
