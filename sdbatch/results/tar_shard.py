"""A shard of a WebDataset: a tar of samples, each a `.png`, a `.json` and a `.txt` of one name."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from datetime import datetime
from typing import IO, Any

from sdbatch.results.row import Row


def write_tar_shard(handle: IO[bytes], samples: Iterator[tuple[Row, bytes]]) -> list[int]:
    """Write samples as one tar, and return at which byte each image begins; equal samples give equal bytes."""
    offsets: list[int] = []
    with tarfile.open(fileobj=handle, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for row, data in samples:
            facts = json.dumps(row, ensure_ascii=False, default=_plain)
            for suffix, content in (("png", data), ("json", facts.encode()), ("txt", row["prompt"].encode())):
                # No owner, no time: TarInfo's own defaults are zeros.
                member = tarfile.TarInfo(f"{row['image_id']}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                if suffix == "png":
                    offsets.append(tar.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
    return offsets


def _plain(value: Any) -> str:
    assert isinstance(value, datetime), value
    return value.isoformat()
