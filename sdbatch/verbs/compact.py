"""`sdbatch compact OUT [mb=256]`: merge the many small files of a made sweep into larger ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sdbatch.errors import ConfigError, FolderError
from sdbatch.verbs.words import Option, read_words

OPTIONS = {"mb": Option("256", "the most megabytes of a block of images")}


def main(arguments: Sequence[str]) -> int:
    """Compact. Safe to kill and to repeat. Returns the exit code."""
    words = read_words("compact", arguments, ("OUT",), OPTIONS)
    if not words["mb"].isdigit() or not int(words["mb"]):
        raise ConfigError(f"mb={words['mb']}: give the most megabytes of a block of images, such as mb=256.")
    from sdbatch.results.compact import compact
    from sdbatch.results.folder import SweepFolder
    from sdbatch.run.roster import alone

    folder = SweepFolder(words["OUT"])
    if not folder.is_sweep:
        raise FolderError(f"{words['OUT']}: there is no sweep here. Give the folder of a sweep, such as outputs/NAME.")
    with alone(folder):
        sys.stdout.write(f"{compact(folder, int(words['mb']))}\n")
    return 0
