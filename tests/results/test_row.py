from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from sdbatch.cell import ImagePrompt, Strength
from sdbatch.results.commit import part_bytes
from sdbatch.results.folder import SweepFolder
from sdbatch.results.row import ImageFile, axes_of, failed_row, recipe_id, row_of, table_of, versions_of
from sdbatch.results.schema import SCHEMA, SCHEMA_VERSION, VOLATILE
from tests.results.samples import INPAINT, ORIGIN, RECIPE, make_cell, make_picture, weight_file

GOLDEN = Path(__file__).parent / "schema.txt"
IMAGE = ImageFile("images/x.png", 10, "cd" * 32)


def test_the_schema_is_the_golden_one() -> None:
    """The columns are an interface; a change here must be meant, and may need a new SCHEMA_VERSION."""
    lines = [f"{field.name}: {field.type}: {field.metadata[b'description'].decode()}" for field in SCHEMA]
    assert "\n".join([f"version {SCHEMA_VERSION}", *lines, ""]) == GOLDEN.read_text()


def test_a_row_says_how_its_image_was_made() -> None:
    row = row_of(make_picture(3), IMAGE, ORIGIN, attempts=2)
    assert axes_of(row) == {"lora.ink.weight": 0.5, "seed": 3}
    assert versions_of(row) == {"sdbatch": "0.1.0", "torch": "2.13.0"}
    assert (row["seed"], row["clip_skip"], row["guidance_scale"], row["steps"]) == (3, 2, 7.5, 20)
    assert (row["status"], row["error"], row["attempts"], row["sweep"]) == ("ok", None, 2, "study")
    ink = {"name": "ink", "sha256": weight_file("ink").sha256, "autov3": None, "weight": 0.5, "text_encoder_weight": 0.25}
    assert row["loras"][0] == ink | {"blocks": None, "applied_keys": 128, "total_keys": 128}
    assert (row["vae"], row["text_encoder"]) == ("sharp", None)
    assert json.loads(row["scheduler_options"]) == {"use_karras_sigmas": True}
    assert 0.3 < row["image_mean"] < 0.7 and row["image_std"] > 0.2


def test_a_row_says_block_weights_and_hypernetworks() -> None:
    recipe = dataclasses.replace(RECIPE, hypernetworks=(weight_file("anime"),))
    strengths = (Strength(0.5, 0.25, "MIDD"), Strength())
    row = row_of(make_picture(3, recipe=recipe, strengths=strengths, hypernetwork_weights=(0.75,)), IMAGE, ORIGIN)
    assert [each["blocks"] for each in row["loras"]] == ["MIDD", None]
    assert row["hypernetworks"] == [{"name": "anime", "sha256": weight_file("anime").sha256, "weight": 0.75}]


def test_a_row_says_what_was_made_of_which_picture() -> None:
    row = row_of(make_picture(source=INPAINT), IMAGE, ORIGIN)
    told = [row[f"task_{name}"] for name in ("image", "strength", "resize", "mask", "mask_blur", "fill", "paste")]
    assert [row["task"], *told] == ["inpaint", "photo.png", 0.6, "crop", "mask.png", 4, "noise", True]
    assert (row["task_image_sha256"], row["task_mask_sha256"]) == ("cd" * 32, "ef" * 32)
    plain, bare = (row_of(make_picture(source=source), IMAGE, ORIGIN) for source in (None, dataclasses.replace(INPAINT, mask=None)))
    assert (plain["task"], plain["task_strength"]) == ("txt2img", None)
    assert (bare["task"], bare["task_strength"], bare["task_paste"]) == ("img2img", 0.6, None)


def test_a_row_says_what_ip_adapters_were_shown() -> None:
    recipe = dataclasses.replace(RECIPE, ip_adapters=(weight_file("follow"),), image_encoders=(weight_file("eye"),))
    prompts = (ImagePrompt("/home/someone/secret/cat.png", "cd" * 32, 0.6, 0.1, 0.9),)
    row = row_of(make_picture(3, recipe=recipe, image_prompts=prompts), IMAGE, ORIGIN)
    follow = {"name": "follow", "sha256": weight_file("follow").sha256, "image": "cat.png", "image_sha256": "cd" * 32}
    assert row["ip_adapters"] == [{**follow, "weight": 0.6, "start": 0.1, "end": 0.9}]
    assert row["image_encoders"] == [{"name": "eye", "sha256": weight_file("eye").sha256}]
    assert table_of([row]).column("ip_adapters").to_pylist() == [row["ip_adapters"]]
    assert "/home/someone" not in str(row)


def test_no_path_of_this_machine_is_recorded() -> None:
    assert "/home/someone" not in str(row_of(make_picture(source=INPAINT), IMAGE, ORIGIN))


@pytest.mark.parametrize(("fault", "word"), [("nan", "finite"), ("flat", "colour")])
def test_a_faulty_picture_is_no_success_and_says_why(fault: str, word: str) -> None:
    row = row_of(make_picture(fault=fault), None, ORIGIN)
    assert row["status"] == fault and word in row["error"]


def test_every_column_survives_parquet_and_pandas() -> None:
    rows = [row_of(make_picture(1, source=INPAINT), IMAGE, ORIGIN), failed_row(make_cell(2), "out of memory", ORIGIN)]
    table = table_of(rows)
    assert table.schema.equals(SCHEMA, check_metadata=True)
    frame = pd.read_parquet(io.BytesIO(part_bytes(table)))
    assert list(frame.columns) == SCHEMA.names
    assert frame["status"].tolist() == ["ok", "failed"]
    assert frame["error"].isna().tolist() == [True, False]
    assert str(frame["made_at"].dt.tz) == "UTC"
    absent = {"text_encoder", "text_encoder_sha256", "text_encoder_2", "text_encoder_2_sha256", "upscaler", "upscaler_sha256", "upscale"}
    absent |= {"task_steps", "task_width", "task_height", "task_upscaler", "task_upscaler_sha256"}
    empty = {name for name in SCHEMA.names if table[name][0].as_py() is None}
    assert empty == {"error", "image_offset", "merge", "prediction_type", *absent}


def test_a_wrong_type_is_refused() -> None:
    row = row_of(make_picture(1), IMAGE, ORIGIN) | {"seed": "one"}
    with pytest.raises(pa.ArrowException):
        table_of([row])


def test_equal_content_is_an_equal_recipe_wherever_the_files_lie() -> None:
    moved = dataclasses.replace(RECIPE, checkpoint=dataclasses.replace(RECIPE.checkpoint, path="/elsewhere/x"), config="/other")
    assert recipe_id(moved) == recipe_id(RECIPE)
    assert recipe_id(dataclasses.replace(RECIPE, loras=RECIPE.loras[::-1])) != recipe_id(RECIPE)
    assert recipe_id(dataclasses.replace(RECIPE, engine="rehearsal")) != recipe_id(RECIPE)


def test_two_makings_differ_only_in_volatile_columns() -> None:
    first, second = (row_of(make_picture(1), IMAGE, dataclasses.replace(ORIGIN, worker=name)) for name in ("a", "b"))
    assert {name for name in SCHEMA.names if first[name] != second[name]} <= set(VOLATILE)


def test_rows_of_a_folder_open_in_plain_readers(sweep: SweepFolder) -> None:
    assert len(pd.read_parquet(sweep.rows)) == 6
