"""A plan that is computed slice by slice is the one that sorting all of its cells gives."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sdbatch.errors import ConfigError
from sdbatch.plan import image_ids as ids_module
from sdbatch.plan import plan, repeat, store
from sdbatch.plan.axis import Column, number_rows
from sdbatch.plan.bitmap import BLOCK, Bitmap
from sdbatch.plan.order import Order
from sdbatch.plan.part import Parts
from sdbatch.plan.store import PlanFile, write_plan
from sdbatch.results.ids import Ids, ids_of_text
from tests.planning import image_ids, plan_of, values


@st.composite
def spaces(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Column], int]:
    """Axes, columns on some of them, and how many classes the parts fall into."""
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    axes = draw(st.lists(st.integers(0, len(sizes) - 1), max_size=4))
    columns = [Column(axis, (), np.array(draw(st.lists(st.integers(-1, 2), min_size=sizes[axis], max_size=sizes[axis])))) for axis in axes]
    return sizes, columns, draw(st.integers(1, 4))


@settings(max_examples=150, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(spaces(), st.integers(0, 2**32))
def test_any_stretch_of_the_order_is_that_of_a_stable_sort(space: tuple[tuple[int, ...], list[Column], int], seed: int) -> None:
    sizes, columns, classes = space
    rng = np.random.default_rng(seed)
    parts = Parts.of(sizes, columns)
    # Whatever shape the parts of a class have together, and with parts that are left out (-1).
    class_of = rng.integers(-1, classes, len(parts))
    class_of[rng.integers(len(parts))] = 0
    members = [found for found in (np.flatnonzero(class_of == number) for number in range(classes)) if len(found)]
    every = np.unravel_index(np.arange(np.prod(sizes)), sizes)
    cell_class = class_of[parts.at(every)]
    wanted = np.argsort(cell_class, kind="stable")[(cell_class < 0).sum() :]
    order = Order(parts, members)
    assert len(order) == len(wanted)
    places = np.sort(rng.choice(len(wanted), rng.integers(0, len(wanted) + 1), replace=False))
    assert np.ravel_multi_index(list(order.at(places)), sizes).tolist() == wanted[places].tolist()
    assert order.class_of(places).tolist() == [np.unique(cell_class[wanted]).tolist().index(n) for n in cell_class[wanted[places]].tolist()]


@given(st.sets(st.integers(0, 3 * BLOCK - 1), max_size=60), st.sets(st.integers(0, 3 * BLOCK - 1), max_size=60), st.integers(0, 60))
@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_numbers_of_a_bitmap_are_found_by_place(chosen: set[int], others: set[int], first: int) -> None:
    numbers = np.array(sorted(chosen), dtype=np.int64)
    found = Bitmap.of(3 * BLOCK, np.array_split(numbers, 3))
    assert len(found) == len(chosen)
    first = min(first, len(chosen))
    assert found.take(first, len(chosen)).tolist() == numbers[first:].tolist()
    assert [found.rank(bound) for bound in (0, 7, BLOCK, 3 * BLOCK)] == [int((numbers < bound).sum()) for bound in (0, 7, BLOCK, 3 * BLOCK)]
    rest = found.without(Bitmap.of(3 * BLOCK, [np.array(sorted(others), dtype=np.int64)]))
    assert rest.take(0, len(rest)).tolist() == sorted(chosen - others)


def test_rows_are_numbered_as_they_appear() -> None:
    number, first = number_rows([np.array([3, -1, 3, 3]), np.array([0, 5, 0, 9])])
    assert (number.tolist(), first.tolist()) == ([0, 1, 0, 2], [0, 1, 3])


@pytest.mark.usefixtures("workspace")
class TestPlans:
    def test_slices_make_no_difference(self, monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
        """Nor does it whether ids are compared all at once, or values hashed when they are needed."""
        sweep = ["seed=1,2,1,3", "width=64,128", "lora=red,blue", "guidance_scale=3,3.0,4", "matrix.list=[{steps:5},{clip_skip:2}]"]
        write_plan(plan_of(*sweep), Path("whole.parquet"))
        for module, name, value in (
            (plan, "SLICE_CELLS", 7),
            (repeat, "COMPARED_CELLS", 10),
            (ids_module, "TABLE_VALUES", 1),
            (store, "ROW_GROUP_CELLS", 5),
        ):
            monkeypatch.setattr(module, name, value)
        write_plan(plan_of(*sweep), Path("sliced.parquet"))
        whole, sliced = (pq.read_table(name) for name in ("whole.parquet", "sliced.parquet"))
        assert whole.equals(sliced)
        assert len(whole) == 3 * 2 * 2 * 2 * 2
        assert PlanFile(Path("whole.parquet")).plan_id == PlanFile(Path("sliced.parquet")).plan_id

    def test_cells_are_written_in_their_order_within_what_shares_a_batch(self) -> None:
        found = plan_of("seed=9,3,5", "width=128,64", "prompt=b,a", "matrix.exclude=[{seed:3,width:64},{prompt:a,seed:9}]")
        cells = list(zip(values(found, "width"), values(found, "seed"), values(found, "prompt"), strict=True))
        wanted = [(width, seed, prompt) for width, seed, prompt in product((128, 64), (9, 3, 5), "ba")]
        assert cells == [cell for cell in wanted if cell[:2] != (64, 3) and cell[1:] != (9, "a")]

    def test_of_two_names_for_one_image_the_first_that_is_not_left_out_counts(self, workspace: Path) -> None:
        (workspace / "models/loras/crimson.safetensors").write_bytes((workspace / "models/loras/red.safetensors").read_bytes())
        assert values(plan_of("lora=crimson,red", "seed=1,2"), "lora") == ["crimson", "crimson"]
        assert values(plan_of("lora=crimson,red", "seed=1,2", "matrix.exclude=[{lora:crimson,seed:2}]"), "lora") == ["crimson", "red"]

    def test_a_group_whose_cells_are_all_left_out_is_not_checked(self) -> None:
        found = plan_of("sampler=euler,flow_euler", "seed=1,2", "matrix.exclude=[{sampler:flow_euler}]")
        assert values(found, "sampler") == ["euler", "euler"]

    def test_what_is_made_comes_first_and_the_rest_is_cut_anew(self) -> None:
        sweep = ["seed=range(0,50)", "lora=red,blue"]
        whole = plan_of(*sweep)
        ids = image_ids(whole)
        done = Ids(ids_of_text("".join(ids[10:60]).encode()))
        adopted = whole.adopt(done)
        assert image_ids(adopted) == ids[10:60] + ids[:10] + ids[60:]
        assert adopted.slice(0, 100).shard.tolist() == [-1] * 50 + [0] * 10 + [1] * 32 + [2] * 8
        assert (adopted.shards, adopted.plan_id) == (3, whole.plan_id)
        assert [adopted.slice(place, place + 1).shard[0] for place in (49, 50, 60, 92)] == [-1, 0, 1, 2]

    def test_a_plan_of_an_earlier_version_is_the_same_plan(self) -> None:
        found = plan_of("seed=range(0,40)")
        write_plan(found, Path("plan.parquet"))
        table = pq.read_table("plan.parquet")
        head: dict[str, Any] = json.loads(table.schema.metadata[store.METADATA_KEY])
        for config in head["groups"]:
            del config["guidance_rescale"], config["upscaler"], config["task"]  # keys that came later
        old = head | {"version": 1, "plan_id": "0123456789abcdef"}
        pq.write_table(table.replace_schema_metadata({store.METADATA_KEY: json.dumps(old).encode()}), "old.parquet")
        assert PlanFile(Path("old.parquet")).plan_id == found.plan_id
        assert [replace(cell, config="") for cell in PlanFile(Path("old.parquet")).shard(1)] == [
            replace(cell, config="") for cell in PlanFile(Path("plan.parquet")).shard(1)
        ]

    def test_sets_that_share_their_values_have_different_plan_ids(self) -> None:
        """Ids are sums, so that (a1, b2) and (a2, b1) add up to what (a1, b1) and (a2, b2) do."""
        straight, crossed = (plan_of(f"matrix.zip={{seed:[1,2],prompt:{prompts}}}") for prompts in ("[a,b]", "[b,a]"))
        assert straight.plan_id != crossed.plan_id

    def test_a_hundred_million_cells_are_looked_at_without_being_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def none(cells: int, slices: object) -> list[Any]:
            return []

        monkeypatch.setattr(plan, "find_repeated", none)  # which takes half a minute
        found = plan_of("seed=range(0,100000)", "steps=range(1,501)", "lora=red,blue")
        assert len(found) == 100_000_000
        assert found.recipe_cells[1].tolist() == [50_000_000, 50_000_000]
        cell = found.cell(99_999_999)
        assert (cell.seed, cell.steps, cell.recipe.loras[0].name) == (99_999, 500, "blue")
        assert found.slice(99_999_999, 100_000_000).shard.tolist() == [found.shards - 1]

    def test_more_than_anybody_makes_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"2e\+11 images are more than can be made \(1000000 of seed x 200000 of steps\)"):
            plan_of("seed=range(0,1000000)", "steps=range(1,200001)")
