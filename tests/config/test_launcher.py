"""Launchers: the YAML says what the schema says, and every wrong option is told with its key."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

import sdbatch
from sdbatch.config.arguments import read_arguments
from sdbatch.config.launcher import LAUNCHERS, SlurmLauncher, read_launcher
from sdbatch.errors import ConfigError
from sdbatch.run.prepare import prepare
from tests.conftest import BASE

CONF = Path(sdbatch.__file__).parent.parent / "conf/hydra/launcher"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_yaml_has_every_option_with_its_default(name: str) -> None:
    assert yaml.safe_load((CONF / f"{name}.yaml").read_text()) == asdict(LAUNCHERS[name]())


def test_there_is_a_file_for_every_launcher() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(LAUNCHERS)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"name": "slurm", "wrkers": 2}, "hydra.launcher.wrkers: slurm has no such option. Did you mean workers?"),
        ({"name": "slurm", "workers": "many"}, "hydra.launcher.workers: Value 'many'"),
        ({"name": "slurm", "workers": 0}, "hydra.launcher.workers=0: give 1 or more"),
        ({"name": "slurm", "setup": "module load cuda"}, "hydra.launcher.setup: "),
        ({"name": "local", "partition": "a100"}, "hydra.launcher.partition: local has no such option"),
        ({"name": "template", "target": "nomad"}, "hydra.launcher.target=nomad: choose one of: kubernetes, skypilot"),
        ({"name": "joblib"}, "Choose one of: local, slurm, ray, template"),
    ],
)
def test_a_wrong_option_is_told_with_its_key(values: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as caught:
        read_launcher(values)
    assert told in str(caught.value)


def test_shell_text_stays_as_it_is() -> None:
    found = read_launcher({"name": "slurm", "setup": ["source ${HOME}/venv/bin/activate"]})
    assert isinstance(found, SlurmLauncher)
    assert found.setup == ["source ${HOME}/venv/bin/activate"]


@pytest.mark.usefixtures("workspace")
def test_a_users_own_preset_extends_a_launcher(workspace: Path) -> None:
    (workspace / "conf/hydra/launcher").mkdir(parents=True)
    (workspace / "conf/hydra/launcher/big.yaml").write_text(
        "defaults: [slurm, _self_]\npartition: a100\nworkers: 16\nsetup: ['source ${HOME}/venv/bin/activate']\n"
    )
    job = prepare(read_arguments([*BASE, "engine=rehearsal", "hydra/launcher=big", "hydra.launcher.workers=4"]))
    assert job.settings.launcher["name"] == "slurm"
    assert (job.settings.launcher["partition"], job.settings.launcher["workers"]) == ("a100", 4)
    assert job.settings.launcher["setup"] == ["source ${HOME}/venv/bin/activate"]


@pytest.mark.usefixtures("workspace")
def test_a_wrong_key_on_the_command_line_names_the_launcher_s_options() -> None:
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.wrkers: slurm has no such option\. Did you mean hydra\.launcher\.workers"):
        prepare(read_arguments([*BASE, "engine=rehearsal", "hydra/launcher=slurm", "hydra.launcher.wrkers=2"]))
