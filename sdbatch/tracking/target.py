"""Where rows are projected to, and how that place is written down without its secrets."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from sdbatch.errors import SdbatchError

MASK = "***"

_USER = re.compile(r"(://)[^/\s@\"']+@")
_SECRET = re.compile(r"([?&](?:[\w-]*(?:token|password|passwd|secret|key|signature|credential)[\w-]*)=)[^&\s\"']+", re.IGNORECASE)


class TrackingError(SdbatchError):
    """The tracking server or file did not take what was sent. The images are not affected."""


@dataclass(frozen=True, slots=True)
class Target:
    """An experiment of an MLflow tracking server or SQLite file, and how much is sent to it."""

    uri: str
    """Any MLflow tracking URI: `sqlite:////path/mlflow.db`, `http://host:5000`, `databricks`, ..."""
    experiment: str = "sdbatch"
    most_groups: int = 200
    """Up to so many groups of a sweep get a child run each; above, the sweep has one run and the table."""
    samples: int = 4
    """Images per child run that are sent as artifacts."""
    timeout_s: int = 5
    """How long one request to a server may take."""
    deadline_s: float | None = None
    """How long a whole projection may take; what is left is sent by the next one. None: as long as requests succeed."""

    @property
    def name(self) -> str:
        """The URI without secrets: the only form in which it is ever shown or written."""
        return redact(self.uri)

    @property
    def sqlite_file(self) -> Path | None:
        """The file of an SQLite store, None for any other."""
        prefix, _, path = self.uri.partition(":///")
        return Path(unquote(path.partition("?")[0])).absolute() if prefix.startswith("sqlite") and path else None

    @property
    def viewer(self) -> str:
        """How a person looks at it: the command for an SQLite file, the address of a server."""
        file = self.sqlite_file
        if file is None:
            return self.name
        path = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
        return f"mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{path}')}"

    @property
    def is_server(self) -> bool:
        """Whether requests go over HTTP."""
        return self.uri.startswith(("http://", "https://"))


def default_uri(folder: Path) -> str:
    """One SQLite file beside all sweeps, `outputs/mlflow.db`, so that sweeps can be compared with each other."""
    return f"sqlite:///{folder.absolute().parent / 'mlflow.db'}"


def redact(text: str) -> str:
    """Any text with the credentials inside its URLs masked: `https://user:pw@host` becomes `https://***@host`."""
    return _SECRET.sub(rf"\g<1>{MASK}", _USER.sub(rf"\g<1>{MASK}@", text))
