"""A file that is not the plan's any more is refused before it is used, also when it is swapped while it is read (case 27)."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbatch.errors import WeightFileError
from sdbatch.run.unchanged import Unchanged
from sdbatch.weights.hashes import Hasher
from tests.conftest import write_weight
from tests.planning import plan_of


def test_what_changed_since_the_plan_is_refused(workspace: Path) -> None:
    (recipe,) = plan_of("lora=[red]").recipes
    watch = Unchanged()
    watch.check(recipe)
    write_weight(workspace / "models/loras/red.safetensors", "trained again")
    with pytest.raises(WeightFileError, match=r"lora\.red: .*red\.safetensors has changed since the plan was made"):
        watch.check(recipe)


def test_a_swap_is_seen_and_a_missing_file_named(workspace: Path) -> None:
    (recipe,) = plan_of("seed=0").recipes
    watch = Unchanged()
    watch.check(recipe)
    path = workspace / "models/checkpoints/base.safetensors"
    (workspace / "models/checkpoints/other.safetensors").replace(path)
    with pytest.raises(WeightFileError, match=r"checkpoint: .* has changed"):
        watch.check(recipe)
    path.unlink()
    with pytest.raises(WeightFileError, match="there is no such file"):
        watch.check(recipe)


@pytest.mark.usefixtures("workspace")
def test_asking_again_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (recipe,) = plan_of("lora=[red,blue]", "vae=soft").recipes
    watch = Unchanged()
    watch.check(recipe)

    def refuse(_: Hasher, path: Path) -> str:
        pytest.fail(f"hashed again: {path}")

    monkeypatch.setattr(Hasher, "sha256", refuse)
    watch.check(recipe)
