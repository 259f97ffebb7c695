"""Open a tracking store: quickly where it answers, with one clear error in a few seconds where it does not."""

from __future__ import annotations

import http.client
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from sdbatch.importing import without, without_collector
from sdbatch.results.disk import TEMPORARY, publish
from sdbatch.tracking.target import Target, TrackingError, redact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_Result = TypeVar("_Result")

SHARED_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "fuse.sshfs", "9p"})
"""SQLite asks that all its users are on one machine; on these its locks may not hold."""

_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Lets the page of the experiment open with its runs, not with the traces of language models."""

_OURS: dict[str, str] = {}
"""Environment variables that this module set; those of the user stay as they are."""

_FOREIGN = re.compile(r"[^\w.-]+")


class Store:
    """An open experiment. All calls go through `call`, which keeps the deadline and turns every failure into TrackingError."""

    def __init__(self, client: MlflowClient, target: Target, experiment_id: str, deadline: float | None) -> None:
        self.client = client
        self.target = target
        self.experiment_id = experiment_id
        self._deadline = deadline

    def call(self, function: Callable[..., _Result], *args: Any, **kwargs: Any) -> _Result:
        """Call a method of the client.

        Raises: TrackingError with the reason and without secrets, also when the time for the projection is over.
        """
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TrackingError(f"{self.target.name}: not finished within {self.target.deadline_s:g} s")
        return guarded(self.target, function, *args, **kwargs)

    def find_runs(self, condition: str, most: int = 50_000) -> list[Run]:
        """The runs of the experiment that meet an MLflow search filter, latest first."""
        found: list[Run] = []
        token: str | None = None
        while len(found) < most:
            page = self.call(
                self.client.search_runs,
                [self.experiment_id],
                condition,
                max_results=min(1000, most - len(found)),
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                break
        return found


def quoted(text: str) -> str:
    """A text in an MLflow search filter, which knows two kinds of quotes and no way to escape them."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def open_store(target: Target) -> Store:
    """Connect, make the SQLite file and the experiment where they are missing.

    Raises: TrackingError when the store does not answer, within `target.timeout_s`.
    Side effects: sets MLflow's own environment variables for short time-outs, unless the user has set them.
    """
    deadline = None if target.deadline_s is None else time.monotonic() + target.deadline_s
    client = connect(target)
    return Store(client, target, guarded(target, _experiment, client, target), deadline)


def connect(target: Target) -> MlflowClient:
    """A client whose server answered a first request.

    Raises: TrackingError.
    """
    if target.is_server:
        check_server(target)
    _set_patience(target.timeout_s)
    # What it has for tables and statistics is not used.
    with without_collector(), without("pandas", "scipy"):
        # Here and not above: importing mlflow takes 1.2 s of CPU, and a server that is down needs none of it.
        from mlflow import MlflowClient

        if target.sqlite_file is not None:
            guarded(target, make_sqlite, target.sqlite_file)
        return guarded(target, MlflowClient, tracking_uri=target.uri, registry_uri=target.uri)


def guarded(target: Target, function: Callable[..., _Result], *args: Any, **kwargs: Any) -> _Result:
    """Call into MLflow; whatever fails in there is told as TrackingError.

    A store may be anything that MLflow has a plugin for, each with exceptions of its own. Hence the wide net: at this
    boundary every failure means the same, that the rows are not sent yet.
    """
    try:
        return function(*args, **kwargs)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(f"{target.name}: {shorten(error)}") from error


def shorten(error: BaseException) -> str:
    """The first line of an error, without secrets, at most 300 characters."""
    lines = redact(str(error)).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"


def check_server(target: Target) -> None:
    """Ask the server whether it is well, before anything is imported or sent.

    Raises: TrackingError when it is not there, does not answer in time, or answers with a server error.
    """
    url = urlsplit(target.uri)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(url.hostname or "", url.port, timeout=target.timeout_s)
        try:
            connection.request("GET", f"{url.path.rstrip('/')}/health")
            status = connection.getresponse().status
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise TrackingError(f"{target.name}: does not answer ({shorten(error)})") from error
    if status >= 500:
        raise TrackingError(f"{target.name}: answers {status}")


def make_sqlite(path: Path) -> None:
    """Make an empty tracking database, unless there is one.

    MLflow's migrations commit about forty times; they run in a temporary file that nobody waits for (no flush to the
    disk), and only the finished database gets the name. So it takes 2 s in place of 6, and a crash leaves no half of one.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    temporary.unlink(missing_ok=True)
    try:
        _migrate(temporary, (path.parent / "mlflow-artifacts").as_uri())
        handle = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def file_system_notice(path: Path, mounts: str | None = None) -> str | None:
    """A warning when an SQLite file lies on a file system shared between machines; `mounts` as in /proc/mounts."""
    if mounts is None:
        table = Path("/proc/mounts")
        mounts = table.read_text(encoding="utf-8", errors="replace") if table.is_file() else ""
    kind, longest = "", -1
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) >= 3 and path.is_relative_to(fields[1].replace("\\040", " ")) and len(fields[1]) > longest:
            kind, longest = fields[2], len(fields[1])
    if kind not in SHARED_FILE_SYSTEMS:
        return None
    return f"{path} lies on {kind}, where SQLite's locks may not hold: track from one machine only, or run a server and set tracking.uri"


def _migrate(path: Path, artifacts: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import Engine, event

    def hurry(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", hurry)
    try:
        SqlAlchemyStore(f"sqlite:///{path}", f"{artifacts}/default").engine.dispose()
    finally:
        event.remove(Engine, "connect", hurry)


def _experiment(client: MlflowClient, target: Target) -> str:
    """Id of the experiment, made where it is missing."""
    known = client.get_experiment_by_name(target.experiment)
    if known is None:
        try:
            return client.create_experiment(target.experiment, _artifact_location(target), _EXPERIMENT_TAGS)
        except Exception:
            # Another process may have made it between the two calls; if not, the reason stands.
            known = client.get_experiment_by_name(target.experiment)
            if known is None:
                raise
    if known.lifecycle_stage == "deleted":
        raise TrackingError(
            f"{target.name}: experiment {target.experiment!r} is deleted there. Restore it (`mlflow experiments restore -x "
            f"{known.experiment_id}`) or choose another with tracking.experiment=."
        )
    return str(known.experiment_id)


def _artifact_location(target: Target) -> str | None:
    """Beside an SQLite file; a server decides for itself."""
    if target.sqlite_file is None:
        return None
    folder = _FOREIGN.sub("_", target.experiment).strip("._") or "experiment"
    return (target.sqlite_file.parent / "mlflow-artifacts" / folder).as_uri()


def _set_patience(timeout_s: int) -> None:
    """MLflow's own defaults wait 120 s and try 7 times: four minutes for a server that is not there."""
    for name, value in (
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", str(timeout_s)),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        ("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1"),
        ("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0"),
        ("MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT", str(timeout_s * 6)),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_LOGGING_LEVEL", "WARNING"),
    ):
        if os.environ.get(name) == _OURS.get(name):
            os.environ[name] = _OURS[name] = value
    # Its retries are told once, in our own error.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
