from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sdbatch.grid import font
from sdbatch.grid.axes import Axes, Axis, choose_axes, find_shared
from sdbatch.grid.draw import Loader, draw_entries, place_entries, summarize
from sdbatch.grid.entry import Entry, read_entries, to_value
from sdbatch.grid.font import elide, text_width, wrap
from sdbatch.grid.footer import set_footer
from sdbatch.grid.layout import Shelf, Style, measure
from sdbatch.grid.page import Page
from sdbatch.results.schema import FAILED, FLAT
from tests.grid.conftest import Colour, cross, make_row, make_table, painter

RED, GREEN, BLUE = (200, 30, 40), (20, 160, 60), (40, 60, 210)
COLOURS: list[Colour] = [RED, GREEN, BLUE, (230, 190, 20), (120, 20, 130), (20, 150, 170)]
RED_INK = (164, 54, 42)


def where(picture: Image.Image, colour: Colour) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of a colour, None when it is nowhere."""
    found = np.argwhere((np.asarray(picture) == colour).all(axis=2))
    if not len(found):
        return None
    (top, left), (bottom, right) = found.min(axis=0), found.max(axis=0)
    return left, top, right + 1, bottom + 1


def one(pages: list[Image.Image]) -> Image.Image:
    assert len(pages) == 1
    return pages[0]


def draw_grid(table: Any, axes: Axes, load: Loader, style: Style | None = None, title: str = "") -> list[Image.Image]:
    return draw_entries(read_entries(table), axes, load, style or Style(), title)


def test_every_image_lands_in_its_column_and_row() -> None:
    weights, seeds = [0.0, 0.5, 1.0], [7, 3]
    colours = dict(zip(itertools.product(weights, sorted(seeds)), COLOURS, strict=True))
    table = make_table(*cross(lora_a=weights, seed=seeds))
    picture = one(draw_grid(table, choose_axes(read_entries(table)), painter(colours, "lora.a.weight", "seed")))
    boxes = {key: where(picture, colour) for key, colour in colours.items()}
    lefts = [boxes[weight, 3][0] for weight in weights]  # type: ignore[index]
    tops = [boxes[0.0, seed][1] for seed in (3, 7)]  # type: ignore[index]
    assert lefts == sorted(set(lefts))
    assert tops == sorted(set(tops))
    for (weight, seed), box in boxes.items():
        left, top = lefts[weights.index(weight)], tops[[3, 7].index(seed)]
        assert box == (left, top, left + 160, top + 160), "enlarged to the least size of a cell, at its place"


def test_sections_stand_side_by_side_as_far_as_they_fit() -> None:
    table = make_table(*cross(lora_a=[0.0, 1.0], prompt=["a fox", "a cup"], seed=[1, 2]))
    axes = choose_axes(read_entries(table), x="lora.a.weight", y="seed", z="prompt")
    colours = {("a fox", 1, 1.0): RED, ("a cup", 1, 1.0): BLUE}
    paint = painter(colours, "prompt", "seed", "lora.a.weight")
    beside = one(draw_grid(table, axes, paint))
    fox, cup = where(beside, RED), where(beside, BLUE)
    assert fox is not None
    assert cup is not None
    assert fox[1] == cup[1]
    assert fox[0] < cup[0]
    picture = one(draw_grid(table, axes, paint, Style(line_px=600)))
    fox, cup = where(picture, RED), where(picture, BLUE)
    assert fox is not None
    assert cup is not None
    assert fox[0] == cup[0]
    assert cup[1] > fox[3] + 160


def hatching_at(picture: Image.Image, box: tuple[float, float, float, float]) -> npt.NDArray[np.uint8]:
    return np.asarray(picture.crop(box))


def test_missing_and_failed_cells_are_marked_each_in_its_way() -> None:
    rows = cross(seed=[1, 2, 3, 4], steps=[8])
    rows[1] |= {"status": FAILED, "error": "out of memory", "image": None}
    missing = rows.pop(2)
    assert missing["seed"] == 3
    rows.append(make_row({"seed": 3, "steps": 9}))
    table = make_table(*rows)
    axes = choose_axes(read_entries(table), x="seed", y="steps")
    colours = {(1, 8): RED, (4, 8): GREEN, (3, 9): BLUE}
    picture = one(draw_grid(table, axes, painter(colours, "seed", "steps")))
    first, last = where(picture, RED), where(picture, GREEN)
    assert first is not None
    assert last is not None
    step = (last[0] - first[0]) / 3
    failed, absent = (hatching_at(picture, (first[0] + n * step, first[1], first[0] + n * step + 160, first[3])) for n in (1, 2))
    assert (failed == RED_INK).all(axis=2).any(), "the reason is written in red"
    assert failed[..., 0].mean() > failed[..., 1].mean() + 5, "on a reddish ground"
    assert not (absent == RED_INK).all(axis=2).any()
    assert abs(float(absent[..., 0].mean()) - float(absent[..., 1].mean())) < 3, "missing is grey"
    assert len(np.unique(absent.reshape(-1, 3), axis=0)) > 2, "and hatched"
    told = summarize(place_entries(read_entries(table), axes), table.num_rows, axes, 1)
    assert told == "2 images, 1 not on this machine, 1 failed, 4 missing"


def test_a_flat_image_counts_as_failed() -> None:
    (entry,) = read_entries(make_table(make_row({}, status=FLAT, error="the image is one single colour")))
    assert entry.failed
    assert entry.error == "the image is one single colour"


def test_a_good_image_wins_over_a_failed_one_of_the_same_place() -> None:
    rows = [make_row({"seed": 1}, status=FAILED, error="x", image_id="0"), make_row({"seed": 1}, image_id="1")]
    entries = read_entries(make_table(*rows))
    assert [entry.image_id for entry in place_entries(entries, choose_axes(entries, x="seed")).values()] == ["1"]


def test_what_is_held_shows_its_first_value() -> None:
    entries = read_entries(make_table(*cross(lora_a=[0.0, 0.5], steps=[4, 8, 12], seed=list(range(16)))))
    placed = place_entries(entries, choose_axes(entries))
    assert len(placed) == 6
    assert {entry.values["seed"] for entry in placed.values()} == {0}


@pytest.mark.parametrize(
    ("size", "cell"),
    [((64, 64), (160, 160)), ((128, 192), (160, 240)), ((300, 200), (300, 200)), ((1024, 512), (512, 256)), ((2048, 2048), (512, 512))],
)
def test_cells_have_a_least_and_a_largest_size(size: tuple[int, int], cell: tuple[int, int]) -> None:
    table = make_table(make_row({"seed": 1}, width=size[0], height=size[1]))
    box = where(one(draw_grid(table, choose_axes(read_entries(table)), painter({(1,): RED}, "seed", size=size))), RED)
    assert box is not None
    assert (box[2] - box[0], box[3] - box[1]) == cell


def test_images_of_other_shapes_keep_theirs() -> None:
    table = make_table(make_row({"seed": 1}, width=200, height=200))
    box = where(one(draw_grid(table, choose_axes(read_entries(table)), painter({(1,): RED}, "seed", size=(100, 200)))), RED)
    assert box is not None
    assert (box[2] - box[0], box[3] - box[1]) == (100, 200)


def test_nearest_keeps_pixels() -> None:
    table = make_table(make_row({"seed": 1}, width=2, height=2))

    def load(_: Entry) -> Image.Image:
        return Image.fromarray(np.array([[RED, GREEN], [GREEN, RED]], np.uint8))

    axes = choose_axes(read_entries(table))
    sharp, soft = (one(draw_grid(table, axes, load, Style(resample=name))) for name in ("nearest", "lanczos"))
    assert (np.asarray(sharp) == RED).all(axis=2).sum() == 2 * 80 * 80
    assert (np.asarray(soft) == RED).all(axis=2).sum() < 2 * 80 * 80


def blank(entry: Entry) -> Image.Image | None:
    size = (entry.values["width"], entry.values["height"])
    assert isinstance(size[0], int)
    assert isinstance(size[1], int)
    return Image.new("RGB", (size[0], size[1]), RED)


@pytest.mark.parametrize("axes", [{"seed": list(range(40))}, {"steps": list(range(1, 41)), "seed": list(range(40))}])
def test_large_grids_shrink_and_then_become_pages_under_the_limit(axes: dict[str, list[int]]) -> None:
    style = Style(max_page_px=1_500_000, max_pages=99)
    table = make_table(*cross(**axes))
    drawn: list[str] = []

    def count(entry: Entry) -> Image.Image | None:
        drawn.append(entry.image_id)
        return blank(entry)

    pages = draw_grid(table, choose_axes(read_entries(table)), count, style, title="big")
    assert max(page.width * page.height for page in pages) <= style.max_page_px * 1.25
    assert sorted(drawn) == sorted(table["image_id"].to_pylist()), "every image once"
    assert len(pages) > (1 if "steps" in axes else 0)


def test_more_pages_than_wanted_are_told_not_drawn() -> None:
    table = make_table(*cross(steps=list(range(1, 31)), seed=list(range(30))))
    loads: list[str] = []

    def count(entry: Entry) -> Image.Image | None:
        loads.append(entry.image_id)
        return blank(entry)

    pages = draw_grid(table, choose_axes(read_entries(table)), count, Style(max_page_px=1_500_000, max_pages=2))
    assert len(pages) == 2
    assert len(loads) < 900


def test_large_cells_shrink_before_there_are_pages() -> None:
    table = make_table(*[row | {"width": 512, "height": 512} for row in cross(steps=[1, 2, 3, 4], seed=[1, 2, 3, 4])])
    axes = choose_axes(read_entries(table))
    assert one(draw_grid(table, axes, blank)).width > 4 * 512
    small = one(draw_grid(table, axes, blank, Style(max_page_px=1_500_000)))
    assert small.width * small.height < 1_900_000


def test_drawing_is_pure() -> None:
    table = make_table(*cross(lora_a=[0.0, 1.0], seed=[1, 2]))
    axes = choose_axes(read_entries(table))
    first, second = (one(draw_grid(table, axes, blank, title="t")) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_long_prompts_of_any_script_fit() -> None:
    prompts = ["word " * 200, "x" * 500, "épée Ω Ж 日本語 🐉\n\x00", ""]
    table = make_table(*cross(prompt=prompts, seed=[1, 2]))
    entries = read_entries(table)
    loader: Loader = blank
    for place in ("x", "y", "z"):
        other = {"x": "y", "y": "x", "z": "x"}[place]
        axes = choose_axes(entries, **{place: "prompt", other: "seed"})
        picture = one(draw_grid(table, axes, loader, title="long " * 50))
        assert picture.width < 4000
    for line in wrap(prompts[0], 14, 200, 4):
        assert text_width(line, 14) <= 200
    assert len(wrap(prompts[0], 14, 200, 4)) == 4
    assert wrap(prompts[0], 14, 200, 4)[-1].endswith("…")
    assert wrap(prompts[3], 14, 200, 4) == [""]
    assert elide("short", 14, 200) == "short"


def test_values_read_well() -> None:
    assert to_value(["style_a", "style_b"]) == "style_a + style_b"
    assert to_value([]) == "none"
    (entry,) = read_entries(make_table(make_row({"lora": "[style_a,style_b]", "prompt": "[a [b]]", "vae": "[]"})))
    assert [entry.values[key] for key in entry.axes] == ["style_a + style_b", "[a [b]]", "none"]
    assert to_value(0.30000001192092896) == 0.3
    assert to_value({"b": 1, "a": [2]}) == '{"a": [2], "b": 1}'


def test_headers_tell_what_differs_and_the_footer_what_long_prompts_share() -> None:
    head, tail = "masterpiece, best quality, a portrait of a", "standing in a field of flowers"
    prompts = [f"{head} {what} {tail}" for what in ("red fox", "blue fox", "owl")]
    axes = choose_axes(read_entries(make_table(*cross(prompt=prompts, seed=[1, 2]))))
    assert axes.y is not None
    assert [axes.y.label(value) for value in axes.y.values] == ["… red fox …", "… blue fox …", "… owl …"]
    short = choose_axes(read_entries(make_table(*cross(prompt=["a red fox", "a blue fox"], seed=[1, 2]))))
    assert short.y is not None
    assert [short.y.label(value) for value in short.y.values] == ["a red fox", "a blue fox"]
    measures = measure(axes, (128, 128), Style())
    told = " ".join(piece.text for piece in set_footer(axes, "", 2000, measures).pieces)
    assert f"{head} … {tail}" in told


@pytest.mark.parametrize(
    ("values", "shared"),
    [
        ((f"{'so it goes ' * 3}on", f"{'so it goes ' * 3}on and on"), ("so it goes so it goes so it goes on ", "")),
        (("alike in every single word of it",) * 2, ("alike in every single word of it ", "")),
        (("one", None), ("", "")),
        (("x" * 99 + "a", "x" * 99 + "b"), ("", "")),
    ],
)
def test_what_is_shared_is_whole_words(values: tuple[str | None, ...], shared: tuple[str, str]) -> None:
    assert find_shared(values) == shared
    axis = Axis("prompt", values, *shared)
    assert all("  " not in axis.label(value) for value in values)


@pytest.fixture
def plain_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that has no font for Chinese, and no fontconfig to ask."""
    monkeypatch.setattr(font, "WIDE_COVERAGE", ())
    monkeypatch.setenv("PATH", "")
    for cached in (font._wide_fonts, font._font_file, font._ask_fontconfig):
        cached.cache_clear()
    yield
    for cached in (font._wide_fonts, font._font_file, font._ask_fontconfig):
        cached.cache_clear()


@pytest.mark.usefixtures("plain_machine")
def test_letters_that_no_font_has_are_written_out_and_the_footer_says_so() -> None:
    assert font.legible("一只 \N{FOX FACE}\ufe0f fox") == "\\u4e00\\u53ea [fox face]\ufe0f fox"
    assert font.legible("Łódź, лиса — 😀") == "Łódź, лиса — 😀", "DejaVu has them"
    assert text_width("只", 20) == text_width("\\u53ea", 20), "boxes would be narrower"
    entries = read_entries(make_table(*cross(prompt=["一", "只"], seed=[1])))
    axes = choose_axes(entries)
    told = draw_grid_summary(entries, axes)
    assert "letters that no font of this machine has are written out" in told
    latin = read_entries(make_table(*cross(prompt=["a", "b"], seed=[1])))
    assert "letters" not in draw_grid_summary(latin, choose_axes(latin))


@pytest.mark.usefixtures("plain_machine")
def test_fontconfig_is_asked_for_letters_that_the_usual_fonts_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = font._wide_fonts()[-1].replace("DejaVuSans.ttf", "DejaVuSansMono.ttf")
    (tmp_path / "fc-list").write_text(f"#!/bin/sh\necho /gone.ttf\necho {other}\n")
    (tmp_path / "fc-list").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def has(file: str, letter: str) -> bool:
        return letter.isascii() or file == other

    monkeypatch.setattr(font, "_has", has)
    assert font._font_file("只 fox") == other
    assert font.legible("只 fox") == "只 fox"


def draw_grid_summary(entries: Sequence[Entry], axes: Axes) -> str:
    """What stands in the last line of the page."""
    told: list[str] = []

    def draw(page: Page, shelves: Sequence[Shelf], title: str, summary: str) -> Image.Image:
        told.append(summary)
        return Image.new("RGB", (1, 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Page, "draw", draw)
        draw_entries(entries, axes, lambda entry: None, Style(), "")
    return told[0]
