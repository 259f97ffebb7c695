"""The catalogue of files that users download themselves: names that are tolerant, pages that are told, presets that compose."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import sdbatch
from sdbatch.cell import STACKS
from sdbatch.config.compose import Composer
from sdbatch.config.schema import FILE_GROUPS
from sdbatch.errors import ConfigError, PlanError, WeightFileError
from sdbatch.families import FAMILIES
from sdbatch.hub.address import read_address, to_address
from sdbatch.weights.hashes import Hasher
from tests.conftest import narrow_checkpoint, write_weight
from tests.planning import image_ids, plan_of
from tests.weights.writer import write_safetensors

CONF = Path(sdbatch.__file__).parent.parent / "conf"
PRESETS = sorted(path for group in FILE_GROUPS for path in (CONF / group).glob("*.yaml") if "preset:" in path.read_text())
MODELS = sorted((CONF / "model").glob("*.yaml"))
NAMED = {
    *("sd14", "sd15", "sd20", "sd20_base", "sd21", "sd21_base", "sdxl_base", "sdxl_refiner"),
    *("sdxl_turbo", "flux_dev", "flux_schnell", "realistic_vision", "dreamshaper", "anything_v3", "deliberate_v2", "f222"),
    *("chilloutmix", "protogen_v22", "ghostmix", "waifu_diffusion", "inkpunk", "juggernaut_xl", "pony", "illustrious"),
}


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_preset_says_what_its_file_is_called_and_where_it_comes_from(path: Path) -> None:
    group, preset = path.parent.name, read(path)["preset"]
    assert preset["name"] == path.stem
    assert preset["source"].startswith("https://")
    assert preset["known"]
    assert "*" not in preset["known"][0], "the first name is what `sdbatch pull` writes"
    if "repo" in preset:
        file = read_address(to_address(preset["repo"], preset.get("revision"))).file
        assert file is not None
        assert Path(file).suffix == Path(preset["known"][0]).suffix
    assert re.fullmatch(r"[0-9a-f]{10,64}", preset.get("sha256", "0" * 10))
    first = path.read_text().splitlines()[0]
    assert first == f"# @package {group}.{path.stem}" if group in STACKS else f"{group}={path.stem} " in first


def test_every_name_that_users_know_is_there() -> None:
    assert {path.stem for path in (CONF / "checkpoint").glob("*.yaml")} >= NAMED
    vaes = {"vae-ft-mse-840000", "vae-ft-ema-560000", "sdxl_vae", "sdxl_vae_fp16_fix", "kl-f8-anime2", "blessed2"}
    assert vaes <= {path.stem for path in (CONF / "vae").glob("*.yaml")}
    assert {"EasyNegative", "bad_prompt_version2", "ng_deepnegative_v1_75t"} <= {path.stem for path in (CONF / "embedding").glob("*.yaml")}
    assert {"sd15_canny", "sd15_depth", "sd15_openpose", "sdxl_canny"} <= {path.stem for path in (CONF / "controlnet").glob("*.yaml")}
    adapters = {
        "ip-adapter_sd15",
        "ip-adapter_sd15_light",
        "ip-adapter-plus_sd15",
        "ip-adapter-plus-face_sd15",
        "ip-adapter-full-face_sd15",
    }
    adapters |= {"ip-adapter_sdxl", "ip-adapter_sdxl_vit-h", "ip-adapter-plus_sdxl_vit-h"}
    assert adapters <= {path.stem for path in (CONF / "ip_adapter").glob("*.yaml")}
    assert {"clip_vit_h", "clip_vit_bigg"} <= {path.stem for path in (CONF / "image_encoder").glob("*.yaml")}


SD2_768 = {"sd20", "sd21", "waifu_diffusion_v14"}
SDXL = {"sdxl_base", "sdxl_refiner", "sdxl_turbo", "juggernaut_xl", "pony", "illustrious"}
CLIP_SKIP_2 = {"anything_v3", "dreamshaper", "ghostmix"}
TRIGGERS = {"inkpunk": "nvinkpunk", "pony": "score_9, score_8_up, score_7_up"}


@pytest.mark.usefixtures("workspace")
def test_a_named_model_has_its_family_size_clip_skip_trigger_words_sampler_and_page() -> None:
    composer = Composer()
    for name in sorted(NAMED | {"waifu_diffusion_v14"}):
        plain: Any = composer.compose([f"model={name}"]).plain
        family = (
            "flux" if name.startswith("flux") else "sdxl" if name in SDXL else "sd2" if name.startswith("sd2") or name in SD2_768 else "sd1"
        )
        assert plain["family"]["name"] == family, name
        size = 768 if name in SD2_768 else 512 if family in ("sd1", "sd2") or name == "sdxl_turbo" else 1024
        assert (plain["width"], plain["height"]) == (size, size), name
        assert plain["clip_skip"] == (2 if name in CLIP_SKIP_2 else 1), name
        assert plain["model"]["trigger"] == TRIGGERS.get(name), name
        assert plain["sampler"]["name"] in FAMILIES[family].samplers, name
        preset = plain["checkpoint"]["preset"]
        assert preset["name"] == name
        assert preset["source"].startswith("https://"), name


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_model_carries_its_own_name(path: Path) -> None:
    assert read(path)["model"]["name"] == path.stem


@pytest.mark.parametrize(
    "name", ["dreamshaper_8.safetensors", "DreamShaper 8 pruned.ckpt", "dreamshaper.safetensors", "sub/DREAMSHAPER_8.safetensors"]
)
def test_a_users_own_file_name_is_found(workspace: Path, name: str) -> None:
    path = write_weight(workspace / "models/checkpoints/x.safetensors", "a name of its own")
    (workspace / "models/checkpoints" / name).parent.mkdir(exist_ok=True)
    path.rename(workspace / "models/checkpoints" / name)
    (recipe,) = plan_of("checkpoint=dreamshaper").recipes
    assert recipe.checkpoint.path == str(workspace / "models/checkpoints" / name)


def test_of_several_files_the_first_known_wins_and_an_inpainting_model_is_never_taken_for_its_base(workspace: Path) -> None:
    for name in ("juggernautXL_zz", "juggernautXL_aa_inpainting", "juggernautXL_v8Rundiffusion"):
        write_weight(workspace / f"models/checkpoints/{name}.safetensors")
    assert plan_of("checkpoint=juggernaut_xl").recipes[0].checkpoint.name == "juggernautXL_v8Rundiffusion"
    (workspace / "models/checkpoints/juggernautXL_v8Rundiffusion.safetensors").unlink()
    assert plan_of("checkpoint=juggernaut_xl").recipes[0].checkpoint.name == "juggernautXL_zz"


@pytest.mark.usefixtures("workspace")
def test_what_is_absent_is_told_with_its_names_folder_page_and_command() -> None:
    with pytest.raises(PlanError) as caught:
        plan_of("checkpoint=dreamshaper,chilloutmix", "vae=blessed2", "embedding=[EasyNegative]")
    text = str(caught.value)
    assert "known as dreamshaper_8.safetensors, DreamShaper_8_pruned.safetensors" in text
    assert "into models/checkpoints, from https://civitai.com/models/4384, or run `sdbatch pull checkpoint=dreamshaper`" in text
    assert "into models/checkpoints, from https://civitai.com/models/6424.\n" in text, "no repository offers it: only the page is told"
    assert "sdbatch pull vae=blessed2" in text
    assert "sdbatch pull embedding=EasyNegative" in text


def test_a_file_of_the_presets_own_name_is_the_preset(workspace: Path) -> None:
    write_safetensors(workspace / "models/checkpoints/f222.safetensors", narrow_checkpoint())
    assert plan_of("checkpoint=f222").recipes[0].checkpoint.name == "f222"


def test_a_preset_is_found_wherever_its_name_stands_for_a_file(workspace: Path) -> None:
    write_weight(workspace / "models/checkpoints/DreamShaper 8 pruned.safetensors")
    enlarger = {"layers.0.residual_group.blocks.0.attn.relative_position_bias_table": (225, 6)}
    path = write_safetensors(workspace / "models/upscale_models/003_realSR_BSRGAN_DFOWMFC_s64w8_SwinIR-L_x4_GAN.safetensors", enlarger)
    (recipe,) = plan_of("checkpoint=base", "checkpoint.merge.b=dreamshaper").recipes
    assert recipe.merge is not None
    assert recipe.merge.b.path == str(workspace / "models/checkpoints/DreamShaper 8 pruned.safetensors")
    catalog = Composer().catalog
    assert catalog.find("upscaler", "SwinIR_4x").name == path.name  # as `task.upscaler=SwinIR_4x` asks for it
    for unknown in ("4x-UltraSharp", "none", "there_is_none"):
        with pytest.raises(WeightFileError, match="there is no file of this name"):
            catalog.find("upscaler", unknown)


@pytest.mark.usefixtures("workspace")
def test_a_pin_takes_the_right_file_only() -> None:
    right = plan_of("seed=0").recipes[0].checkpoint.sha256
    plain = image_ids(plan_of("seed=0"))
    assert image_ids(plan_of("seed=0", f"checkpoint.sha256={right}")) == plain
    assert image_ids(plan_of("seed=0", f"checkpoint.sha256={right[:10].upper()}")) == plain
    with pytest.raises(PlanError, match=r"checkpoint\.sha256: base has .* it is another version, or it was changed or damaged"):
        plan_of("checkpoint.sha256=" + "ab" * 32)
    with pytest.raises(PlanError, match=r"lora\.red\.sha256: abc is no SHA-256"):
        plan_of("lora=[red]", "lora.red.sha256=abc")


@pytest.mark.usefixtures("workspace")
def test_one_flipped_bit_is_refused_by_the_pin(workspace: Path) -> None:
    right = plan_of("lora=[red]").recipes[0].loras[0].sha256
    path = workspace / "models/loras/red.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(PlanError, match=r"lora\.red\.sha256: red has"):
        plan_of("lora=[red]", f"lora.red.sha256={right}")


def test_a_renamed_file_is_found_by_its_hash_once_it_was_hashed(workspace: Path) -> None:
    path = write_weight(workspace / "models/checkpoints/my favourite.safetensors", "renamed")
    os.utime(path, (1e9, 1e9))
    sha256 = Hasher().sha256(path)
    (workspace / "conf/checkpoint").mkdir(parents=True)
    preset = f"preset: {{name: known, known: [known_v1.safetensors], source: 'https://example.org', sha256: '{sha256[:10]}'}}"
    (workspace / "conf/checkpoint/known.yaml").write_text(f"# checkpoint=known\n{preset}\n")
    assert plan_of("checkpoint=known").recipes[0].checkpoint.name == "my_favourite"


@pytest.mark.usefixtures("workspace")
def test_a_stack_without_any_file_says_where_to_put_one() -> None:
    with pytest.raises(
        ConfigError, match=r"hypernetwork: there is no hypernetwork file in the models folders. Put one into models/hypernetworks"
    ):
        plan_of("hypernetwork=[anime]")
