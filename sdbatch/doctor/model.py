"""The models folders of the configuration: there, readable, and full of what they should hold."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sdbatch.doctor.finding import Finding, Site, ok, warning
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.index import Index

DEFAULT = Path("models")
SHOWN = 5
"""Damaged files that are told one by one."""


def check_models(site: Site) -> Iterator[Finding]:
    """Every folder of `paths.models` and every weight file in them, by its header."""
    roots = [Path(root).expanduser() for root in site.get("paths", "models") or (DEFAULT,)]
    for root in roots:
        if not root.is_dir() and roots == [DEFAULT]:
            yield ok("models", f"no {root} folder here; what ships with sdbatch works without it")
        elif not root.is_dir():
            yield warning("models", f"{root} is not there", "Make it, or set paths.models.")
        elif not os.access(root, os.R_OK | os.X_OK):
            yield warning("models", f"{root} cannot be read", f"Ask for permission, or chmod a+rx {root}.")
    listed = list(Index().list_catalog(Catalog(roots)))
    bad = [item for item in listed if item.fault is not None]
    for item in bad[:SHOWN]:
        yield warning("models.file", f"{item.group}={item.name}: {item.fault}", "Runs that do not use it are not affected.")
    if len(bad) > SHOWN:
        yield warning("models.file", f"{len(bad) - SHOWN} more files cannot be used", "`sdbatch models` lists them.")
    counts = Counter(item.group for item in listed if item.fault is None)
    told = ", ".join(f"{number} {group}" for group, number in counts.items())
    yield ok("models", f"readable: {told}")
