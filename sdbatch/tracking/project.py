"""Project the rows of a sweep folder into MLflow: as often as wanted, from wherever the last time ended."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbatch.errors import FolderError
from sdbatch.results.folder import SweepFolder
from sdbatch.results.lock import holding
from sdbatch.results.reader import load_rows, read_index
from sdbatch.tracking.cursor import Cursor
from sdbatch.tracking.large import LARGE, count_index
from sdbatch.tracking.payload import MOST_METRICS, MOST_PARAMS, Payload, chunks, group_payload, planned_images, sweep_payload
from sdbatch.tracking.report import Report
from sdbatch.tracking.shipment import Shipment, fingerprint
from sdbatch.tracking.store import Store, file_system_notice, open_store, quoted
from sdbatch.tracking.tally import COLUMNS, Group, Tally, count_rows
from sdbatch.tracking.target import Target, TrackingError

if TYPE_CHECKING:
    from mlflow.entities import Run

LOCK = ".tracking.lock"
"""Held while rows are sent, so that two projections of one sweep do not make two runs."""


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
        index = read_index(sweep)
        is_large = max(len(index), planned_images(sweep.read_about()) or 0) > LARGE
        if is_large:
            tally = count_index(sweep, index, target.samples)
        else:
            tally = count_rows(load_rows(sweep, COLUMNS), target.most_groups, target.samples)
        projection = Projection(sweep, target, tally, running, is_large)
        error: str | None = None
        try:
            projection.send()
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

    def __init__(self, sweep: SweepFolder, target: Target, tally: Tally, running: bool, is_large: bool = False) -> None:
        self.sweep, self.target, self.tally, self.running = sweep, target, tally, running
        self.is_large = is_large
        """One run with counts, and no tables."""
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
        shipment = Shipment(store, self.sweep, self.cursor)
        for group in self.tally.groups.values():
            self._send_group(shipment, group, known.children.get(group.group_id), run_id)
            self.runs += 1
        # Of a large sweep that goes on the next time: a server is asked ten times in five minutes at most.
        is_later = self.is_large and self.running and known.parent is None
        if not self.tally.groups and not is_later:
            shipment.send_samples(run_id, self.tally.total.samples)
        shipment.send_files(run_id, with_tables=not self.is_large)
        self._close(store, parent, self.tally.total, planned_images(self.about))
        self.cursor.sent.images = self.tally.images
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
        parent = parent or self._run_by_tags(store)
        if parent is None:
            return _Known(None, {})
        if self.is_large:
            return _Known(parent, {})
        children = store.find_runs(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        return _Known(parent, {run.data.tags.get("sdbatch.group", ""): run for run in children})

    def _live_run(self, store: Store, run_id: str) -> Run | None:
        """The run, or None when the store never had it, lost it, or its owner deleted it there."""
        found = store.find_runs(f"attributes.run_id = '{run_id}'", most=1)
        return found[0] if found else None

    def _run_by_tags(self, store: Store) -> Run | None:
        """The run of this folder: with the same plan, or (the sweep has grown since) from the same machine."""
        folder = "tags.`sdbatch.role` = 'sweep' and tags.`sdbatch.out` = " + quoted(self.out)
        plan = str(self.about.get("plan_id") or "")
        for more in (f"tags.`sdbatch.plan_id` = {quoted(plan)}", f"tags.`sdbatch.host` = {quoted(socket.gethostname())}"):
            if found := store.find_runs(f"{folder} and {more}", most=1):
                return found[0]
        return None

    def _create(self, store: Store, payload: Payload, group: Group) -> Run:
        return store.call(
            store.client.create_run, store.experiment_id, start_time=group.first_ms or None, tags=payload.tags, run_name=payload.name
        )

    def _count_sent(self) -> int:
        """Steps of the sweep's own series that are there already."""
        return self.cursor.sent.images if not self.tally.groups else 0

    def _send_group(self, shipment: Shipment, group: Group, child: Run | None, parent: str) -> None:
        payload = group_payload(group, self.about, self.out, parent)
        readings = [asdict(reading) for reading in payload.metrics]
        state = fingerprint([readings, [sample.name for sample in group.samples], self.running])
        if child is not None and self.cursor.sent.groups.get(group.group_id) == state:
            return
        run = child or self._create(shipment.store, payload, group)
        self._send_payload(shipment.store, run, payload, skip=0)
        shipment.send_samples(run.info.run_id, group.samples)
        self._close(shipment.store, run, group, None)
        self.cursor.sent.groups[group.group_id] = state
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
        parts = zip_longest(chunks(metrics, MOST_METRICS), chunks(params, MOST_PARAMS), chunks(tags, MOST_PARAMS), fillvalue=())
        for some_metrics, some_params, some_tags in parts:
            store.call(store.client.log_batch, run_id, some_metrics, some_params, some_tags)
        self.notices += payload.notices

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
