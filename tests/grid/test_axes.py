from __future__ import annotations

import random
from typing import Any

import pytest

from sdbatch.errors import ConfigError
from sdbatch.grid.axes import Axes, choose_axes, sort_values
from sdbatch.grid.draw import place_entries
from sdbatch.grid.entry import read_entries
from tests.grid.conftest import cross, make_row, make_table

SEEDS = list(range(16))
PROMPTS = ["a fox", "a cup"]


def chosen(rows: list[dict[str, Any]], **asked: str) -> tuple[str | None, str | None, str | None, list[str]]:
    axes = choose_axes(read_entries(make_table(*rows)), **asked)
    x, y, z = (axis.key if axis else None for axis in (axes.x, axes.y, axes.z))
    return x, y, z, [axis.key for axis in axes.held]


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({"lora_a": [0.0, 0.5, 1.0, 1.5], "seed": SEEDS}, ("lora.a.weight", "seed", None, [])),
        ({"seed": SEEDS, "lora_a": [0.0, 1.0]}, ("lora.a.weight", "seed", None, [])),
        ({"seed": SEEDS}, ("seed", None, None, [])),
        ({"prompt": PROMPTS, "seed": [1, 2, 3]}, ("seed", "prompt", None, [])),
        ({"sampler": ["ddim", "euler", "heun"], "steps": [5, 10]}, ("steps", "sampler", None, [])),
        ({"checkpoint": ["a", "b"], "sampler": ["ddim", "euler", "heun"]}, ("sampler", "checkpoint", None, [])),
        ({"lora_a": [0.0, 0.5, 1.0], "prompt": PROMPTS, "seed": [1, 2]}, ("lora.a.weight", "prompt", "seed", [])),
        ({"lora_a": [0.0, 0.5], "steps": [4, 8, 12], "seed": SEEDS}, ("steps", "lora.a.weight", None, ["seed"])),
        ({"lora_a": [0.0], "seed": [3]}, (None, None, None, [])),
    ],
)
def test_axes_chosen_by_themselves(axes: dict[str, list[Any]], expected: tuple[str | None, str | None, str | None, list[str]]) -> None:
    assert chosen(cross(**axes)) == expected


def zipped(**lists: list[Any]) -> list[dict[str, Any]]:
    return [make_row(dict(zip(lists, values, strict=True))) for values in zip(*lists.values(), strict=True)]


def test_zipped_lists_are_one_axis_with_captions() -> None:
    entries = read_entries(make_table(*zipped(prompt=["a fox", "a cup", "a hat"], seed=[5, 6, 7])))
    axes = choose_axes(entries)
    assert [axis.key for axis in axes.used] == ["prompt"]
    assert (axes.followers, axes.held) == (("seed",), ())


def test_files_are_told_without_the_folder_they_share() -> None:
    files = ["/home/me/pictures/a.png", "/home/me/pictures/more/b.png"]
    rows = zipped(**{"task.image": files, "prompt": ["/imagine a fox", "/imagine a dog"], "seed": [1, 2]})
    entries = read_entries(make_table(*rows))
    assert [entry.values["task.image"] for entry in entries] == ["a.png", "more/b.png"]
    assert [entry.values["prompt"] for entry in entries] == ["/imagine a fox", "/imagine a dog"]


def test_random_draws_are_shown_image_by_image() -> None:
    draws = zipped(steps=[4, 8, 4, 12, 8, 4], sampler=["a", "b", "b", "a", "a", "b"], seed=[11, 12, 13, 14, 15, 16])
    axes = choose_axes(read_entries(make_table(*draws)))
    assert [axis.key for axis in axes.used] == ["seed"]
    assert axes.held == ()
    assert set(axes.followers) == {"steps", "sampler"}


def test_what_fits_no_grid_is_shown_image_by_image() -> None:
    draw = random.Random(0)
    rows = [
        make_row({key: draw.randrange(1, 7) for key in ("steps", "clip_skip", "seed")}, image_id=f"{number:08}") for number in range(12)
    ]
    axes = choose_axes(read_entries(make_table(*rows)))
    assert [axis.key for axis in axes.used] == ["image"]
    assert axes.x is not None
    assert len(axes.x.values) == 12
    assert axes.held == ()
    assert set(axes.followers) == {"steps", "clip_skip", "seed"}


def test_what_is_held_leaves_images() -> None:
    rows = [
        make_row({"lora": lora, "steps": steps, "seed": seed})
        for lora, steps, seed in (("[]", 8, 1), ("[a]", 4, 1), ("[a]", 4, 2), ("[]", 8, 2))
    ]
    entries = read_entries(make_table(*rows))
    axes = choose_axes(entries, x="seed", y="none", z="none")
    assert len(place_entries(entries, axes)) == 2


def test_no_row_is_all_holes() -> None:
    strengths = cross(lora_a=[0.0, 0.5, 1.0], steps=[4, 8])
    others = [make_row({"lora": "[b]", "steps": 20}, loras=[{"name": "b", "sha256": "b" * 64, "weight": 1.0, "text_encoder_weight": 1.0}])]
    for row, sweep in ((strengths, "one"), (others, "two")):
        for each in row:
            each["sweep"] = sweep
    entries = read_entries(make_table(*strengths, *others))
    axes = choose_axes(entries)
    placed = place_entries(entries, axes)
    for number, axis in enumerate((axes.x, axes.y)):
        assert axis is not None
        assert {place[number] for place in placed} == set(axis.values)


def test_the_same_sweep_made_twice_compares_by_sweep() -> None:
    made = cross(lora_a=[0.0, 1.0], seed=[1, 2, 3])
    rows = [row | {"sweep": sweep, "image_id": row["image_id"] + sweep} for sweep in ("old", "new") for row in made]
    axes = choose_axes(read_entries(make_table(*rows)))
    assert [axis.key for axis in axes.used] == ["lora.a.weight", "sweep", "seed"]


def test_a_checkpoint_with_its_own_steps_is_one_axis() -> None:
    rows = [make_row({"checkpoint": name, "steps": steps, "seed": seed}) for name, steps in (("a", 4), ("b", 20)) for seed in (1, 2, 3)]
    axes = choose_axes(read_entries(make_table(*rows)))
    assert [axis.key for axis in axes.used] == ["checkpoint", "seed"]
    assert axes.followers == ("steps",)


def test_what_was_asked_is_done_and_completed() -> None:
    rows = cross(lora_a=[0.0, 1.0], sampler=["ddim", "euler"], seed=[1, 2, 3])
    assert chosen(rows, x="seed") == ("seed", "lora.a.weight", "sampler", [])
    assert chosen(rows, x="seed", y="none", z="none") == ("seed", None, None, ["lora.a.weight", "sampler"])
    assert chosen(rows, x="steps", y="seed", z="none") == ("steps", "seed", None, ["lora.a.weight", "sampler"])


def test_without_declared_axes_what_differs_is_taken_once() -> None:
    rows = [make_row({}, checkpoint=name, family=family, image_id=name) for name, family in (("a", "sd1"), ("b", "tiny"))]
    assert chosen(rows) == ("family", None, None, [])


def test_a_wrong_axis_names_the_nearest_and_what_differs() -> None:
    entries = read_entries(make_table(*cross(lora_a=[0.0, 0.5, 1.0, 1.5], seed=[1, 2])))
    with pytest.raises(ConfigError) as caught:
        choose_axes(entries, x="lora.a.wieght")
    assert str(caught.value) == (
        "grid x=lora.a.wieght: no image has a parameter 'lora.a.wieght'. Did you mean lora.a.weight, lora.a.text_encoder_weight? "
        "Parameters that differ: lora.a.weight (0, 0.5, 1, ... 4 values), seed (1, 2)."
    )


def test_one_parameter_on_two_axes_is_refused() -> None:
    entries = read_entries(make_table(*cross(seed=[1, 2])))
    with pytest.raises(ConfigError, match="x and y are both 'seed'"):
        choose_axes(entries, x="seed", y="seed")


def test_numbers_stand_by_size_and_words_as_planned() -> None:
    assert sort_values([10, 9, 0.5]) == (0.5, 9, 10)
    assert sort_values(["b", "a", "c"]) == ("b", "a", "c")
    assert sort_values([1.0, None, 0.5]) == (None, 0.5, 1.0)
    assert sort_values([1, "x", 0]) == (1, "x", 0)


def test_a_parameter_that_some_images_lack_has_the_value_none() -> None:
    rows = [*cross(seed=[1]), *cross(lora_a=[0.5, 1.0], seed=[1])]
    axes = choose_axes(read_entries(make_table(*rows)))
    assert axes.x is not None
    assert (axes.x.key, axes.x.values) == ("lora.a.weight", (None, 0.5, 1.0))


def test_constants_are_what_all_images_share() -> None:
    axes: Axes = choose_axes(read_entries(make_table(*cross(seed=[1, 2]))))
    assert axes.constants["steps"] == 8
    assert "seed" not in axes.constants
