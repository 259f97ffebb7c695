"""Project the rows of a sweep folder into MLflow: as often as wanted, from wherever the last time ended."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sdbatch.errors import FolderError
from sdbatch.results.folder import SweepFolder
from sdbatch.results.lock import holding
from sdbatch.results.reader import load_rows
from sdbatch.tracking.cursor import Cursor
from sdbatch.tracking.payload import MOST_METRICS, MOST_PARAMS, Payload, chunks, group_payload, planned_images, sweep_payload
from sdbatch.tracking.report import Report
from sdbatch.tracking.store import Store, file_system_notice, open_store
from sdbatch.tracking.table import redacted_text, write_table
from sdbatch.tracking.tally import COLUMNS, Group, Tally, count_rows
from sdbatch.tracking.target import Target, TrackingError

if TYPE_CHECKING:
    from mlflow.entities import Run

LOCK = ".tracking.lock"
"""Held while rows are sent, so that two projections of one sweep do not make two runs."""

FILES = ("plan.parquet", "sweep.json", "config.yaml")
"""Sent as they are, or with credentials masked."""

ROWS = "rows.parquet"
"""All rows in one file: the table of the run."""


def project(folder: Path, target: Target, *, running: bool = False) -> Report:
    """Send what is not there yet: runs, parameters, metrics, sample images and the table.

    Safe to repeat and to kill: nothing is sent twice, and parameters never change. `running` says that the sweep goes
    on, so that its run stays open. A store that is down, slow or refuses is told in the report, not raised: what the
    rows say is not affected.

    Raises: FolderError when there is no sweep in the folder, or another process sends it at this moment.
    """
    sweep = SweepFolder(folder)
    if not sweep.is_sweep:
        raise FolderError(f"{folder}: not a sweep folder (no sweep.json, no plan.parquet). Give the folder that a sweep wrote, its out=.")
    with holding(folder / LOCK):
        tally = count_rows(load_rows(sweep, COLUMNS), target.most_groups, target.samples)
        projection = Projection(sweep, target, tally, running)
        error: str | None = None
        try:
            projection.send()
        except TrackingError as failure:
            error = str(failure)
    return projection.report(error)


def log_files(folder: Path, target: Target, files: Sequence[Path]) -> Report:
    """Add files, such as grids, to the run of a sweep that was projected before.

    Raises: FolderError as `project` does.
    """
    with holding(folder / LOCK):
        projection = Projection(SweepFolder(folder), target, Tally(), running=False)
        error: str | None = None
        try:
            projection.add_files(files)
        except TrackingError as failure:
            error = str(failure)
    return projection.report(error)


@dataclass(slots=True)
class _Known:
    """The runs of a sweep that the store has."""

    parent: Run | None
    children: dict[str, Run]
    """By group id."""


class Projection:
    """One pass over a sweep, in steps that can each be repeated."""

    def __init__(self, sweep: SweepFolder, target: Target, tally: Tally, running: bool) -> None:
        self.sweep, self.target, self.tally, self.running = sweep, target, tally, running
        self.out = str(sweep.path.absolute())
        self.about: Mapping[str, Any] = sweep.read_about()
        self.cursor = Cursor(sweep.path, target)
        self.notices: list[str] = []
        self.runs = 0

    def send(self) -> None:
        """Everything, in the order in which it is wanted: the sweep's run, its groups, then the files.

        Raises: TrackingError; what was sent until then stays sent.
        """
        store = self._open()
        known = self._find(store)
        parent = known.parent or self._create(store, sweep_payload(self.tally, self.about, self.out), self.tally.total)
        run_id = parent.info.run_id
        self.runs = 1
        if self.cursor.sent.run_id != run_id:
            self.cursor.forget()
            self.cursor.sent.run_id = run_id
            self.cursor.save()
        payload = sweep_payload(self.tally, self.about, self.out)
        self._send_payload(store, parent, payload, skip=self._count_sent())
        for group in self.tally.groups.values():
            self._send_group(store, group, known.children.get(group.group_id), run_id)
            self.runs += 1
        self._send_files(store, run_id)
        self._close(store, parent, self.tally.total, planned_images(self.about))
        self.cursor.sent.images = self.tally.images
        self.cursor.save()

    def add_files(self, files: Sequence[Path]) -> None:
        """Send files to the run that is there.

        Raises: TrackingError, also when the sweep has no run yet.
        """
        store = self._open()
        parent = self._find(store).parent
        if parent is None:
            raise TrackingError(f"{self.target.name}: no run of this sweep in experiment {self.target.experiment!r} yet")
        self.cursor.sent.run_id = parent.info.run_id
        self.runs = 1
        for path in files:
            self._send_file(store, parent.info.run_id, path, path.name)
        self.cursor.save()

    def report(self, error: str | None) -> Report:
        """What is there now."""
        sent = self.cursor.sent
        return Report(
            out=str(self.sweep.path),
            uri=self.target.name,
            experiment=self.target.experiment,
            images=self.tally.images,
            sent=min(sent.images, self.tally.images),
            runs=self.runs,
            run_id=sent.run_id,
            error=error,
            notices=tuple(dict.fromkeys(self.notices)),
        )

    def _open(self) -> Store:
        if self.target.sqlite_file is not None and (notice := file_system_notice(self.target.sqlite_file)):
            self.notices.append(notice)
        return open_store(self.target)

    def _find(self, store: Store) -> _Known:
        """The runs of this sweep, by the cursor where it knows them, else by their tags."""
        parent = self._live_run(store, self.cursor.sent.run_id) if self.cursor.sent.run_id else None
        if parent is None:
            quoted = self.out.replace("'", "''")
            named = f"tags.`sdbatch.role` = 'sweep' and tags.`sdbatch.out` = '{quoted}'"
            plan = str(self.about.get("plan_id") or "")
            found = store.find_runs(named + (f" and tags.`sdbatch.plan_id` = '{plan}'" if plan else ""), most=1)
            parent = found[0] if found else None
        if parent is None:
            return _Known(None, {})
        children = store.find_runs(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        return _Known(parent, {run.data.tags.get("sdbatch.group", ""): run for run in children})

    def _live_run(self, store: Store, run_id: str) -> Run | None:
        """The run, or None when the store never had it, lost it, or its owner deleted it there."""
        found = store.find_runs(f"attributes.run_id = '{run_id}'", most=1)
        return found[0] if found else None

    def _create(self, store: Store, payload: Payload, group: Group) -> Run:
        return store.call(
            store.client.create_run, store.experiment_id, start_time=group.first_ms or None, tags=payload.tags, run_name=payload.name
        )

    def _count_sent(self) -> int:
        """Steps of the sweep's own series that are there already."""
        return self.cursor.sent.images if not self.tally.groups else 0

    def _send_group(self, store: Store, group: Group, child: Run | None, parent: str) -> None:
        payload = group_payload(group, self.about, self.out, parent)
        readings = [asdict(reading) for reading in payload.metrics]
        fingerprint = _fingerprint([readings, group.samples, self.running])
        if child is not None and self.cursor.sent.groups.get(group.group_id) == fingerprint:
            return
        run = child or self._create(store, payload, group)
        self._send_payload(store, run, payload, skip=0)
        self._send_samples(store, run.info.run_id, group)
        self._close(store, run, group, None)
        self.cursor.sent.groups[group.group_id] = fingerprint
        self.cursor.save()

    def _send_payload(self, store: Store, run: Run, payload: Payload, skip: int) -> None:
        """Parameters that the run lacks, tags, and the readings from step `skip` on."""
        from mlflow.entities import Metric, Param, RunTag

        there = run.data.params
        for key, value in payload.params.items():
            if there.get(key, value) != value:
                payload.notices.append(
                    f"parameter {key!r} stays {there[key]!r} in MLflow, where parameters cannot change; it is {value!r} now"
                )
        params = [Param(key, value) for key, value in payload.params.items() if key not in there]
        tags = [RunTag(key, value) for key, value in payload.tags.items() if run.data.tags.get(key) != value]
        metrics = [Metric(reading.key, reading.value, reading.time_ms, reading.step) for reading in payload.metrics if reading.step >= skip]
        run_id = run.info.run_id
        for some in chunks(params, MOST_PARAMS):
            store.call(store.client.log_batch, run_id, params=some)
        for some in chunks(tags, MOST_PARAMS):
            store.call(store.client.log_batch, run_id, tags=some)
        for part in chunks(metrics, MOST_METRICS):
            store.call(store.client.log_batch, run_id, metrics=part)
        self.notices += payload.notices

    def _send_samples(self, store: Store, run_id: str, group: Group) -> None:
        for image in group.samples:
            path = self.sweep.path / image
            if path.is_file():
                self._send_file(store, run_id, path, f"samples/{PurePosixPath(image).name}")

    def _send_files(self, store: Store, run_id: str) -> None:
        """The table, the plan, the configuration and the grids."""
        with tempfile.TemporaryDirectory() as scratch:
            self._send_table(store, run_id, Path(scratch))
            for name in FILES:
                path = self.sweep.path / name
                if path.is_file():
                    self._send_file(store, run_id, redacted_text(path, Path(scratch)), name, original=path)
        for path in sorted(self.sweep.path.glob("grid*.png")):
            self._send_file(store, run_id, path, path.name)
        if not self.tally.groups:
            self._send_samples(store, run_id, self.tally.total)

    def _send_table(self, store: Store, run_id: str, scratch: Path) -> None:
        fingerprint = _fingerprint([(part.name, part.stat().st_size, part.stat().st_mtime_ns) for part in self.sweep.parts()])
        if self.cursor.sent.artifacts.get(ROWS) != fingerprint:
            write_table(self.sweep, scratch / ROWS)
            self._send_file(store, run_id, scratch / ROWS, ROWS)
            self.cursor.sent.artifacts[ROWS] = fingerprint

    def _send_file(self, store: Store, run_id: str, path: Path, name: str, original: Path | None = None) -> None:
        """One artifact, unless this very file was sent before."""
        state = (original or path).stat()
        key, fingerprint = f"{run_id}/{name}", _fingerprint([state.st_size, state.st_mtime_ns])
        if self.cursor.sent.artifacts.get(key) == fingerprint:
            return
        parent = PurePosixPath(name).parent
        store.call(store.client.log_artifact, run_id, str(path), None if parent == PurePosixPath() else str(parent))
        self.cursor.sent.artifacts[key] = fingerprint

    def _close(self, store: Store, run: Run, group: Group, planned: int | None) -> None:
        """The run's status: open while the sweep runs, `KILLED` when it stopped before its end."""
        complete = planned is None or group.done + group.failed >= planned
        if self.running:
            status = "RUNNING"
        elif not complete:
            status = "KILLED"
        else:
            status = "FAILED" if group.failed else "FINISHED"
        if status == "RUNNING":
            if run.info.status != status:
                store.call(store.client.update_run, run.info.run_id, status)
        elif run.info.status != status or run.info.end_time != group.last_ms:
            store.call(store.client.set_terminated, run.info.run_id, status, group.last_ms or None)


def _fingerprint(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
