"""Workers side by side in one folder: the same images and rows whatever happens to them, packed or not."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sdbatch.cell import Cell, Recipe
from sdbatch.config.arguments import read_arguments
from sdbatch.errors import DeviceError, WeightFileError
from sdbatch.pipeline.rehearsal import RehearsalEngine
from sdbatch.plan.store import PlanFile
from sdbatch.results.block import ImageReader
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import committed, load_rows
from sdbatch.results.schema import SCHEMA, VOLATILE
from sdbatch.results.verify import verify
from sdbatch.run import worker
from sdbatch.run.batch import block_cells, cut_blocks
from sdbatch.run.claim import Claims
from sdbatch.run.device import Place
from sdbatch.run.message import Reporter
from sdbatch.run.prepare import prepare
from sdbatch.run.progress import iter_failures, measure
from sdbatch.run.roster import clear, remove
from sdbatch.run.settle import settle, take_up
from sdbatch.run.worker import Worker
from tests.conftest import BASE
from tests.results.samples import make_cell

REHEARSAL = (*BASE, "engine=rehearsal", "tracking=none", "output.grid=false", "width=16", "height=16", "steps=2", "-m")
FORMATS = ["files", "webdataset", "parquet"]


@pytest.fixture
def begin(workspace: Path) -> Callable[..., SweepFolder]:
    """Plan a sweep and begin its folder, as a driver does before it starts workers."""

    def plan(name: str, *arguments: str) -> SweepFolder:
        job = prepare(read_arguments([*REHEARSAL, *arguments, f"out={name}"]))
        folder = SweepFolder(workspace / name)
        folder.create()
        settle(folder, job, take_up(folder))
        clear(folder.claims)
        return folder

    return plan


def run_workers(folder: SweepFolder, workers: int) -> None:
    places = [Place(index, workers) for index in range(workers)]
    threads = [threading.Thread(target=Worker(folder, place, Reporter(io.StringIO())).run) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def content(folder: SweepFolder) -> list[dict[str, Any]]:
    """Rows without what differs from making to making, and their images' bytes."""
    stable = [name for name in SCHEMA.names if name not in (*VOLATILE, "image", "image_offset", "image_bytes", "sweep")]
    reader = ImageReader(folder)
    rows = load_rows(folder).sort_by("image_id").to_pylist()
    return [{name: row[name] for name in stable} | {"png": row["image"] and reader.read(row)} for row in rows]


@pytest.mark.parametrize("form", FORMATS)
def test_any_number_of_workers_makes_the_same(begin: Callable[..., SweepFolder], form: str) -> None:
    sweep = ("lora=red,blue", "seed=range(0,70)", "batch_size=8", f"output={'default' if form == 'files' else form}")
    alone, crowd = begin("alone", *sweep), begin("crowd", *sweep)
    run_workers(alone, 1)
    run_workers(crowd, 5)
    assert len(content(alone)) == 140 and content(alone) == content(crowd)
    for folder in (alone, crowd):
        assert verify(folder, full=True).is_sound
        assert len(list(folder.images.rglob("*.png"))) == (140 if form == "files" else 0)
        assert load_rows(folder, ["worker"]).num_rows == len(committed(folder).done) == 140


@pytest.mark.parametrize("form", FORMATS)
def test_a_worker_that_was_taken_for_dead_leaves_its_shard_and_nothing_is_there_twice(
    begin: Callable[..., SweepFolder], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin("sweep", "seed=range(0,64)", "batch_size=4", f"output={'default' if form == 'files' else form}")
    whole = begin("whole", "seed=range(0,64)", "batch_size=4")
    run_workers(whole, 1)
    thief = Worker(folder, Place(1, 2), Reporter(io.StringIO()))
    real: Callable[..., Any] = vars(Worker)["_start"]
    started: list[int] = []

    def stolen(self: Worker, engine: object, cells: list[Cell]) -> object:
        started.append(len(cells))
        if len(started) == 3:
            # It sleeps for so long that another takes its shard over and makes it.
            next(folder.claims.glob("*/000000")).unlink()
            thief.run()
            self.claims.beat()
        return real(self, engine, cells)

    sleeper = Worker(folder, Place(0, 2), Reporter(io.StringIO()))
    monkeypatch.setattr(sleeper, "_start", partial(stolen, sleeper))
    assert sleeper.run() == 0
    assert len(started) == 3, "it made the batch it had begun, and no more of what was not its own"
    assert [row | {"png": 0} for row in content(folder)] == [row | {"png": 0} for row in content(whole)]
    assert measure(folder, full=True).repeated == 0 and verify(folder, full=True).is_sound


def test_a_worker_that_waits_while_another_sweep_begins_in_the_folder_touches_none_of_its_shards(
    begin: Callable[..., SweepFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin("sweep", "seed=range(0,8)")
    Claims(folder.claims, "worker-1").take(0)
    next(folder.claims.glob("*/000000")).write_text("worker-1\nelsewhere/1/1 7 1\n")
    worker = Worker(folder, Place(0, 2), Reporter(io.StringIO()))

    def sleep(seconds: float) -> None:
        remove(folder.claims)
        begin("sweep", "seed=range(8,16)")

    monkeypatch.setattr(worker.stop, "wait", sleep)
    assert worker.run() == 0
    assert not folder.parts() and not list(folder.claims.glob("*/*"))


@pytest.mark.parametrize(
    "error", [WeightFileError("blue.safetensors is cut short"), ValueError("no such layer\nat all")], ids=["ours", "another"]
)
def test_weights_that_cannot_be_loaded_fail_their_cells_with_the_reason_and_no_others(
    begin: Callable[..., SweepFolder], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    honest = RehearsalEngine.prepare

    def prepare(self: RehearsalEngine, recipe: Recipe) -> None:
        if [lora.name for lora in recipe.loras] == ["blue"]:
            raise error
        honest(self, recipe)

    monkeypatch.setattr(RehearsalEngine, "prepare", prepare)
    folder = begin("sweep", "lora=red,blue", "seed=range(0,8)", "batch_size=4")
    run_workers(folder, 2)
    rows = load_rows(folder, ["loras", "status", "error"]).to_pylist()
    found = {(row["loras"][0]["name"], row["status"], row["error"]) for row in rows}
    said = str(error) if isinstance(error, WeightFileError) else "ValueError: no such layer"
    assert len(rows) == 16 and found == {("red", "ok", None), ("blue", "failed", said)}


def test_blocks_are_cut_by_the_plan_alone() -> None:
    cells = [make_cell(seed) for seed in range(50)]
    whole = cut_blocks(cells, 8, 16, ())
    assert [(batch.block, len(batch.cells), batch.is_last) for batch in whole] == [
        (0, 8, False), (0, 8, True), (1, 8, False), (1, 8, True), (2, 8, False), (2, 8, True), (3, 2, True)
    ]  # fmt: skip
    done = {cell.image_id for batch in whole[1:5] for cell in batch.cells} - {whole[2].cells[3].image_id}
    rest = cut_blocks(cells, 8, 16, done)
    assert rest == [replace(whole[0], is_last=True), replace(whole[2], is_last=True), whole[5], whole[6]]
    assert (block_cells(100, "files"), block_cells(100, "parquet"), block_cells(10_001, "files")) == (1, 64, 64)


def test_progress_is_counted_from_the_folder_alone(begin: Callable[..., SweepFolder]) -> None:
    folder = begin("sweep", "lora=red,blue", "prompt=a fox,drill:fail,drill:nan", "seed=range(0,4)", "batch_size=4")
    nothing = measure(folder)
    assert (nothing.counts["left"], nothing.left, nothing.images_per_s, nothing.eta_s) == (24, 24, None, None)
    run_workers(folder, 2)
    Claims(folder.claims, "worker-9").take(99)
    found = measure(folder)
    assert found.counts == {"ok": 8, "failed": 8, "nan": 8, "flat": 0, "lost": 0, "left": 0} and found.busy == ["worker-9"]
    assert found.images_per_s is None, "who is at work has made none"
    for shard, name in enumerate(found.index.paces, 97):
        Claims(folder.claims, name).take(shard)
    paces = [pace.images_per_s() or 0 for pace in found.index.paces.values()]
    assert measure(folder).images_per_s == sum(paces) > 0
    assert sum(made.ok for made in found.workers.values()) == 8 and sum(made.faulty for made in found.workers.values()) == 16
    assert sorted(found.recipes.values()) == [(12, 4), (12, 4)]
    failures = list(iter_failures(folder, found.index))
    assert len(failures) == 16 and sum("the drill says that this cell fails" in line for line in failures) == 8
    next(folder.images.glob("*.png")).unlink()
    assert measure(folder).counts["lost"] == 1 and measure(folder).left == 1


def test_progress_of_a_large_sweep_looks_at_images_only_when_asked(
    begin: Callable[..., SweepFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin("sweep", "seed=range(0,4)")
    run_workers(folder, 1)
    next(folder.images.glob("*.png")).unlink()
    monkeypatch.setattr("sdbatch.run.progress.FLAT_LIMIT", 3)
    assert (measure(folder).looked, measure(folder).counts["ok"]) == (False, 4)
    assert (measure(folder, full=True).looked, measure(folder, full=True).counts["lost"]) == (True, 1)


@pytest.mark.parametrize("form", FORMATS)
def test_a_folder_that_sweep_after_sweep_uses_does_not_fill_up(
    begin: Callable[..., SweepFolder], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr("sdbatch.results.folder.FLAT_LIMIT", 10)
    for first in (0, 8, 8, 16):
        folder = begin("sweep", f"output={'default' if form == 'files' else form}", f"seed=range({first},{first + 8})", "batch_size=1")
        run_workers(folder, 1)
        assert measure(folder).counts["ok"] == 8
    assert len(committed(folder).done) == 24 and verify(folder, full=True).is_sound
    entries = {above: len(folders) + len(names) for above, folders, names in os.walk(folder.path)}
    assert {name: count for name, count in entries.items() if count > 17} == {}


def test_keys_of_the_plan_are_its_cells(begin: Callable[..., SweepFolder]) -> None:
    plan = PlanFile(begin("sweep", "lora=red,blue", "seed=range(0,40)").plan)
    ids, shards, recipes = next(plan.iter_keys())
    assert len(ids) == 80 and shards.tolist() == sorted(shards.tolist()) and set(recipes.tolist()) == {0, 1}
    assert plan.shard_recipes().tolist() == [0, 0, 1, 1]


def test_a_device_that_cannot_be_used_fails_no_cell(begin: Callable[..., SweepFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, heard = begin("sweep", "seed=range(0,4)"), io.StringIO()

    def refuse(*asked: object) -> None:
        raise DeviceError("memory.device=cuda: torch finds no GPU.")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "build_engine", refuse)
        assert Worker(folder, Place(), Reporter(heard)).run() == 1
    assert "torch finds no GPU" in heard.getvalue()
    assert not list(folder.rows.iterdir())
    assert Worker(folder, Place(), Reporter(heard)).run() == 0
    assert len(committed(folder).done) == 4
