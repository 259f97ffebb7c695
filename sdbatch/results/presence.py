"""Whether the images that rows speak of are there, by one look at each file and no read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sdbatch.results.block import container_of, size_if_whole
from sdbatch.results.folder import SweepFolder
from sdbatch.results.ids import texts_of
from sdbatch.results.keys import Keys, path_of

_Rows = npt.NDArray[Any]


def find_lost(folder: SweepFolder, keys: Sequence[Keys], part: npt.NDArray[np.int32], slot: npt.NDArray[np.int32]) -> dict[int, str]:
    """Rows (by their number in `part` and `slot`) whose image is gone or has another size, with its path."""
    lost: dict[int, str] = {}
    bounds = np.searchsorted(part, np.arange(len(keys) + 1)).tolist()
    for number, own in enumerate(keys):
        first, last = bounds[number], bounds[number + 1]
        rows = own.rows[slot[first:last]]
        for index, place in enumerate(own.places):
            if not place:
                continue
            chosen = np.flatnonzero(rows["place"] == index)
            gone = _gone_files(folder, place, rows[chosen]) if container_of(place) is None else _gone_members(folder, place, rows[chosen])
            for which, path in gone.items():
                lost[first + int(chosen[which])] = path
    return lost


def _gone_files(folder: SweepFolder, place: str, rows: _Rows) -> dict[int, str]:
    """Of images that are files of their own."""
    lost: dict[int, str] = {}
    before, _, after = place.partition("*")
    before = f"{folder.path}/{before}"
    stat = os.stat  # a million times: Path is three times as slow
    for number, (image_id, size) in enumerate(zip(texts_of(rows["id"]), rows["size"].tolist(), strict=True)):
        path = f"{before}{image_id}{after}" if after else before
        try:
            is_there = stat(path).st_size == size
        except (FileNotFoundError, NotADirectoryError):
            is_there = False
        if not is_there:
            lost[number] = path_of(place, image_id)
    return lost


def _gone_members(folder: SweepFolder, place: str, rows: _Rows) -> dict[int, str]:
    """Of images in a block: all of them when it is gone or not whole, else those that would lie beyond its end."""
    found = container_of(place)
    assert found is not None
    size = size_if_whole(folder.path / found[0])
    beyond = np.flatnonzero(rows["offset"] + rows["size"] > size)
    return {number: path_of(place, image_id) for number, image_id in zip(beyond.tolist(), texts_of(rows["id"][beyond]), strict=True)}
