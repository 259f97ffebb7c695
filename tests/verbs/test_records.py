"""What `models` and `inspect` hand over: the same facts as lines, JSON and Parquet, under names that scripts rely on."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sdbatch.cli import main
from sdbatch.weights.table import SCHEMA
from tests.weights import dialects
from tests.weights.writer import write_safetensors

pytestmark = pytest.mark.usefixtures("workspace")


@pytest.fixture
def lora(workspace: Path) -> Path:
    modules = dialects.unet_modules(32)
    path = workspace / "models/loras/mixed.safetensors"
    return write_safetensors(
        path, {**dialects.kohya(modules[:2], 2), **dialects.kohya(modules[2:], 4)}, scalars=dialects.alphas(modules, 1)
    )


def test_inspect_tells_rank_and_alpha_by_block_and_every_hash(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(lora)]) == 0
    told = capsys.readouterr().out
    assert "down_0: 2 modules, rank 2, alpha 1" in told
    assert "mid: 1 modules, rank 4, alpha 1" in told
    for name in ("sha256", "autov1", "autov2", "autov3", "a1111_short", "algorithm", "parameters", "dtype"):
        assert f"\n  {name} " in told
    assert main(["inspect", str(lora), "hash=false"]) == 0
    assert "sha256" not in capsys.readouterr().out


@pytest.mark.parametrize("spelling", ["--json", "json=true"])
def test_json_and_parquet_hold_the_same(lora: Path, spelling: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(lora), "models/vae/soft.safetensors", spelling]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main(["inspect", str(lora), "models/vae/soft.safetensors", "parquet=facts.parquet"]) == 0
    assert capsys.readouterr().out == "2 files: facts.parquet\n"
    rows = pq.read_table("facts.parquet").to_pylist()
    for line, row in zip(lines, rows, strict=True):
        row["metadata"] = dict(row["metadata"])
        assert {key: row[key] for key in line} == line
        assert set(line) | {"option", "fault"} == set(SCHEMA.names)


def test_models_lists_what_cannot_be_read_with_its_fault(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "models/loras/page.safetensors").write_text("<!DOCTYPE html><html>please log in</html>")
    assert main(["models", "lora", "vae", "parquet=all.parquet"]) == 0
    rows = {row["option"]: row for row in pq.read_table("all.parquet").to_pylist()}
    assert rows["lora=red"]["kind"] == "lora"
    assert rows["vae=soft"]["kind"] == "vae"
    assert "is an HTML page" in rows["lora=page"]["fault"]
    assert rows["lora=page"]["kind"] is None
    capsys.readouterr()
    assert main(["models", "lora"]) == 0
    assert "lora=page" in (told := capsys.readouterr().out)
    assert "is an HTML page" in told


@pytest.mark.parametrize("words", [["inspect", "models/loras/x\033[31m.safetensors"], ["models", "lora"]])
def test_a_name_commands_no_terminal(workspace: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_safetensors(workspace / "models/loras/x\033[31m.safetensors", dialects.kohya(dialects.unet_modules(32), 2))
    assert main(words) == 0
    assert "x?[31m.safetensors" in (told := capsys.readouterr().out)
    assert "\033" not in told


def test_the_columns_are_an_interface() -> None:
    assert SCHEMA.names[:10] == ["option", "fault", "path", "name", "group", "kind", "format", "size", "family", "variant"]
    assert len(SCHEMA.names) == 37


def test_a_wrong_word_is_answered_with_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "lora", "jsn=true"]) == 2
    assert "Did you mean json?" in capsys.readouterr().err
    assert main(["inspect"]) == 2
    assert "FILE... is missing" in capsys.readouterr().err
