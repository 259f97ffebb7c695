"""Read the header of any weight file: safetensors, pickle, or a diffusers folder.

Nothing is executed and no tensor is read; what a file is, its first bytes tell, never its name. Files come from
strangers: every reader is bounded in bytes, counts and time, and raises only WeightFileError.
"""

from __future__ import annotations

import os
from pathlib import Path

from sdbatch.errors import WeightFileError
from sdbatch.weights.folder_header import read_folder
from sdbatch.weights.header import DEFAULT_LIMITS, FlawError, Header, Limits, shown, unreadable
from sdbatch.weights.pickle_header import read_pickle
from sdbatch.weights.safetensors_header import read_safetensors
from sdbatch.weights.sniff import sniff


def read_header(path: Path, limits: Limits = DEFAULT_LIMITS) -> Header:
    """The header of a weight file, or of all weight files of a diffusers folder.

    Raises: WeightFileError with one sentence on what the file is instead, or what is wrong with it and what to do.
    """
    try:
        return read_folder(path, limits) if path.is_dir() else _read_file(path, limits)
    except FlawError as flaw:
        raise WeightFileError(f"{shown(path)}: {flaw}") from None
    except OSError as fault:
        raise unreadable(path, fault) from fault


def _read_file(path: Path, limits: Limits) -> Header:
    if path.exists() and not path.is_file():
        raise FlawError("is not a file (a device or a pipe). Give the path of a weight file.")
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        match sniff(path, file.read(512), size):
            case "safetensors":
                return read_safetensors(path, descriptor, size, limits)
            case "pickle":
                return read_pickle(path, descriptor, size, limits)
