"""`sdbatch doctor [FOLDER] [--json] [KEY=VALUE ...]`: whether this machine and a folder can hold a sweep.

FOLDER is where sweeps are written (unset: `out` or `paths.outputs` of the configuration); keys are those of a run, such
as `hydra/launcher=slurm`, `tracking.uri=...` or `paths.models=...`. Nothing is left behind.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sdbatch.config.arguments import read_arguments
from sdbatch.doctor.finding import Finding, Level, Site, as_json, as_text, count, fault, ok
from sdbatch.errors import SdbatchError
from sdbatch.tracking.target import redact

JSON = {"--json", "json=true"}


def main(arguments: Sequence[str]) -> int:
    """Examine and print. Returns 0 when there is no fault (warnings do not count), 1 otherwise."""
    from sdbatch.doctor.table import examine

    given = list(arguments)
    folder = Path(given.pop(0)).expanduser() if given and "=" not in given[0] and not given[0].startswith("-") else None
    as_lines = as_json if JSON.intersection(given) else as_text
    site, conf = _compose(folder, [word for word in given if word not in JSON])
    findings = [conf, *examine(site)]
    sys.stdout.write(as_lines(site, findings))
    return 1 if count(findings, Level.fault) else 0


def _compose(folder: Path | None, given: Sequence[str]) -> tuple[Site, Finding]:
    """What is examined, as the configuration says, and whether that can be composed."""
    from sdbatch.config.compose import Composer

    asked = read_arguments(given)
    try:
        composed = Composer(asked.config_name, asked.config_dir, asked.overrides).compose(asked.overrides)
    except SdbatchError as error:
        return Site(folder or Path("outputs")), fault("config", redact(str(error)), "Nothing runs before that is right.")
    plain = composed.plain
    own = folder or Path(plain["out"] or plain["paths"]["outputs"]).expanduser()
    launcher = composed.hydra.get("launcher") or {}
    return Site(own, plain, str(launcher.get("name")), launcher), ok("config", "composes")
