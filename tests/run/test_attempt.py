"""What is done when an engine fails: halves where memory is short, alone where one fails, a new process where CUDA is broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from sdbatch.cell import Cell, Picture, Recipe, WeightFile
from sdbatch.pipeline.engine import Engine, OnStep, PendingBatch
from sdbatch.pipeline.rehearsal import RehearsalEngine
from sdbatch.results.writer import Failure
from sdbatch.run.attempt import Attempt, is_sticky
from tests.pipeline.models import make_cell

RECIPE = Recipe("sd1", "nowhere", WeightFile("none", "nowhere", "0" * 64), engine="rehearsal")


def cells_of(*prompts: str) -> list[Cell]:
    return [make_cell(RECIPE, image_id=str(number), prompt=prompt) for number, prompt in enumerate(prompts)]


def make(cells: list[Cell], on_oom: str = "halve", engine: Engine | None = None) -> dict[str, str]:
    """Image id -> its batch size, or why it is none."""
    attempt = Attempt(engine or RehearsalEngine(), lambda done, total: None, on_oom)
    made = attempt.finish(attempt.start(cells))
    return {outcome.cell.image_id: outcome.error if isinstance(outcome, Failure) else str(outcome.facts["batch_size"]) for outcome in made}


@pytest.mark.parametrize("drill", ["oom", "decode"])
def test_what_does_not_fit_is_halved_wherever_that_is_found_out(drill: str) -> None:
    cells = cells_of("a fox", f"drill:{drill}", "a cat", "a dog", "an owl", "a hen")
    assert make(cells) == {"0": "1", "1": "1", "2": "1", "3": "3", "4": "3", "5": "3"}
    failed = make(cells, on_oom="fail")
    assert len(failed) == 6 and all(reason.startswith("out of memory with batch size 6: the drill says") for reason in failed.values())


def test_a_cell_that_fails_fails_alone() -> None:
    assert make(cells_of("a fox", "a cat", "drill:fail", "a dog")) == {
        "0": "2", "1": "2", "2": "the drill says that this cell fails", "3": "1"
    }  # fmt: skip


class Clumsy(RehearsalEngine):
    """Cannot decode one of its cells."""

    def start(self, cells: Sequence[Cell], on_step: OnStep) -> Any:
        """As a rehearsal."""
        return ClumsyBatch(list(cells), super().start(cells, on_step))


@dataclass
class ClumsyBatch:
    cells: list[Cell]
    inner: PendingBatch

    def finish(self) -> list[Picture]:
        if any(cell.prompt == "a square of no size" for cell in self.cells):
            raise ValueError("cannot encode this\nwith many details")
        return self.inner.finish()


def test_an_error_in_the_decode_is_one_cell_s_too() -> None:
    made = make(cells_of("a fox", "a cat", "a square of no size", "a dog"), engine=Clumsy())
    assert made == {"0": "2", "1": "2", "2": "ValueError: cannot encode this", "3": "1"}


def test_a_broken_cuda_context_is_no_cell_s_fault() -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"):
        make(cells_of("a fox", "drill:sticky"))


@pytest.mark.parametrize(
    ("said", "sticky"),
    [
        ("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported", True),
        ("CUDA error: unspecified launch failure", True),
        ("CUDA error: device-side assert triggered", True),
        ("CUDA error: out of memory", False),
        ("CUDA out of memory. Tried to allocate 20.00 MiB", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_which_errors_break_the_process(said: str, sticky: bool) -> None:
    assert is_sticky(RuntimeError(said)) is sticky
    assert not is_sticky(ValueError(said))
