"""The small verbs: what they print, and what they say to a wrong word."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest

from sdbatch.cli import COMPOSING, VERBS, main
from sdbatch.config.manual import group_keys, plain_keys
from sdbatch.config.schema import Config, identity_defaults
from sdbatch.errors import ConfigError
from sdbatch.verbs.words import Option, Options, read_names, read_words
from tests.conftest import BASE, Sdbatch


def test_help_lists_verbs_groups_and_keys(sdbatch: Sdbatch) -> None:
    shown = sdbatch("--help", *BASE)
    assert shown.returncode == 0, shown.stderr
    for word in ("resume", "replay", "sampler", "lora", "guidance_scale=", "red"):
        assert word in shown.stdout
    group = sdbatch("--help", "sampler")
    assert "dpmpp_2m_karras" in group.stdout
    both = sdbatch("--help", "matrix", "lora", "hydra/launcher").stdout
    assert "sixteen seeds" in both
    assert "lora.NAME.weight=1.0            Strength on the denoising network" in both
    assert "hydra/launcher=slurm:\n  hydra.launcher.workers=1 " in both
    assert "basic" not in both, "Hydra's own launcher does not run our plans"


def test_every_key_of_the_schema_is_told() -> None:
    keys = [key for group in get_type_hints(Config) for key in group_keys(group)]
    told = {key.path.replace("NAME", "*"): key.about for key in [*keys, *plain_keys()]}
    assert set(identity_defaults()) - {"family.name", "sampler.name", "task.name"} <= set(told)
    assert told["memory.dtype"] == "Number format of the weights in memory. One of: auto, float32, float16, bfloat16."
    assert told["lora.*.weight"].startswith("Strength on the denoising network")
    assert told["vae.file"] == "Unset: the one baked into the checkpoint."


def test_cfg_prints_the_composed_configuration(sdbatch: Sdbatch) -> None:
    shown = sdbatch("--cfg", "job", *BASE, "lora=[red]", "steps=7")
    assert shown.returncode == 0, shown.stderr
    assert "steps: 7" in shown.stdout
    assert "red:" in shown.stdout


def test_plan_shows_what_a_run_would_cost_and_writes_nothing(workspace: Path, sdbatch: Sdbatch) -> None:
    shown = sdbatch("plan", *BASE, "lora=red,blue", "seed=range(0,10)", "-m")
    assert shown.returncode == 0, shown.stderr
    for word in ("20 images", "lora: 2", "seed: 10", "1 checkpoint", "base + red: 10 images"):
        assert word in shown.stdout
    assert not (workspace / "outputs").exists()


def test_models_and_inspect_tell_what_files_are(workspace: Path, sdbatch: Sdbatch) -> None:
    listed = sdbatch("models", "lora")
    assert "lora=red" in listed.stdout
    assert "a LoRA" in listed.stdout
    facts = [json.loads(line) for line in sdbatch("models", "lora", "json=true").stdout.splitlines()]
    assert {fact["option"] for fact in facts} >= {"lora=red", "lora=blue"}
    told = sdbatch("inspect", "models/loras/red.safetensors", "json=true")
    assert json.loads(told.stdout)["kind"] == "lora"
    (workspace / "page.safetensors").write_text("<!DOCTYPE html><html>please log in</html>")
    wrong = sdbatch("inspect", "page.safetensors")
    assert wrong.returncode == 1
    assert "HTML" in wrong.stderr


def test_wrong_words_are_answered_with_the_nearest(sdbatch: Sdbatch) -> None:
    assert "Did you mean status?" in sdbatch("statsu", "x").stderr
    assert "steps=30" in sdbatch("steps", "30").stderr or "no such verb" in sdbatch("steps", "30").stderr
    missing = sdbatch("resume")
    assert missing.returncode == 2
    assert "OUT is missing. Usage: sdbatch resume OUT" in missing.stderr
    nowhere = sdbatch("status", "outputs/none")
    assert nowhere.returncode == 2
    assert "no sweep here" in nowhere.stderr


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in COMPOSING])
def test_every_verb_tells_what_it_does_and_each_of_its_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"sdbatch {verb}")
    assert not told.err
    options: Options = getattr(import_module(f"sdbatch.verbs.{verb}"), "OPTIONS", {})
    assert all(key in told.out and option.about in told.out for key, option in options.items())


def test_a_flag_is_true_or_false_and_an_unknown_word_is_no_name(workspace: Path) -> None:
    assert read_names("v", ["a", "--full", "b"], ("NAME...",), {"full": Option("false", "")}) == (["a", "b"], {"full": "true"})
    (workspace / "out=1").touch()
    assert read_words("v", ["out=1"], ("OUT",), {"full": Option("false", "")}) == {"OUT": "out=1", "full": "false"}
    for words, said in (
        (["full=yes", "x"], "full=yes: choose true or false"),
        (["ful=true", "x"], "no such option of v. Did you mean full?"),
        (["x", "--fulll"], "--fulll: no such option of v. Did you mean full? Usage: sdbatch v OUT [--full]"),
        (["x", "y"], "y: not understood"),
        ([], "OUT is missing"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            read_words("v", words, ("OUT",), {"full": Option("false", "")})


@pytest.mark.usefixtures("workspace")
def test_plan_has_the_help_of_a_run_and_unknown_options_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--help", "output"]) == 0
    assert "webdataset" in capsys.readouterr().out
    assert main(["plan", "--fooo"]) == 2
    assert "sdbatch --help" in capsys.readouterr().err
