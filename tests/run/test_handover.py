"""A batch that a GPU decodes beside the next one is with the writer before that one ends, so that a kill costs but the next."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sdbatch.cell import Cell
from sdbatch.pipeline.engine import OnStep
from sdbatch.pipeline.rehearsal import RehearsalBatch, RehearsalEngine
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import load_rows
from sdbatch.run import worker
from sdbatch.run.device import Place
from sdbatch.run.worker import Worker
from tests.faults.program import until
from tests.run.test_worker import begin, content, run_workers

__all__ = ["begin"]
ON_GPU = Place(device="cuda")


class Gpu(RehearsalEngine):
    """Its batches end when the one before is `kept`, as when they take long."""

    kept: Callable[[int], bool]

    def __init__(self, device: str, threads: int | None) -> None:
        super().__init__(device, threads)
        self.begun = 0

    def start(self, cells: Sequence[Cell], on_step: OnStep) -> RehearsalBatch:
        before, self.begun = self.begun, self.begun + len(cells)
        until(lambda: self.kept(before))
        return super().start(cells, on_step)


def build(engine: str, device: str, threads: int | None) -> Gpu:
    return Gpu(device, threads)


@pytest.mark.parametrize("form", ["default", "webdataset"])
def test_a_batch_is_kept_before_the_next_one_ends(
    begin: Callable[..., SweepFolder], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    spool = tmp_path / f"sdbatch-{os.getuid()}"
    folder = begin("sweep", "seed=range(0,12)", "batch_size=4", f"output={form}", f"paths.spool={tmp_path}")

    def kept(images: int) -> bool:
        if form == "default":
            return load_rows(folder, ["image_id"]).num_rows >= images
        return len(list(spool.glob("*/*/*.tar"))) * 4 >= images

    monkeypatch.setattr(Gpu, "kept", staticmethod(kept), raising=False)
    monkeypatch.setattr(worker, "build_engine", build)
    assert Worker(folder, ON_GPU).run() == 0
    assert not list(spool.iterdir())
    assert load_rows(folder, ["image_id"]).num_rows == 12


def test_what_fails_in_the_decode_is_seen_to_as_on_the_cpu(begin: Callable[..., SweepFolder]) -> None:
    sweep = ("prompt=a fox,drill:decode,drill:nan,drill:fail,a cat", "seed=0,1", "batch_size=4")
    ours, theirs = begin("ours", *sweep), begin("theirs", *sweep)
    assert Worker(ours, ON_GPU).run() == 0
    run_workers(theirs, 1)
    assert len(content(ours)) == 10
    assert [row | {"device": 0} for row in content(ours)] == [row | {"device": 0} for row in content(theirs)]
