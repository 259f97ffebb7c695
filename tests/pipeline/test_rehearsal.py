from __future__ import annotations

import numpy as np
import pytest

from sdbatch.cell import Recipe, WeightFile
from sdbatch.errors import ConfigError
from sdbatch.pipeline.build import build_engine
from sdbatch.pipeline.rehearsal import RehearsalEngine, draw_pattern
from tests.pipeline.models import make_cell

RECIPE = Recipe("sd1", "nowhere", WeightFile("none", "nowhere", "0" * 64), engine="rehearsal")


def test_a_pattern_is_the_image_id_s_and_no_flat_one() -> None:
    first, again, other = (draw_pattern(image_id, 64, 48) for image_id in ("a", "a", "b"))
    assert first.shape == (48, 64, 3)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.std() > 5
    assert draw_pattern("c", 1, 1).shape == (1, 1, 3)


def test_the_engine_s_contract() -> None:
    engine = build_engine("rehearsal")
    engine.prepare(RECIPE)
    cells = [make_cell(RECIPE, image_id=str(index)) for index in range(3)]
    beats: list[tuple[int, int]] = []
    pictures = engine.start(cells, lambda done, total: beats.append((done, total))).finish()
    assert beats == [(step, 4) for step in (1, 2, 3, 4)]
    assert [picture.cell for picture in pictures] == cells
    assert all(picture.fault is None for picture in pictures)
    assert [picture.facts["batch_slot"] for picture in pictures] == [0, 1, 2]
    assert engine.auto_batch_size(cells[0]) == 8


def test_a_prompt_asks_for_a_drill() -> None:
    engine = RehearsalEngine()
    cells = [make_cell(RECIPE, image_id=name, prompt=prompt) for name, prompt in (("good", "a fox"), ("bad", "a fox, drill:flat"))]
    good, bad = engine.start(cells, lambda done, total: None).finish()
    assert (good.fault, bad.fault) == (None, "flat")
    assert not bad.pixels.any()
    sticky = make_cell(RECIPE, prompt="drill:sticky")
    for cell in (sticky, cells[0]):
        with pytest.raises(RuntimeError, match="CUDA error: an illegal memory access"):
            engine.start([cell], lambda done, total: None)


def test_unknown_engine() -> None:
    with pytest.raises(ConfigError, match=r"engine: there is no engine 'comfy'"):
        build_engine("comfy")
