"""Whether the file system of a sweep has room for what is left to be made: told before anything runs."""

from __future__ import annotations

import math
import os
from pathlib import Path

from sdbatch.plan.estimate import size
from sdbatch.run.batch import block_cells


def find_shortage(out: Path, needed_bytes: float, cells: int, output_format: str) -> str | None:
    """What is missing for so many images of so many bytes in all; None when nothing is, or the system does not say."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    try:
        room = os.statvfs(there)
    except OSError:
        return None
    free_bytes = room.f_bavail * room.f_frsize
    if needed_bytes > free_bytes:
        there_is = f"the file system of {out} has {size(free_bytes, math.floor)} free"
        return f"about {size(needed_bytes)} of images are to be written, and {there_is}."
    blocks = -(-cells // block_cells(cells, output_format))
    files = 2 * blocks if output_format != "files" else cells + blocks
    if room.f_files and files > room.f_favail:
        told = f"about {files} files are to be written, and the file system of {out} has room for {room.f_favail} more"
        return f"{told}. output=webdataset or output=parquet packs the images." if output_format == "files" else f"{told}."
    return None
