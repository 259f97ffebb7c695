"""`sdbatch verify OUT [full=true] [repair=true]`: check a sweep's images against its rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sdbatch.errors import FolderError
from sdbatch.verbs.words import Option, read_words

OPTIONS = {
    "full": Option("false", "read every image and compare its SHA-256; else look at its presence and size"),
    "repair": Option("false", "take back what does not hold, and remove what dead workers left"),
}


def main(arguments: Sequence[str]) -> int:
    """Verify, and with `repair=true` take back what does not hold. Returns 0 when all is sound, 1 otherwise."""
    words = read_words("verify", arguments, ("OUT",), OPTIONS)
    from sdbatch.results.folder import SweepFolder
    from sdbatch.results.verify import repair, verify
    from sdbatch.run.roster import alone

    folder = SweepFolder(words["OUT"])
    if not folder.is_sweep:
        raise FolderError(f"{words['OUT']}: there is no sweep here. Give the folder of a sweep, such as outputs/NAME.")
    full = words["full"] == "true"
    if words["repair"] == "true":
        with alone(folder) as removed:
            report = verify(folder, full)
            sys.stdout.write(f"{report}\n" + (f"{removed} temporary files of dead workers were removed\n" if removed else ""))
            if report.is_sound:
                return 0
            count = repair(folder, report)
        sys.stdout.write(f"{count} images were taken back. Make them again: sdbatch resume {folder.path}\n")
        return 1
    report = verify(folder, full)
    sys.stdout.write(f"{report}\n")
    if report.temporary or not report.is_sound:
        what = "Remove what dead workers left" if report.is_sound else "Take back what does not hold"
        sys.stdout.write(f"{what}: sdbatch verify {folder.path} full={words['full']} repair=true\n")
    return 0 if report.is_sound else 1
