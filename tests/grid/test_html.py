from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdbatch.errors import ConfigError
from sdbatch.grid.axes import choose_axes
from sdbatch.grid.entry import Entry, read_entries
from sdbatch.grid.html import render_page
from sdbatch.grid.layout import Style
from sdbatch.grid.save import Wish, save_grid
from sdbatch.results.row import Row
from sdbatch.results.schema import FAILED
from tests.grid.conftest import cross, make_row, make_table

EVIL = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!-- <script>",
    "javascript:alert(1)",
    "a & b < c > d ' \" ` $policy ${data} \u2028",
]


class Reader(HTMLParser):
    """Collects the elements and texts of a page, as a browser would see them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = f"{tag}#{dict(attrs).get('id', '')}"

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._inside, []).append(data)

    def text(self, name: str) -> str:
        return "".join(self.texts[name])


def page_of(rows: list[Row], folder: Path, title: str = "t") -> tuple[str, Reader]:
    def locate(entry: Entry) -> Path | None:
        return folder / entry.image if entry.image else None

    entries = read_entries(make_table(*rows))
    text = render_page(entries, choose_axes(entries), locate, folder / "grid.html", title)
    reader = Reader()
    reader.feed(text)
    return text, reader


def data_of(reader: Reader) -> dict[str, Any]:
    return json.loads(reader.text("script#data"))


def test_prompts_are_text_and_never_markup(tmp_path: Path) -> None:
    rows = cross(prompt=EVIL, seed=[1, 2])
    rows[0] |= {"status": FAILED, "error": EVIL[0]}
    _, reader = page_of(rows, tmp_path, title=EVIL[1])
    _, harmless = page_of(cross(prompt=["a", "b", "c", "d", "e"], seed=[1, 2]), tmp_path)
    assert [tag for tag, _ in reader.tags] == [tag for tag, _ in harmless.tags], "the same elements whatever the prompts say"
    assert reader.text("h1#").strip() == EVIL[1]
    prompts = next(key["values"] for key in data_of(reader)["keys"] if key["name"] == "prompt")
    assert prompts == EVIL
    assert data_of(reader)["cells"][0]["error"] == EVIL[0]


def test_nothing_runs_but_the_pages_own_script(tmp_path: Path) -> None:
    text, reader = page_of(cross(prompt=EVIL, seed=[1, 2]), tmp_path)
    policy = next(attrs["content"] for tag, attrs in reader.tags if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    script, style = re.findall(r"<script>(.*?)</script>", text, re.DOTALL), re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert len(script) == len(style) == 1
    for kind, content in (("script", script[0]), ("style", style[0])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for _, attrs in reader.tags:
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
        assert not attrs.get("src")
        assert not attrs.get("href")
    assert "innerHTML" not in script[0]
    assert "http" not in script[0]


def test_images_are_referred_to_from_the_page(tmp_path: Path) -> None:
    _, reader = page_of([make_row({"seed": 1}, image_id="aa#?% x:y")], tmp_path / "sweep")
    (cell,) = data_of(reader)["cells"]
    assert cell["image"] == "images/aa%23%3F%25%20x%3Ay.png"
    assert cell["command"].startswith("sdbatch replay ")


def test_the_page_knows_what_each_image_is(tmp_path: Path) -> None:
    _, reader = page_of(cross(lora_a=[1.0, 0.5], seed=[2, 1]), tmp_path)
    data = data_of(reader)
    assert data["choice"] == {"x": "lora.a.weight", "y": "seed"}
    names = [key["name"] for key in data["keys"]]
    values = {key["name"]: key["values"] for key in data["keys"]}
    assert values["lora.a.weight"] == ["0.5", "1"]
    first = data["cells"][0]
    assert values["lora.a.weight"][first["values"][names.index("lora.a.weight")]] == "1"
    assert values["seed"][first["values"][names.index("seed")]] == "2"


def find_in(folder: Path) -> Any:
    def find(_image_id: str, image: str) -> Path | None:
        return folder / image if image and (folder / image).is_file() else None

    return find


def test_a_grid_is_saved_over_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = cross(steps=list(range(1, 13)), seed=list(range(12)))
    for row in rows:
        Image.new("RGB", (64, 64), (9, 99, 199)).save(tmp_path / row["image"])
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG")
    rows[0]["image"] = "images/broken.png"
    many = save_grid(make_table(*rows), find_in(tmp_path), tmp_path, Wish(title="t"), Style(max_page_px=1_500_000))
    assert len(many.pictures) > 1
    assert {path.name for path in many.pictures} == {path.name for path in tmp_path.glob("grid*.png")}
    (tmp_path / "grid-mine.png").write_bytes(b"")
    once = save_grid(make_table(*rows), find_in(tmp_path), tmp_path, Wish(x="seed", y="steps"))
    assert [path.name for path in once.pictures] == ["grid.png"]
    assert {path.name for path in tmp_path.glob("grid*")} == {"grid.png", "grid.html", "grid-mine.png"}
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width > 12 * 160


def test_no_rows_no_grid(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no images to compare yet"):
        save_grid(make_table(), find_in(tmp_path), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_image_whose_file_is_gone_is_not_counted(tmp_path: Path) -> None:
    table = make_table(*cross(lora_a=[0.0, 0.5, 1.0], seed=[1]))
    gone, here = table["image_id"][0].as_py(), tmp_path / "here.png"
    Image.new("RGB", (128, 128)).save(here)
    saved = save_grid(table, lambda image_id, image: None if image_id == gone else here, tmp_path)
    assert '<p id="summary">2 images, 1 not on this machine</p>' in saved.page.read_text()
