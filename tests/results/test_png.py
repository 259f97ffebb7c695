from __future__ import annotations

import io
import zlib
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, PngImagePlugin

from sdbatch.errors import FolderError
from sdbatch.results.infotext import parse
from sdbatch.results.png import cell_facts, encode, png_of, read_cell, read_texts
from sdbatch.results.row import canonical_json
from tests.results.samples import RECIPE, make_cell, make_picture

IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_pillow_reads_the_pixels_back(pixels: np.ndarray) -> None:
    with Image.open(io.BytesIO(encode(pixels, {"a": "b"}))) as image:
        image.verify()
    with Image.open(io.BytesIO(encode(pixels, {}))) as image:
        assert image.mode == "RGB" and (np.asarray(image) == pixels).all()


def test_a_view_of_a_larger_array_is_encoded_as_it_looks() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode(whole[2:18:2, 5:25, ::-1], {}))) as image:
        assert (np.asarray(image) == whole[2:18:2, 5:25, ::-1]).all()


@pytest.mark.parametrize("prompt", ["a cat", "猫 \u2028 x\nNegative prompt: y", "é" * 4000])
def test_the_cell_is_read_back_and_the_bytes_are_equal_each_time(prompt: str, tmp_path: Path) -> None:
    picture = make_picture(5, prompt=prompt)
    data = png_of(picture.cell, picture.pixels)
    assert data == png_of(make_picture(5, prompt=prompt).cell, picture.pixels.copy())
    path = tmp_path / "x.png"
    path.write_bytes(data)
    assert canonical_json(read_cell(path)) == canonical_json(cell_facts(picture.cell))
    assert read_cell(path)["prompt"] == prompt and read_cell(path)["config"] == picture.cell.config
    assert parse(read_texts(path)["parameters"]).parameters["Seed"] == "5"


def test_the_axes_of_a_sweep_do_not_change_the_bytes() -> None:
    picture = make_picture(5)
    other = make_cell(5, axes=(("other", 1),), image_id=picture.cell.image_id)
    assert png_of(picture.cell, picture.pixels) == png_of(other, picture.pixels)


def test_no_path_of_this_machine_is_in_the_file() -> None:
    picture = make_picture()
    assert b"someone" not in png_of(picture.cell, picture.pixels)


def test_the_image_is_marked_as_machine_made(tmp_path: Path) -> None:
    for engine, kind in (("diffusers", "trainedAlgorithmicMedia"), ("rehearsal", "algorithmicMedia")):
        picture = make_picture(recipe=replace(RECIPE, engine=engine))
        (tmp_path / "x.png").write_bytes(png_of(picture.cell, picture.pixels))
        packet = ElementTree.fromstring(read_texts(tmp_path / "x.png")["XML:com.adobe.xmp"])
        marks = [value for element in packet.iter() for key, value in element.items() if key == f"{{{IPTC}}}DigitalSourceType"]
        assert marks == [f"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"]


def test_files_that_are_not_ours_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    with pytest.raises(FolderError, match="there is no such file"):
        read_cell(path)
    path.write_bytes(b"not an image")
    with pytest.raises(FolderError, match="not a PNG"):
        read_cell(path)
    Image.new("RGB", (2, 2)).save(path)
    with pytest.raises(FolderError, match="holds no record of sdbatch"):
        read_cell(path)
    for text, reason in (("{", "damaged"), ("[]", "damaged"), ('{"schema": 99, "sdbatch": "9.0"}', r"newer sdbatch \(9.0\)")):
        path.write_bytes(encode(np.zeros((2, 2, 3), np.uint8), {"sdbatch": text}))
        with pytest.raises(FolderError, match=reason):
            read_cell(path)


def test_a_bomb_is_not_decoded(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"zTXt", b"sdbatch\0\0" + zlib.compress(b"0" * 50_000_000))
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(FolderError, match="not a PNG that can be read"):
        read_cell(tmp_path / "x.png")
