"""Files are options: names, roots, shadowing, and what is said when nothing fits."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sdbatch.errors import ConfigError, WeightFileError
from sdbatch.weights.catalog import Catalog, embedded_root, to_option_name
from sdbatch.weights.hashes import Hasher
from sdbatch.weights.index import Index


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("layout", "group"),
    [
        ("checkpoints/a.safetensors", "checkpoint"),
        ("models/checkpoints/a.safetensors", "checkpoint"),
        ("models/Stable-diffusion/a.ckpt", "checkpoint"),
        ("models/diffusion_models/a.safetensors", "checkpoint"),
        ("loras/a.safetensors", "lora"),
        ("models/Lora/a.safetensors", "lora"),
        ("models/LyCORIS/a.pt", "lora"),
        ("vae/a.pt", "vae"),
        ("models/VAE/a.safetensors", "vae"),
        ("clip/a.safetensors", "text_encoder"),
        ("text_encoders/a.safetensors", "text_encoder"),
        ("models/ControlNet/a.pth", "controlnet"),
        ("embeddings/a.pt", "embedding"),
        ("models/hypernetworks/a.pt", "hypernetwork"),
        ("models/ipadapter/a.bin", "ip_adapter"),
        ("upscale_models/a.pth", "upscaler"),
        ("models/ESRGAN/a.pth", "upscaler"),
    ],
)
def test_layouts_of_the_ecosystem(tmp_path: Path, layout: str, group: str) -> None:
    touch(tmp_path, layout)
    assert Catalog([tmp_path]).options(group)["a"] == tmp_path / layout


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("style_a", "style_a"),
        ("style-a", "style-a"),
        ("Style v1.5 (fp16)", "Style_v1_5_fp16"),
        ("a,b=c[d]{e}", "a_b_c_d_e"),
        ("3d_render", "_3d_render"),
        ("true", "_true"),
        ("NaN", "_NaN"),
        ("café", "cafe"),
        ("水", "u6c34"),
        ("水彩 v2", "u6c34_u5f69_v2"),
        ("...", "_"),
        ("-x", "_-x"),
    ],
)
def test_option_names(stem: str, name: str) -> None:
    assert to_option_name(stem) == name


def test_what_is_a_value_alone_may_begin_with_a_digit(tmp_path: Path) -> None:
    for name in ("upscale_models/4x_sharp.pth", "upscale_models/1e5.pth", "upscale_models/12.pth", "loras/3d.safetensors"):
        touch(tmp_path, name)
    catalog = Catalog([tmp_path])
    assert list(catalog.options("upscaler")) == ["4x_sharp", "_12", "_1e5"], "what reads as a number stays a name"
    assert "_3d" in catalog.options("lora"), "it is a key too"
    assert catalog.find("upscaler", "_4x_sharp") == catalog.find("upscaler", "4x_sharp"), "as it was written before"


@pytest.mark.parametrize("stem", ["Style v1.5 (fp16)", "3d", "true", "水彩", "a,b=c", "1e5", "null", "${x}", "a@b:c", "--x"])
def test_hydra_takes_every_option_name_as_key_and_value(stem: str) -> None:
    parser = pytest.importorskip("hydra.core.override_parser.overrides_parser").OverridesParser.create()
    name = to_option_name(stem)
    assert parser.parse_override(f"lora.{name}.weight=1").key_or_group == f"lora.{name}.weight"
    assert parser.parse_override(f"lora={name}").value() == name


def test_hidden_temporary_and_other_files_are_no_options(tmp_path: Path) -> None:
    names = (".hidden.safetensors", "a.safetensors.part", "b.crdownload", "~c.safetensors", "preview.png", "d.yaml", "e.safetensors.tmp")
    touch(tmp_path / "loras", *names, "good.safetensors")
    assert set(Catalog([tmp_path]).options("lora")) - set(Catalog([]).options("lora")) == {"good"}


def test_collisions_get_the_sub_folder_and_the_top_keeps_its_name(tmp_path: Path) -> None:
    touch(tmp_path / "loras", "one.safetensors", "x/one.safetensors", "x/two.safetensors", "y/two.safetensors", "deep/er/three.pt")
    options = Catalog([tmp_path]).options("lora")
    assert options["one"] == tmp_path / "loras/one.safetensors"
    assert options["x_one"] == tmp_path / "loras/x/one.safetensors"
    assert {"x_two", "y_two", "three"} <= set(options)
    assert "two" not in options


def test_names_that_become_equal_stay_apart(tmp_path: Path) -> None:
    touch(tmp_path / "loras", "s.1.safetensors", "s 1.safetensors", "s_1.safetensors", "s_1.pt", "s.1.pt")
    options = {name: path for name, path in Catalog([tmp_path]).options("lora").items() if path.is_relative_to(tmp_path)}
    assert len(options) == 5
    assert len(set(options.values())) == 5
    assert options["s_1"].suffix == ".safetensors"


def test_earlier_roots_shadow_later_ones_and_the_embedded_models_come_last(tmp_path: Path) -> None:
    touch(tmp_path / "one", "loras/a.safetensors")
    touch(tmp_path / "two", "loras/a.safetensors", "loras/b.safetensors")
    catalog = Catalog([tmp_path / "one", tmp_path / "two"])
    assert catalog.options("lora")["a"].is_relative_to(tmp_path / "one")
    assert catalog.options("lora")["b"].is_relative_to(tmp_path / "two")
    assert catalog.roots[-1] == embedded_root()
    assert embedded_root().name == "embedded"


def test_a_diffusers_folder_is_one_option(tmp_path: Path) -> None:
    touch(tmp_path / "checkpoints/my model", "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors")
    touch(tmp_path / "controlnet/canny", "config.json", "diffusion_pytorch_model.safetensors")
    touch(tmp_path / "checkpoints/sub", "a.safetensors", "config.json.txt")
    catalog = Catalog([tmp_path])
    assert catalog.options("checkpoint")["my_model"] == tmp_path / "checkpoints/my model"
    assert catalog.options("checkpoint")["a"] == tmp_path / "checkpoints/sub/a.safetensors"
    assert "diffusion_pytorch_model" not in catalog.options("checkpoint")
    assert catalog.options("controlnet")["canny"] == tmp_path / "controlnet/canny"
    assert catalog.find("checkpoint", "my model") == tmp_path / "checkpoints/my model"


def test_a_vae_beside_its_checkpoint_is_a_vae(tmp_path: Path) -> None:
    touch(tmp_path / "models/Stable-diffusion", "m.ckpt", "m.vae.pt")
    catalog = Catalog([tmp_path])
    assert {"m", "m_vae"} & set(catalog.options("checkpoint")) == {"m"}
    assert catalog.options("vae")["m_vae"].name == "m.vae.pt"


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "big.safetensors", "more/other.safetensors")
    loras = tmp_path / "loras"
    loras.mkdir()
    (loras / "linked.safetensors").symlink_to(tmp_path / "elsewhere/big.safetensors")
    (loras / "more").symlink_to(tmp_path / "elsewhere/more")
    (loras / "circle").symlink_to(loras)
    (loras / "broken.safetensors").symlink_to(tmp_path / "nowhere")
    options = Catalog([tmp_path]).options("lora")
    assert {"linked", "other"} <= set(options)
    assert "broken" not in options


def test_find_takes_every_way_to_name_a_file(tmp_path: Path) -> None:
    touch(tmp_path / "loras", "sub/style v1.5.safetensors")
    touch(tmp_path, "else where/x.safetensors")
    path = tmp_path / "loras/sub/style v1.5.safetensors"
    catalog = Catalog([tmp_path])
    for asked in ("style_v1_5", "style v1.5", "style v1.5.safetensors", "sub/style v1.5.safetensors", "sub/style v1.5", str(path)):
        assert catalog.find("lora", asked) == path, asked
    assert catalog.find("lora", str(tmp_path / "else where/x.safetensors")).name == "x.safetensors"


def test_what_is_not_found_names_the_nearest_and_the_folders(tmp_path: Path) -> None:
    touch(tmp_path / "loras", "my_look.safetensors")
    with pytest.raises(WeightFileError) as caught:
        Catalog([tmp_path]).find("lora", "my_book")
    assert "lora=my_book: there is no file of this name. Did you mean my_look" in str(caught.value)
    assert str(tmp_path / "loras") in str(caught.value)
    with pytest.raises(WeightFileError, match="there is no such file"):
        Catalog([tmp_path]).find("lora", "/nowhere/x.safetensors")
    with pytest.raises(WeightFileError):
        Catalog([tmp_path]).find("lora", "")


def test_a_file_name_in_two_folders_is_ambiguous(tmp_path: Path) -> None:
    touch(tmp_path / "loras", "x/a.safetensors", "y/a.safetensors")
    with pytest.raises(WeightFileError, match=r"2 files have this name: x/a.safetensors, y/a.safetensors"):
        Catalog([tmp_path]).find("lora", "a")


def test_an_unknown_group_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="Did you mean lora"):
        Catalog([]).options("loras")


def test_both_spellings_of_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "models/Lora/a.safetensors", "models/lora/b.safetensors", "models/loras/c.safetensors")
    assert {"a", "b", "c"} <= set(Catalog([tmp_path]).options("lora"))


def test_missing_roots_are_empty(tmp_path: Path) -> None:
    assert set(Catalog([tmp_path / "nope"]).options("lora")) == set(Catalog([]).options("lora"))


def test_thousands_of_files_are_read_by_name_only(tmp_path: Path) -> None:
    touch(tmp_path / "loras", *(f"f{i % 20}/lora_{i:05d}.safetensors" for i in range(3000)))
    for path in (tmp_path / "loras/f0").iterdir():
        path.chmod(0)
    start = time.process_time()
    assert len(Catalog([tmp_path]).options("lora")) >= 3000
    seconds = time.process_time() - start
    assert seconds < 2, f"{seconds} s for 3,000 names"


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    path = Path(os.fsdecode(os.fsencode(tmp_path / "loras/caf") + b"\xe9.safetensors"))
    path.write_bytes(b"<html>")
    catalog = Catalog([tmp_path])
    assert catalog.options("lora")["caf"] == path
    listed = next(item for item in Index(tmp_path / "cache").list_catalog(catalog, ["lora"]) if item.name == "caf")
    assert "caf?.safetensors: is an HTML page" in (listed.fault or "")
    assert len(Hasher().sha256(path)) == 64
