from __future__ import annotations

from typing import Any

import pyarrow as pa

from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import load_rows
from sdbatch.tracking.payload import MOST_PARAM, Payload, clean_key, sweep_payload
from sdbatch.tracking.tally import COLUMNS, Tally, count_rows
from tests.tracking.conftest import SweepMaker


def tally_of(folder: Any, most_groups: int = 200, samples: int = 4) -> Tally:
    return count_rows(load_rows(SweepFolder(folder), COLUMNS), most_groups, samples)


def test_cells_that_differ_only_by_seed_share_a_group(make_sweep: SweepMaker) -> None:
    tally = tally_of(make_sweep(weights=(0.0, 0.5, 1.0), seeds=4, failed=1))
    assert [group.values for group in tally.groups.values()] == [{"lora.style_a.weight": weight} for weight in (0.0, 0.5, 1.0)]
    assert [(group.done, group.failed) for group in tally.groups.values()] == [(4, 0), (4, 0), (3, 1)]
    assert (tally.total.done, tally.total.failed, tally.images) == (11, 1, 12)


def test_too_many_groups_become_none(make_sweep: SweepMaker) -> None:
    tally = tally_of(make_sweep(weights=(0.0, 0.5, 1.0)), most_groups=2)
    assert tally.groups == {}
    assert tally.total.done == 12


def test_only_what_all_rows_share_is_constant(make_sweep: SweepMaker) -> None:
    constants = tally_of(make_sweep(failed=2)).constants
    assert constants["steps"] == 8
    assert constants["device"] == "cpu", "a failed cell without a device is no difference"
    assert not {"seed", "lora.style_a.weight", "lora.style_a.text_encoder_weight", "vae"} & set(constants)


def test_a_lora_that_some_images_lack_is_not_shared(make_sweep: SweepMaker) -> None:
    rows: list[dict[str, Any]] = load_rows(SweepFolder(make_sweep(weights=(0.5,), seeds=2)), COLUMNS).to_pylist()
    rows[0]["loras"] = []
    table = pa.Table.from_pylist(rows, schema=load_rows(SweepFolder(make_sweep("other")), COLUMNS).schema)
    assert "lora.style_a.weight" not in count_rows(table, 200, 4).constants


def test_later_rows_only_append_steps(make_sweep: SweepMaker) -> None:
    folder = make_sweep(weights=(0.5,), seeds=6)
    table = load_rows(SweepFolder(folder), COLUMNS)
    early = count_rows(table.sort_by([("made_at", "ascending"), ("image_id", "ascending")]).slice(0, 3), 200, 4)
    late = count_rows(table, 200, 4)
    assert late.total.points[:3] == early.total.points
    assert late.total.samples[:3] == early.total.samples


def test_speed_counts_the_making_only(make_sweep: SweepMaker) -> None:
    assert round(tally_of(make_sweep(seeds=3)).images_per_s, 3) == round(1 / 0.31, 3)


def test_keys_and_values_are_made_to_fit_and_said_so() -> None:
    payload = Payload("x")
    payload.add_params({"it's, a [key]": "v", "prompt": "p" * 7000, "uri": "https://me:pw@host"})
    assert payload.params["it_s_ a _key_"] == "v"
    assert len(payload.params["prompt"]) == MOST_PARAM
    assert payload.params["uri"] == "https://***@host"
    assert len(payload.notices) == 2
    assert "was cut from 7000 to 6000" in payload.notices[1]


def test_two_keys_never_become_one() -> None:
    payload = Payload("x")
    payload.add_params({"a,b": 1, "a;b": 2})
    assert payload.params == {"a_b": "1", "a_b_": "2"}
    assert clean_key("[]") == "__"


def test_the_sweep_says_who_it_is(make_sweep: SweepMaker) -> None:
    payload = sweep_payload(tally_of(make_sweep()), {"name": "n", "plan_id": "p", "cells": 12}, "/out")
    assert payload.tags["sdbatch.sweep"] == "n"
    assert payload.tags["sdbatch.plan_id"] == "p"
    assert payload.tags["sdbatch.out"] == "/out"
    assert payload.tags["sdbatch.version.sdbatch"] == "0.1"
    assert {reading.key: reading.value for reading in payload.metrics if reading.key.startswith("images_")} == {
        "images_done": 12.0,
        "images_failed": 0.0,
        "images_planned": 12.0,
        "images_per_s": payload.metrics[-1].value,
    }
