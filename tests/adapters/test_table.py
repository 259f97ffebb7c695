"""The table of what works: every kind of adapter in every dialect for every family, against weights merged by hand."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdbatch.adapters.embedding import load_embedding
from sdbatch.adapters.hypernetwork import HypernetworkStack, load_hypernetwork
from sdbatch.adapters.lora import load_lora
from sdbatch.adapters.stack import AdapterStack
from sdbatch.cell import Strength, WeightFile
from sdbatch.families.lora_blocks import block_names
from sdbatch.weights.identify import identify
from tests.adapters.form_parts import FORMS, TUCKER_FORMS
from tests.adapters.table_files import (
    FLUX_DIALECTS,
    SD2_DIALECTS,
    SDXL_DIALECTS,
    UNET_DIALECTS,
    AdapterFile,
    components,
    denoiser,
    in_form,
)
from tests.adapters.test_hypernetwork import CASES, wrapped, write
from tests.pipeline.models import build_pipeline, save
from tests.pipeline.zoo import build_flux, build_sd2, build_sdxl

BUILD: dict[str, Callable[[Path], Any]] = {"sd1": build_pipeline, "sd2": build_sd2, "sdxl": build_sdxl, "flux": build_flux}
DIALECTS = {"sd1": UNET_DIALECTS, "sd2": SD2_DIALECTS, "sdxl": SDXL_DIALECTS, "flux": FLUX_DIALECTS}
STRENGTH = 0.7

Build = Callable[[Any], AdapterFile]


def cases() -> list[tuple[str, str, Build]]:
    """(family, kind, builder of the file)."""
    found: list[tuple[str, str, Build]] = []
    for family, dialects in DIALECTS.items():
        found += [(family, f"LoRA: {name}", build) for name, build in dialects.items()]
        forms = [*FORMS, *TUCKER_FORMS] if family != "flux" else list(FORMS)
        found += [(family, form, partial(in_form, form=form)) for form in forms if form != "LoRA"]
    return found


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {family: build(tmp_path_factory.mktemp(family)) for family, build in BUILD.items()}


@torch.no_grad()
def outputs(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """What each component says of a fixed input."""
    random = torch.Generator().manual_seed(0)
    words = torch.tensor([[1, 5, 9, 2]])
    found: dict[str, Tensor] = {name: part(words).last_hidden_state for name, part in parts.items() if name.startswith("text_")}
    if unet := parts.get("unet"):
        config: Any = unet.config
        added = {"text_embeds": torch.ones(1, 24), "time_ids": torch.ones(1, 6)} if config.addition_embed_type else None
        context = torch.randn(1, 7, config.cross_attention_dim, generator=random)
        noise = torch.randn(1, 4, 8, 8, generator=random)
        found["unet"] = unet(noise, 500, context, added_cond_kwargs=added).sample
    if transformer := parts.get("transformer"):
        found["transformer"] = transformer(
            hidden_states=torch.randn(1, 16, 16, generator=random),
            encoder_hidden_states=torch.randn(1, 7, 32, generator=random),
            pooled_projections=torch.randn(1, 32, generator=random),
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([3.5]),
            img_ids=torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
            txt_ids=torch.zeros(7, 3),
            return_dict=False,
        )[0]
    return found


def merged(parts: dict[str, nn.Module], file: AdapterFile) -> dict[str, nn.Module]:
    copies = {name: copy.deepcopy(part) for name, part in parts.items()}
    for component, merges in file.merges.items():
        modules = dict(copies[component].named_modules())
        for name, merge in merges.items():
            weight = modules[name].get_parameter("weight")
            weight.data += STRENGTH * (merge(weight.data) - weight.data)
    return copies


@pytest.mark.parametrize(("family", "kind", "build"), [pytest.param(*case, id=f"{case[0]} {case[1]}") for case in cases()])
def test_lora(family: str, kind: str, build: Build, zoo: dict[str, Any], tmp_path: Path) -> None:
    parts = components(zoo[family])
    file = build(zoo[family])
    lora = load_lora(save(file.tensors, tmp_path / "style.safetensors"), parts, family, strict=True)
    assert identify(tmp_path / "style.safetensors").kind == "lora", "else the plan refuses it"
    assert lora.applied_keys == lora.total_keys == len(file.tensors)
    assert {name: set(deltas) for name, deltas in lora.deltas.items()} == {name: set(merges) for name, merges in file.merges.items()}
    before, expected = outputs(parts), outputs(merged(parts, file))
    stacks = [AdapterStack(parts[name], [deltas], name, family) for name, deltas in lora.deltas.items()]
    for stack in stacks:
        stack.set_strengths(torch.tensor([[STRENGTH]]))
    ours = outputs(parts)
    for stack in stacks:
        stack.detach()
    for name in file.merges:
        assert (expected[name] - before[name]).abs().max() > 1e-3 * before[name].abs().max(), f"{name} is not changed"
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-3, atol=1e-4 * float(expected[name].abs().max()))
    after = outputs(parts)
    assert all(torch.equal(after[name], before[name]) for name in parts), "detached, it must leave no trace"


def test_flux_norms_under_their_whole_name_and_words_for_both_encoders(zoo: dict[str, Any], tmp_path: Path) -> None:
    """ComfyUI keeps `.scale`, which is no `.weight`, in a module's name; OneTrainer's words have vectors for CLIP and T5."""
    parts = components(zoo["flux"])
    norm = parts["transformer"].get_parameter("transformer_blocks.0.attn.norm_q.weight")
    words = {"bundle_emb.my.clip_l": torch.rand(2, 32), "bundle_emb.my.t5": torch.rand(2, 32)}
    change = {"diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale.diff": torch.rand(norm.shape)}
    lora = load_lora(save({**change, **words}, tmp_path / "style.safetensors"), parts, "flux", strict=True)
    (delta,) = lora.deltas["transformer"].values()
    assert torch.equal(delta.weight(norm), next(iter(change.values())))
    found = lora.words["my"]
    assert torch.equal(found["text_encoder"], words["bundle_emb.my.clip_l"])
    assert torch.equal(found["text_encoder_2"], words["bundle_emb.my.t5"])


def block_of(name: str, layers_per_block: int) -> str | None:
    """Where CompVis' UNet and FLUX.1 have a layer, counted by hand."""
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(?:attentions|resnets)\.(\d+)\.", name):
        step, number = layers_per_block + 1, int(found[2])
        return f"IN{1 + number * step + int(found[3]):02}" if found[1] == "down" else f"OUT{number * step + int(found[3]):02}"
    if found := re.match(r"(single_)?transformer_blocks\.(\d+)\.", name):
        return f"{'S' if found[1] else 'D'}{int(found[2]):02}"
    return "M00" if name.startswith("mid_block.") else None


@pytest.mark.parametrize("family", DIALECTS)
def test_block_weights(family: str, zoo: dict[str, Any], tmp_path: Path) -> None:
    name, part = denoiser(zoo[family])
    file = in_form(zoo[family], "LoRA")
    blocks = block_names(family)
    factors = [round(0.1 + index * 0.01, 2) for index in range(len(blocks))]
    config: Any = part.config
    layers = config.get("layers_per_block", 0)
    for module, merge in file.merges[name].items():
        block = block_of(module, layers)
        assert block in blocks, module
        share = factors[blocks.index(block)]
        file.merges[name][module] = lambda weight, merge=merge, share=share: weight + share * (merge(weight) - weight)
    lora = load_lora(save(file.tensors, tmp_path / "style.safetensors"), {name: part}, family)
    stack = AdapterStack(part, [lora.deltas[name]], name, family)
    stack.set_cells([[Strength(STRENGTH, 0.0, ",".join(map(str, factors)))]])
    ours = outputs({name: part})[name]
    stack.detach()
    expected = outputs(merged({name: part}, file))[name]
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


PAIR = {"clip_l": (2, 32), "clip_g": (2, 48)}
EMBEDDINGS: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, str]]] = {
    "sd1 A1111 .pt": ("pt", {"string_to_param.*": (3, 32)}, {"text_encoder": "string_to_param.*"}),
    "sd1 diffusers .bin": ("bin", {"<word>": (32,)}, {"text_encoder": "<word>"}),
    "sd1 kohya .safetensors": ("safetensors", {"emb_params": (3, 32)}, {"text_encoder": "emb_params"}),
    "sd2 A1111 .pt": ("pt", {"string_to_param.*": (1, 40)}, {"text_encoder": "string_to_param.*"}),
    "sd2 kohya .safetensors": ("safetensors", {"emb_params": (2, 40)}, {"text_encoder": "emb_params"}),
    "sdxl pair .safetensors": ("safetensors", PAIR, {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}),
    "sdxl pair .pt": ("pt", PAIR, {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}),
    "sdxl pivotal tuning .safetensors": (
        "safetensors",
        {"text_encoders_0": (2, 32), "text_encoders_1": (2, 48)},
        {"text_encoder": "text_encoders_0", "text_encoder_2": "text_encoders_1"},
    ),
    "sdxl pair of no known name .bin": ("bin", {"a": (2, 32), "b": (2, 48)}, {"text_encoder": "a", "text_encoder_2": "b"}),
    "flux clip_l .safetensors": ("safetensors", {"clip_l": (2, 32)}, {"text_encoder": "clip_l"}),
}
"""Family and layout -> file ending, tensors, and which of them each text encoder gets."""


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embedding(kind: str, zoo: dict[str, Any], tmp_path: Path) -> None:
    ending, shapes, wanted = EMBEDDINGS[kind]
    tensors = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in shapes.items()}
    path = tmp_path / f"word.{ending}"
    if ending == "safetensors":
        save(tensors, path)
    elif "string_to_param.*" in tensors:
        torch.save({"string_to_param": {"*": nn.Parameter(tensors["string_to_param.*"])}, "name": "word", "step": 5}, path)
    else:
        torch.save(tensors, path)
    towers = {name: components(zoo[kind.split()[0]])[name] for name in wanted}
    widths = {name: int(tower.config.hidden_size) for name, tower in towers.items()}  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]
    loaded = load_embedding(WeightFile("word", str(path), "word"), widths)
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[name], torch.atleast_2d(tensors[key])) for name, key in wanted.items())


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_hypernetwork(family: str, zoo: dict[str, Any], tmp_path: Path) -> None:
    name, unet = denoiser(zoo[family])
    width: Any = unet.config.cross_attention_dim  # pyright: ignore[reportAttributeAccessIssue]
    file, pairs = write(tmp_path / "hyper.pt", CASES["layer norm"], (int(width), 32))
    stack = HypernetworkStack(unet, [load_hypernetwork(file)])
    stack.set_strengths(torch.tensor([[STRENGTH]]))
    ours = outputs({name: unet})[name]
    stack.detach()
    expected = outputs({name: wrapped(unet, [(pairs, STRENGTH)])})[name]
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
