"""The packaged groups: short, documented, and every option of every group composes. Every job plans."""

from __future__ import annotations

from pathlib import Path

import pytest

import sdbatch
from sdbatch.cell import STACKS
from sdbatch.config.arguments import read_arguments
from sdbatch.config.compose import Composer
from sdbatch.errors import ConfigError
from sdbatch.families.samplers import SAMPLERS
from sdbatch.run.prepare import prepare
from tests.conftest import BASE

ROOT = Path(sdbatch.__file__).parent.parent
CONF = ROOT / "conf"
FILES = sorted(CONF.rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_a_file_is_short_and_opens_with_how_to_use_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 40
    comments = [line for line in lines if line.startswith("# ") and not line.startswith("# @package")]
    assert comments, "the first line says how to use the option"
    assert "_target_" not in path.read_text()


@pytest.mark.usefixtures("workspace")
def test_every_option_of_every_group_composes() -> None:
    composer = Composer(overrides=BASE)
    for group in composer.groups():
        for option in composer.options(group):
            choice = f"{group}=[{option}]" if group in STACKS else f"{group}={option}"
            composition = composer.compose([*BASE, choice])
            assert composition.plain["width"] >= 64, choice
    assert set(SAMPLERS) <= set(composer.options("sampler"))
    assert {"red", "blue"} <= set(composer.options("lora"))


@pytest.mark.usefixtures("workspace")
def test_a_users_conf_extends_and_shadows(workspace: Path) -> None:
    (workspace / "conf/lora").mkdir(parents=True)
    (workspace / "conf/lora/red.yaml").write_text("# @package lora.red\nweight: 0.8\n")
    (workspace / "conf/model").mkdir()
    (workspace / "conf/model/mine.yaml").write_text("# @package _global_\nsteps: 7\nmodel: {name: mine}\n")
    composer = Composer(overrides=BASE)
    plain = composer.compose([*BASE, "model=mine", "lora=[red]"]).plain
    assert plain["steps"] == 7
    assert plain["lora"]["red"]["weight"] == 0.8
    assert plain["lora"]["red"]["file"] == "red"


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_job_plans_from_anywhere(job: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    planned = prepare(read_arguments(["-cn", job.stem, "out=out"]))
    assert planned.settings.name == job.stem
    assert len(planned.plan) > 4
    assert job.read_text().splitlines()[0].startswith(f"# sdbatch -cn {job.stem}")


@pytest.mark.usefixtures("workspace")
def test_a_job_finds_its_files_beside_it_or_from_where_it_is_run(workspace: Path) -> None:
    (workspace / "my [jobs]/words").mkdir(parents=True)
    matrix = "matrix: {prompts: {file: words/animals.txt}, product: {task.image: 'glob(*.png)'}}"
    job = f"defaults: [config, override task: img2img, _self_]\n{matrix}\n"
    (workspace / "my [jobs]/mine.yaml").write_text(job)
    (workspace / "words").mkdir()
    (workspace / "words/animals.txt").write_text("a dog\na cat\n")

    def columns() -> dict[str, list[object]]:
        plan = prepare(read_arguments(["-cd", "my [jobs]", "-cn", "mine", *BASE])).plan
        return {key: list(column.values) for key, column in plan.columns.items()}

    assert columns() == {"prompt": ["a dog", "a cat"], "task.image": ["control.png"]}
    (workspace / "my [jobs]/words/animals.txt").write_text("a fox\n")
    (workspace / "control.png").rename(workspace / "my [jobs]/own.png")
    assert columns() == {"prompt": ["a fox"], "task.image": ["my [jobs]/own.png"]}


@pytest.mark.usefixtures("workspace")
def test_a_job_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"-cn variation: no such job\. Did you mean variations"):
        prepare(read_arguments(["-cn", "variation"]))
    with pytest.raises(ConfigError, match=r"--config-dir nowhere: no such folder\. The jobs that ship .* need none: -cn ablation,"):
        prepare(read_arguments(["-cd", "nowhere", "-cn", "dataset"]))
