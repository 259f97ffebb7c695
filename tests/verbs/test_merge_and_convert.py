"""`sdbatch merge` and `sdbatch convert` as typed: words, faults, and what they leave."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors import safe_open

from sdbatch.weights.catalog import embedded_root
from tests.conftest import Sdbatch


def test_merge_and_what_inspect_says_of_it(workspace: Path, sdbatch: Sdbatch) -> None:
    fresh = workspace / "fresh.safetensors"  # its hash is known to nobody yet
    fresh.write_bytes((embedded_root() / "checkpoints/tiny.safetensors").read_bytes())
    done = sdbatch("merge", str(fresh), "tiny_pastel", "out=new.safetensors", "ratio=0.25")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("new.safetensors: 6.5 MB")
    told = json.loads(sdbatch("inspect", "new.safetensors", "json=true").stdout)
    assert (told["kind"], told["family"], told["prediction_type"]) == ("checkpoint", "tiny", "v_prediction")
    assert told["metadata"]["modelspec.merged_from"] == "fresh, tiny_pastel"
    recipe = json.loads(told["metadata"]["sdbatch.merge"])
    assert recipe["merge"]["ratio"] == 0.25
    assert recipe["checkpoint"]["sha256"] == hashlib.sha256(fresh.read_bytes()).hexdigest()
    again = sdbatch("merge", "tiny", "tiny_pastel", "out=new.safetensors")
    assert again.returncode == 2
    assert "never overwritten" in again.stderr


def test_merge_refuses_with_the_nearest(sdbatch: Sdbatch) -> None:
    for arguments, said in (
        (("tiny", "tiny_pastel", "out=x.safetensors", "method=weighted"), "Did you mean weighted_sum"),
        (("tiny", "tiny_pastel", "out=x.safetensors", "method=add_difference"), "C: is not set"),
        (("tiny", "tiny_pastle", "out=x.safetensors"), "Did you mean tiny_pastel"),
        (("tiny", "out=x.safetensors"), "give a second checkpoint to merge with, or loras=NAME"),
        (("tiny", "tiny_pastel"), "out= is missing"),
        (("tiny", "tiny_pastel", "out=x.ckpt"), "must end in .safetensors"),
        (("tiny", "tiny_pastel", "out=x.safetensors", "ratio=half"), "ratio=half: is no number"),
        (("tiny", "tiny_pastel", "out=x.safetensors", "dtype=fp8"), "choose float32, float16 or bfloat16"),
        (("tiny", "out=x.safetensors", "loras=style_a:strong"), "NAME:STRENGTH"),
        ((), "give two or three to merge"),
    ):
        done = sdbatch("merge", *arguments)
        assert done.returncode == 2, arguments
        assert said in done.stderr


def test_loras_into_a_checkpoint_and_into_one(workspace: Path, sdbatch: Sdbatch) -> None:
    baked = sdbatch("merge", "tiny", "out=baked.safetensors", "loras=style_a:0.8,style_b:0.5:0")
    assert baked.returncode == 0, baked.stderr
    one = sdbatch("merge", "out=models/loras/both.safetensors", "loras=style_a:0.8,style_b")
    assert one.returncode == 0, one.stderr
    told = json.loads(sdbatch("inspect", "models/loras/both.safetensors", "json=true").stdout)
    assert (told["kind"], told["family"], told["rank"]) == ("lora", "tiny", 16)
    planned = sdbatch("plan", "model=tiny", "lora=both")
    assert planned.returncode == 0, planned.stderr


def test_convert_to_a_folder_that_is_an_option_and_back(workspace: Path, sdbatch: Sdbatch) -> None:
    done = sdbatch("convert", "tiny", "out=models/checkpoints/as_folder")
    assert done.returncode == 0, done.stderr
    assert "checkpoint=as_folder" in sdbatch("models", "checkpoint").stdout
    done = sdbatch("convert", "as_folder", "out=half.safetensors", "dtype=bfloat16", "vae=tiny_vivid")
    assert done.returncode == 0, done.stderr
    with safe_open("half.safetensors", "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.bfloat16"}  # noqa: SIM118  # it is no dict


def test_convert_refuses_clearly(sdbatch: Sdbatch) -> None:
    for arguments, said in (
        (("tiny",), "out= is missing"),
        (("tiny", "out=x.ckpt"), "pickle files are read but never written"),
        (("tinny", "out=x.safetensors"), "Did you mean tiny"),
        (("style_a", "out=folder"), "is a LoRA for"),
        (("tiny", "out=x.safetensors", "vae=style_a"), "vae=style_a"),
        (("tiny", "out=x.safetensors", "prune=yes"), "choose true or false"),
        (("tiny", "out=x.safetensors", "ema=true"), "asks for averaged weights"),
    ):
        done = sdbatch("convert", *arguments)
        assert done.returncode == 2, arguments
        assert said in done.stderr, done.stderr
