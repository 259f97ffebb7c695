"""The shards that a worker has in work: what of each is committed already, and what is still to be."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pyarrow as pa

from sdbatch.results.commit import check_keys
from sdbatch.results.folder import SweepFolder
from sdbatch.results.ids import texts_of
from sdbatch.results.presence import find_lost
from sdbatch.results.schema import OK, STATUSES


class OpenShards:
    """Claimed shards and what is still to be committed of each. Used by the worker's thread and the writer's."""

    def __init__(self) -> None:
        self._left: dict[int, set[str]] = {}
        self._lock = threading.Lock()

    def begin(self, shard: int, image_ids: Sequence[str]) -> None:
        """The cells a shard needs, at least one."""
        with self._lock:
            self._left[shard] = set(image_ids)

    def close(self, image_ids: Sequence[str]) -> list[int]:
        """These are committed; returns the shards that need nothing more."""
        with self._lock:
            for left in self._left.values():
                left.difference_update(image_ids)
            finished = [shard for shard, left in self._left.items() if not left]
            for shard in finished:
                del self._left[shard]
        return finished

    def forget(self, shard: int) -> None:
        """The shard is another worker's now."""
        with self._lock:
            self._left.pop(shard, None)

    def shards(self) -> list[int]:
        """Shards that are not finished."""
        with self._lock:
            return list(self._left)


def shard_done(folder: SweepFolder, shard: int) -> set[str]:
    """Ids of the shard's cells that are committed and whose images are there."""
    done: set[str] = set()
    for part in folder.shard_parts(shard):
        try:
            keys = check_keys(part)
        except (pa.ArrowException, OSError):
            continue
        there = keys.rows["status"] == STATUSES.index(OK)
        there[list(find_lost(folder, keys))] = False
        done.update(texts_of(keys.ids[there]))
    return done
