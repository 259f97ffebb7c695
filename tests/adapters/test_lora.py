"""A LoRA in any dialect is what its formula says, and leaves no trace."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdbatch.adapters.lora import load_lora
from sdbatch.adapters.stack import AdapterStack
from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.weights.identify import identify
from tests.adapters.lora_files import (
    LoraFile,
    attention_layers,
    conv_layers,
    kohya,
    loha,
    lokr,
    pair,
    peft_with_metadata,
    renamed,
)
from tests.pipeline.models import WIDTH, TinyModel, add_to_weights, save

Build = Callable[[Any], LoraFile]


def _attention(pipeline: Any) -> dict[str, dict[str, nn.Module]]:
    return {"unet": attention_layers(pipeline.unet), "text_encoder": attention_layers(pipeline.text_encoder)}


def _in_diffusers(pipeline: Any) -> LoraFile:
    source, layers = kohya(_attention(pipeline)), _attention(pipeline)
    return renamed(source, layers, (".lora.down.weight", ".lora.up.weight"), dotted_te="text_model.")


def _in_peft(pipeline: Any) -> LoraFile:
    return renamed(kohya(_attention(pipeline)), _attention(pipeline), (".lora_A.weight", ".lora_B.weight"))


def _in_attention_processors(pipeline: Any) -> LoraFile:
    """diffusers of early 2023: the layers are named after the attention processor."""
    file = _in_diffusers(pipeline)
    tensors: dict[str, Tensor] = {}
    for key, tensor in file.tensors.items():
        if key.startswith("unet."):
            key = key.replace(".to_out.0.", ".to_out.")
            for layer in ("to_q", "to_k", "to_v", "to_out"):
                key = key.replace(f".{layer}.lora.", f".processor.{layer}_lora.")
        tensors[key] = tensor
    return LoraFile(tensors, file.deltas)


def _with_original_names(pipeline: Any) -> LoraFile:
    """A UNet's layers under the names of the original code, as some trainers write them."""
    file = kohya({"unet": attention_layers(pipeline.unet)})
    names = {"down_blocks_0_attentions_0": "input_blocks_1_1", "mid_block_attentions_0": "middle_block_1"}
    names |= {"up_blocks_1_attentions_0": "output_blocks_2_1", "up_blocks_1_attentions_1": "output_blocks_3_1"}
    tensors: dict[str, Tensor] = {}
    for key, tensor in file.tensors.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        tensors[key] = tensor
    return LoraFile(tensors, file.deltas)


def _locon(pipeline: Any) -> LoraFile:
    return kohya({"unet": {**attention_layers(pipeline.unet), **conv_layers(pipeline.unet)}})


def _tucker(pipeline: Any) -> LoraFile:
    """LoCon with a Tucker core: down 1x1, core 3x3, up 1x1."""
    file, random = LoraFile(), torch.Generator().manual_seed(6)
    for name, module in conv_layers(pipeline.unet).items():
        weight: Any = module.weight
        down = 0.3 * torch.randn(3, weight.shape[1], 1, 1, generator=random)
        core = 0.3 * torch.randn(2, 3, *weight.shape[2:], generator=random)
        up = 0.3 * torch.randn(weight.shape[0], 2, 1, 1, generator=random)
        key = "lora_unet_" + name.replace(".", "_")
        file.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_mid.weight": core, f"{key}.lora_up.weight": up}
        product = torch.einsum("or,rskl,si->oikl", up[:, :, 0, 0], core, down[:, :, 0, 0])
        file.deltas.setdefault("unet", {})[name] = product
    return file


DIALECTS: dict[str, Build] = {
    "kohya": lambda pipeline: kohya(_attention(pipeline)),
    "diffusers": _in_diffusers,
    "peft": _in_peft,
    "peft with alpha in metadata": lambda pipeline: peft_with_metadata(attention_layers(pipeline.unet)),
    "attention processors": _in_attention_processors,
    "original names": _with_original_names,
    "LoCon": _locon,
    "LoCon with a Tucker core": _tucker,
    "LoHa": lambda pipeline: loha({**attention_layers(pipeline.unet), **conv_layers(pipeline.unet)}),
    "LoKr of low rank": lambda pipeline: lokr(attention_layers(pipeline.unet), low_rank=True),
    "LoKr of full rank": lambda pipeline: lokr(attention_layers(pipeline.unet), low_rank=False),
}


def write(file: LoraFile, path: Path) -> WeightFile:
    return save(file.tensors, path, file.metadata or None)


def components(pipeline: Any) -> dict[str, nn.Module]:
    return {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}


@torch.no_grad()
def run(pipeline: Any, batch: int = 1) -> Tensor:
    """What the UNet says of noise, given what the text encoder says of a few words."""
    words = pipeline.text_encoder(torch.tensor([[1, 5, 9, 2]])).last_hidden_state
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipeline.unet(noise.repeat(batch, 1, 1, 1), 500, words.repeat(batch, 1, 1)).sample


@pytest.fixture
def pipeline(model: TinyModel) -> Any:
    return model.pipeline


@pytest.mark.parametrize("dialect", DIALECTS)
def test_equals_the_weights_merged_by_hand(dialect: str, pipeline: Any, tmp_path: Path) -> None:
    file = DIALECTS[dialect](pipeline)
    lora = load_lora(write(file, tmp_path / "style.safetensors"), components(pipeline))
    assert (lora.applied_keys, lora.total_keys) == (len(file.tensors), len(file.tensors))
    merged = copy.deepcopy(components(pipeline))
    for component, deltas in file.deltas.items():
        add_to_weights(merged[component], deltas, 0.7)
    expected = run(type("Merged", (), merged))
    before = run(pipeline)
    stacks = {name: AdapterStack(part, [lora.deltas.get(name, {})]) for name, part in components(pipeline).items()}
    for stack in stacks.values():
        stack.set_strengths(torch.tensor([[0.7]]))
    ours = run(pipeline)
    for stack in stacks.values():
        stack.detach()
    assert (expected - before).abs().max() > 0.01
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))
    assert torch.equal(run(pipeline), before), "detached, it must leave no trace"


def test_a_stack_with_a_strength_per_image(pipeline: Any, tmp_path: Path) -> None:
    layers = _attention(pipeline)
    files = [kohya(layers, seed=1), kohya({"unet": conv_layers(pipeline.unet)}, seed=2), loha(layers["unet"])]
    loras = [load_lora(write(file, tmp_path / f"{i}.safetensors"), components(pipeline)) for i, file in enumerate(files)]
    stack = AdapterStack(pipeline.unet, [lora.deltas.get("unet", {}) for lora in loras])
    rows = [[0.5, 1.0, 0.0], [0.0, -0.5, 2.0], [1.0, 0.0, 0.3]]
    stack.set_strengths(torch.tensor(rows))
    together = run(pipeline, batch=3)
    stack.detach()
    for row, strengths in enumerate(rows):
        unet = copy.deepcopy(pipeline.unet)
        for file, strength in zip(files, strengths, strict=True):
            add_to_weights(unet, file.deltas["unet"], strength)
        merged = type("Merged", (), {"unet": unet, "text_encoder": pipeline.text_encoder})
        expected = run(merged)
        torch.testing.assert_close(together[row : row + 1], expected, rtol=1e-4, atol=3e-5 * float(expected.abs().max()))


def test_strength_zero_is_no_lora_bit_for_bit_alone_and_beside_others(pipeline: Any, tmp_path: Path) -> None:
    lora = load_lora(write(_locon(pipeline), tmp_path / "style.safetensors"), components(pipeline))
    alone, pair_ = run(pipeline), run(pipeline, batch=2)
    stack = AdapterStack(pipeline.unet, [lora.deltas["unet"]])
    assert stack.idle
    assert torch.equal(run(pipeline), alone)
    stack.set_strengths(torch.tensor([[0.0], [1.0]]))
    mixed = run(pipeline, batch=2)
    stack.detach()
    assert torch.equal(mixed[0], pair_[0])
    assert not torch.equal(mixed[1], pair_[1])


def test_a_change_of_strength_takes_less_than_20_ms(pipeline: Any, tmp_path: Path) -> None:
    loras = [load_lora(write(kohya(_attention(pipeline), seed=s), tmp_path / f"{s}.safetensors"), components(pipeline)) for s in range(3)]
    stack = AdapterStack(pipeline.unet, [lora.deltas["unet"] for lora in loras])
    begun = time.process_time()
    stack.set_strengths(torch.rand(16, 3))
    spent_s = time.process_time() - begun
    stack.detach()
    assert spent_s < 0.02


def test_a_part_that_fits_nothing_is_counted_warned_of_once_and_refused_when_strict(
    pipeline: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = kohya({"unet": attention_layers(pipeline.unet)})
    known = len(file.tensors)
    down, up, _ = pair(nn.Linear(8, 8), 2, torch.Generator())
    file.tensors |= {"lora_unet_nowhere.lora_down.weight": down, "lora_unet_nowhere.lora_up.weight": up, "stray": torch.zeros(1)}
    written = write(file, tmp_path / "partial.safetensors")
    load_lora(written, components(pipeline))
    lora = load_lora(written, components(pipeline))
    assert (lora.applied_keys, lora.total_keys) == (known, known + 3)
    assert set(lora.unmatched) == {"lora_unet_nowhere", "stray"}
    told = f"lora.partial: {known} of its {known + 3} keys are applied; nothing in the model is called stray, lora_unet_nowhere."
    assert [record.message for record in caplog.records] == [told]
    with pytest.raises(WeightFileError, match=r"keys are applied.*lora\.partial\.strict=false takes it as it is"):
        load_lora(written, components(pipeline), strict=True)


def test_embeddings_bundled_with_a_lora(pipeline: Any, tmp_path: Path) -> None:
    file, vectors = kohya({"unet": attention_layers(pipeline.unet)}), torch.randn(2, WIDTH)
    file.tensors |= {"bundle_emb.my word.clip_l": vectors, "bundle_emb.other.string_to_param.*": vectors[0]}
    lora = load_lora(write(file, tmp_path / "bundle.safetensors"), components(pipeline), strict=True)
    assert torch.equal(lora.words["my word"]["text_encoder"], vectors)
    assert lora.words["other"]["text_encoder"].shape == (1, WIDTH)
    assert lora.applied_keys == lora.total_keys


BESIDE = {
    "a learned scale": ".scalar",
    "sparse bias": ".bias_values",
    "another shape": ".reshape_weight",
    "a third factor": ".lora_S.weight",
}


@pytest.mark.parametrize("kind", BESIDE)
def test_a_part_whose_meaning_is_not_known_is_refused(kind: str, pipeline: Any, tmp_path: Path) -> None:
    """To leave it out would apply the rest wrongly."""
    file = kohya({"unet": attention_layers(pipeline.unet)})
    module = next(iter(file.tensors)).partition(".")[0]
    file.tensors[module + BESIDE[kind]] = torch.ones(2)
    with pytest.raises(WeightFileError, match=rf"lora\.odd: {module} has \{BESIDE[kind]} too, whose meaning is not known"):
        load_lora(write(file, tmp_path / "odd.safetensors"), components(pipeline))


def test_a_models_own_state_carries_the_adapters_name(pipeline: Any, tmp_path: Path) -> None:
    file = _in_peft(pipeline)
    tensors = {key.replace("lora_A", "lora_A.style").replace("lora_B", "lora_B.style"): value for key, value in file.tensors.items()}
    plain = load_lora(write(file, tmp_path / "plain.safetensors"), components(pipeline), strict=True)
    named = load_lora(write(LoraFile(tensors), tmp_path / "named.safetensors"), components(pipeline), strict=True)
    assert {name: set(deltas) for name, deltas in named.deltas.items()} == {name: set(deltas) for name, deltas in plain.deltas.items()}
    identity = identify(tmp_path / "named.safetensors")
    assert identity.kind == "lora"
    assert identity.lora == identify(tmp_path / "plain.safetensors").lora
    tensors |= {key.replace("style", "other"): value + 1 for key, value in tensors.items()}
    with pytest.raises(WeightFileError, match=r"twice, once as .*(style|other).*Keep one adapter a file"):
        load_lora(write(LoraFile(tensors), tmp_path / "two.safetensors"), components(pipeline))


def test_the_same_layer_under_two_names_is_refused(pipeline: Any, tmp_path: Path) -> None:
    file = kohya({"unet": attention_layers(pipeline.unet)})
    file.tensors |= _in_peft(pipeline).tensors
    with pytest.raises(WeightFileError, match=r"it changes unet\..* twice"):
        load_lora(write(file, tmp_path / "twice.safetensors"), components(pipeline))


def test_a_lora_for_something_else_names_what_it_holds(pipeline: Any, tmp_path: Path) -> None:
    down, up, _ = pair(nn.Linear(3072, 8), 2, torch.Generator())
    layer = "transformer.single_transformer_blocks.0.attn.to_q"
    file = save({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, tmp_path / "flux.safetensors")
    told = (
        r"lora\.flux: none of its 2 keys belongs to this model\. It was made for FLUX\.1\. The model is SD 1\.x\. It holds transformer\.s"
    )
    with pytest.raises(WeightFileError, match=told):
        load_lora(file, components(pipeline), "sd1")


def test_a_lora_of_another_width_names_both_shapes(pipeline: Any, tmp_path: Path) -> None:
    name = next(name for name in attention_layers(pipeline.unet) if name.endswith("attn2.to_k"))
    down, up, _ = pair(nn.Linear(WIDTH * 2, 32), 2, torch.Generator())
    key = "lora_unet_" + name.replace(".", "_")
    file = save({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, tmp_path / "wide.safetensors")
    with pytest.raises(WeightFileError, match=r"\[2, 64\].*the model's weight there, which is \[32, 32\].*another family"):
        load_lora(file, components(pipeline))


def test_an_incomplete_pair_is_refused(pipeline: Any, tmp_path: Path) -> None:
    file = kohya({"unet": attention_layers(pipeline.unet)})
    del file.tensors[next(key for key in file.tensors if key.endswith("lora_up.weight"))]
    with pytest.raises(WeightFileError, match="has alpha, down, which is no complete LoRA"):
        load_lora(write(file, tmp_path / "style.safetensors"), components(pipeline))
