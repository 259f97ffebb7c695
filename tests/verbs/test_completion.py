"""What shells offer on a tab: verbs, options with dropped files, keys with the stack that is chosen, values of enums, jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sdbatch.errors import ConfigError
from sdbatch.verbs.completion import SCRIPTS, candidates, completion, split_line


@pytest.mark.parametrize(
    ("line", "words", "quote"),
    [
        ("sdbatch ", ["sdbatch", ""], ""),
        ("sdbatch  plan lo", ["sdbatch", "plan", "lo"], ""),
        ("sdbatch prompt='a red fox' se", ["sdbatch", "prompt=a red fox", "se"], ""),
        ("sdbatch 'lora=[a,", ["sdbatch", "lora=[a,"], "'"),
        ('sdbatch prompt="it\'s \\"x\\""', ["sdbatch", 'prompt=it\'s "x"'], ""),
        ("sdbatch lora=a\\ b", ["sdbatch", "lora=a b"], ""),
    ],
)
def test_a_line_is_split_as_a_shell_does(line: str, words: list[str], quote: str) -> None:
    assert split_line(line) == (words, quote)


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sdbatch pla", {"plan"}),
        ("sdbatch sta", {"status"}),
        ("sdbatch lora=re", {"lora=red"}),
        ("sdbatch plan lora=red,b", {"lora=red,blue"}),
        ("sdbatch 'lora=[red,b", {"lora=[red,blue]", "lora=[red,blue,"}),
        ("sdbatch prompt='a red fox' -m lora=[red],[blue] lora.blue.wei", {"lora.blue.weight="}),
        ("sdbatch lora.red.wei", set[str]()),
        ("sdbatch mem", {"memory=", "memory."}),
        ("sdbatch memory.dtype=bf", {"memory.dtype=bfloat16"}),
        ("sdbatch output.grid=", {"output.grid=true", "output.grid=false"}),
        ("sdbatch hydra/launcher=", {f"hydra/launcher={name}" for name in ("local", "slurm", "ray", "template")}),
        ("sdbatch stepz=3 sampler=euler_a_", {"sampler=euler_a_trailing"}),
        ("sdbatch --help mat", {"matrix"}),
        ("sdbatch --cfg j", {"job"}),
        ("sdbatch -cd jobs -cn f", {"foxes"}),
        ("sdbatch status OUT --", {"--watch", "--json", "--full"}),
        ("sdbatch status ", set[str]()),
        ("sdbatch prompt=a", set[str]()),
    ],
)
def test_candidates(line: str, offered: set[str], workspace: Path) -> None:
    (workspace / "jobs").mkdir()
    (workspace / "jobs/foxes.yaml").write_text("defaults: [config, _self_]\n")
    words, _ = split_line(line)
    assert set(candidates(words[1:])) == offered


@pytest.mark.usefixtures("workspace")
def test_bash_replaces_what_stands_behind_its_word_breaks() -> None:
    environment = {"COMP_LINE": "sdbatch lora=re; ls", "COMP_POINT": "15", "COMP_BREAKS": " =:"}
    assert completion(["query=bash"], environment) == "red\n"
    assert completion(["query=bash"], {**environment, "COMP_BREAKS": " "}) == "lora=red\n"
    assert completion(["query=zsh"], {"COMP_LINE": "sdbatch lora=re"}) == "lora=red\n"
    with pytest.raises(ConfigError, match="Choose one of: bash, fish, zsh"):
        completion(["install=tcl"], {})


CALLS = {
    "bash": 'COMP_LINE="sdbatch lora=re"; COMP_POINT=15; _sdbatch sdbatch; echo "${COMPREPLY[@]}"',
    "zsh": 'compadd() { echo "${@:5}" }; words=(sdbatch lora=re); CURRENT=2; _sdbatch',
    "fish": "complete -C 'sdbatch lora=re'",
}


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_runs_in_its_shell(shell: str, workspace: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    program = workspace / "bin/sdbatch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m sdbatch "$@"\n')
    program.chmod(0o755)
    (workspace / "script").write_text(("compdef() { }\n" if shell == "zsh" else "") + SCRIPTS[shell] + CALLS[shell] + "\n")
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[2])}
    shown = subprocess.run([shell, "script"], cwd=workspace, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert shown.stdout.strip() in ("red", "lora=red"), shown.stderr
