"""`sdbatch export OUT format=parquet to=FOLDER`: a sweep as a dataset."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sdbatch.errors import ConfigError
from sdbatch.results.folder import SweepFolder
from sdbatch.verbs.words import Option, read_words

OPTIONS = {
    "format": Option("parquet", "parquet or webdataset"),
    "to": Option("", "folder to write; unset: OUT/export"),
}


def main(arguments: Sequence[str]) -> int:
    """Export. Returns the exit code."""
    words = read_words("export", arguments, ("OUT",), OPTIONS)
    place = export_folder(SweepFolder(words["OUT"]), words["format"], Path(words["to"]) if words["to"] else None)
    sys.stdout.write(f"{place}/\n")
    return 0


def export_folder(folder: SweepFolder, form: str, to: Path | None = None) -> Path:
    """Export a sweep's successes; an export that is there and complete is left as it is."""
    from sdbatch.results.export import export_parquet, export_webdataset

    place = to or folder.path / "export"
    match form:
        case "parquet":
            export_parquet(folder, place)
        case "webdataset":
            export_webdataset(folder, place)
        case _:
            raise ConfigError(f"format={form}: choose parquet or webdataset.")
    return place
