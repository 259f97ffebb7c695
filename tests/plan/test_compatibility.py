"""What does not fit is refused by name before anything is loaded, with what would fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbatch.errors import PlanError
from tests.planning import plan_of
from tests.weights import dialects
from tests.weights.writer import write_safetensors

pytestmark = pytest.mark.usefixtures("workspace")


def test_all_misfits_come_in_one_report_with_what_fits(workspace: Path) -> None:
    write_safetensors(workspace / "models/loras/wide.safetensors", dialects.kohya(dialects.unet_modules(64), rank=2))
    write_safetensors(workspace / "models/embeddings/long.safetensors", {"emb_params": (2, 64)})
    with pytest.raises(PlanError) as caught:
        plan_of("lora=[red],[wide]", "embedding=[long]")
    text = str(caught.value)
    assert "lora.wide: wide is a LoRA (64-wide cross-attention)" in text
    assert "Fitting here: blue, red." in text
    assert "embedding.long: long is an embedding (64-wide tokens)" in text
    assert "Fitting here: nice." in text


def test_a_file_of_another_kind_is_named_for_what_it_is(workspace: Path) -> None:
    write_safetensors(workspace / "models/loras/red.safetensors", {"emb_params": (2, 32)})
    with pytest.raises(PlanError, match=r"lora\.red: red is an embedding .* use it as embedding="):
        plan_of("lora=[red]")


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"<!DOCTYPE html><html>login</html>", "HTML page")])
def test_a_damaged_file_is_refused(workspace: Path, content: bytes, said: str) -> None:
    path = workspace / "models/checkpoints/base.safetensors"
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(PlanError, match=said):
        plan_of("seed=1,2")
