"""The name of an image: by content, by meaning, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdbatch.config.schema import identity_defaults
from sdbatch.plan.files import FileBook
from sdbatch.plan.identity import column_lanes, digest, file_digests, image_id
from sdbatch.weights.catalog import Catalog
from tests.conftest import write_weight
from tests.planning import image_ids, plan_of

pytestmark = pytest.mark.usefixtures("workspace")


def only(*overrides: str) -> str:
    (found,) = image_ids(plan_of(*overrides, sweep=False))
    return found


def test_an_id_does_not_depend_on_which_keys_were_swept() -> None:
    swept = plan_of("seed=1,2", "lora=[red]", "lora.red.weight=0.5,1", "width=64,128")
    cell = next(c for c in map(swept.cell, range(len(swept))) if (c.seed, c.width, c.strengths[0].model) == (2, 64, 0.5))
    assert cell.image_id == only("seed=2", "lora=[red]", "lora.red.weight=0.5", "width=64")


def test_every_key_that_decides_the_image_changes_the_id() -> None:
    base = ["lora=[red]", "embedding=[nice]", "controlnet=[edges]", "controlnet.edges.image=control.png"]
    changes = [
        "seed=1",
        "steps=21",
        "guidance_scale=3",
        "guidance_rescale=0.5",
        "width=64",
        "height=64",
        "clip_skip=2",
        "prompt=b",
        "negative_prompt=b",
        "sampler=ddim",
        "vae=soft",
        "text_encoder=fluent",
        "checkpoint=other",
        "lora=[blue]",
        "lora=[red,blue]",
        "lora.red.weight=0.5",
        "lora.red.text_encoder_weight=0.5",
        "controlnet.edges.weight=0.5",
        "controlnet.edges.end=0.5",
        "controlnet.edges.preprocessor=canny",
        "memory.dtype=float32",
    ]
    ids = [only(*base), *(only(*base, change) for change in changes)]
    assert len(set(ids)) == len(ids)


def test_where_and_how_it_is_made_does_not_change_the_id() -> None:
    base = only("seed=3")
    for change in ("batch_size=3", "out=elsewhere", "name=x", "memory.device=cpu", "memory.threads=1", "tracking=none", "output=parquet"):
        assert only("seed=3", change) == base


def test_a_renamed_file_keeps_its_images_and_a_changed_one_does_not(workspace: Path) -> None:
    before = only("lora=[red]")
    write_weight(workspace / "models/loras/crimson.safetensors", "red")
    assert only("lora=[crimson]") == before
    write_weight(workspace / "models/loras/red.safetensors", "red, but another")
    assert only("lora=[red]") != before


def test_the_order_of_a_stack_counts() -> None:
    assert only("lora=[red,blue]") != only("lora=[blue,red]")


def test_a_single_configuration_is_named_as_in_a_sweep(workspace: Path) -> None:
    plan = plan_of("seed=4", "lora=[red]", sweep=False)
    config = plan.config(0)
    digests = file_digests(config, FileBook(Catalog([workspace / "models"])))
    assert image_id(config, identity_defaults(), digests) == image_ids(plan)[0]


def test_a_neutral_value_adds_nothing_and_types_count() -> None:
    assert column_lanes("clip_skip", [1, 2], 1).tolist() == [[0, 0], np.frombuffer(digest("clip_skip", 2), "<u8").tolist()]
    assert digest("x", 1) != digest("x", 1.0) != digest("x", "1.0")
    assert column_lanes("x", [True], 1).any()


def test_ids_of_many_seeds_do_not_collide() -> None:
    lanes = column_lanes("seed", list(range(20_000)), None)
    assert len(np.unique(lanes[:, 0])) == 20_000
