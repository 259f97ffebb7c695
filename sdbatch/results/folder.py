"""A sweep folder: the names in it are an interface, users script against them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdbatch.errors import FolderError
from sdbatch.results.disk import (
    TEMPORARY,
    explained,
    folder_error,
    publish,
    sync_folders,
    write_file,
    write_temporary,
)
from sdbatch.results.lock import LOCK, holding

FLAT_LIMIT = 9_000
"""Sweeps of up to this many images keep all in one folder, and all rows; larger ones have a folder for each shard's images: a
block then flushes one folder, not one for each image. No folder has 10,000 entries, those in the making included."""
LATER = 100_000
"""Blocks of the plan are numbered below this. What is written to a shard later (a second try, a merge) is above."""
GROUP_SHARDS = 500
"""Shards whose claims, and rows in a large sweep, share a folder: few enough that none nears 10,000 entries."""

_FILES = ("plan.parquet", "grid.png", "grid.html", "config.yaml", "sweep.json", "log.txt", LOCK)
_FOLDERS = ("images", "rows", "blocks", "unpacked", "claims", "settled", "damaged")
_NAMES = frozenset({*_FILES, *_FOLDERS})
_PART = re.compile(r"part-\d{6,}(-to-\d{6,})?-\d{5,}\.parquet")
_GROUP = re.compile(r"\d{4,}")
_BLOCK = re.compile(r"\d{6,}(-to-\d{6,})?-\d{5,}\.(tar|parquet)")
_IMAGE_ID = re.compile(r"[0-9a-f]{8,64}")
_IMAGE = re.compile(r"[0-9a-f]{8,64}\.png")
_FORMAT = "sdbatch sweep"


class SweepFolder:
    """The folder of one sweep. Making this object touches nothing on disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.plan = self.path / "plan.parquet"
        self.images = self.path / "images"
        self.rows = self.path / "rows"
        self.blocks = self.path / "blocks"
        """Images in tar or Parquet blocks; only there when the sweep was asked for these."""
        self.grid_png = self.path / "grid.png"
        self.grid_html = self.path / "grid.html"
        self.config = self.path / "config.yaml"
        self.about = self.path / "sweep.json"
        self.log = self.path / "log.txt"
        self.unpacked = self.path / "unpacked"
        """Images out of their blocks for a grid to show; may be deleted at any time."""
        self.claims = self.path / "claims"
        """Who works on which shard; only there while the sweep runs."""
        self.settled = self.path / "settled"
        """What the first worker to ask decided for the whole sweep, such as its batch size; a file each."""
        self.damaged = self.path / "damaged"
        """What was found broken and put aside; only there when something was."""

    def __repr__(self) -> str:
        return f"SweepFolder({str(self.path)!r})"

    @property
    def is_sweep(self) -> bool:
        """Whether a sweep was begun here."""
        return self.about.is_file() or self.plan.is_file()

    def image_path(self, image_id: str, room: int, shard: int = 0) -> str:
        """Where the image of an id belongs, relative to the folder and with `/`; `room` for so many images there is to be.

        A sweep that grows past the limit keeps its earlier images where their rows say they are.
        """
        assert _IMAGE_ID.fullmatch(image_id), image_id
        if room <= FLAT_LIMIT:
            return f"images/{image_id}.png"
        return f"images/{_group(shard)}/{shard:06d}/{image_id}.png"

    def file(self, relative: str) -> Path:
        """The file of a path that a row gives; rows may come from strangers, so none leads out of the folder.

        Raises: FolderError for such a path.
        """
        if relative.startswith("/") or ".." in relative.split("/") or "\\" in relative or ":" in relative:
            raise FolderError(f"{self.path}: a row names the image {relative!r}, which is not inside the folder. Do not trust this sweep.")
        return self.path / relative

    @staticmethod
    def is_image_name(name: str) -> bool:
        """Whether a file name is one we give to images."""
        return _IMAGE.fullmatch(name) is not None

    @staticmethod
    def is_block_name(name: str) -> bool:
        """Whether a file name is one we give to blocks of images."""
        return _BLOCK.fullmatch(name) is not None

    def part(self, shard: int, block: int, room: int = 0) -> Path:
        """The Parquet part that commits a block, in a folder with room for so many images."""
        above = self.rows if room <= FLAT_LIMIT else self.rows / _group(shard)
        return above / f"part-{shard:06d}-{block:05d}.parquet"

    def merged_part(self, first: Path, last: Path, block: int) -> Path:
        """The part that takes the place of some neighbours, from the first to the last."""
        low, high = self.span(first)[0], self.span(last)[1]
        name = f"part-{low:06d}-{block:05d}" if low == high else f"part-{low:06d}-to-{high:06d}-{block:05d}"
        return first.with_name(f"{name}.parquet")

    def block(self, shard: int, block: int, suffix: str, room: int = 0) -> Path:
        """The tar or Parquet file that holds a block's images."""
        above = self.blocks if room <= FLAT_LIMIT else self.blocks / _group(shard)
        return above / f"{shard:06d}-{block:05d}.{suffix}"

    def merged_block(self, first: Path, last: Path, block: int, suffix: str) -> Path:
        """The block that takes the place of those of some neighbouring parts."""
        part = self.merged_part(first, last, block)
        return self.blocks / part.parent.relative_to(self.rows) / f"{part.stem.removeprefix('part-')}{suffix}"

    def parts(self) -> list[Path]:
        """All committed parts, in the order of shard and block."""
        return sorted(self._numbered(self.rows, _PART), key=self.place)

    def block_files(self) -> list[Path]:
        """All tar and Parquet files of images, in the order of shard and block."""
        return sorted(self._numbered(self.blocks, _BLOCK), key=self.place)

    def _numbered(self, top: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
        """Files of a folder and of its groups."""
        try:
            for entry in os.scandir(top):
                if pattern.fullmatch(entry.name):
                    yield top / entry.name
                elif _GROUP.fullmatch(entry.name):
                    group = top / entry.name
                    yield from (group / name for name in os.listdir(group) if pattern.fullmatch(name))  # noqa: PTH208 - fewer calls
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise folder_error("cannot read", top, error) from error

    def shard_parts(self, shard: int) -> list[Path]:
        """The parts that may hold rows of a shard."""
        found = [path for above in (self.rows, self.rows / _group(shard)) if above.is_dir() for path in above.iterdir()]
        spans = ((path, self.span(path)) for path in found if _PART.fullmatch(path.name))
        return sorted((path for path, (first, last) in spans if first <= shard <= last), key=self.place)

    @staticmethod
    def place(part: Path) -> tuple[int, int]:
        """Shard (of several: the first) and block of a part. Not the order of names: numbers may outgrow their padding."""
        words = part.stem.removeprefix("part-").split("-")
        return int(words[0]), int(words[-1])

    @staticmethod
    def span(part: Path) -> tuple[int, int]:
        """The first and the last shard of a part."""
        words = part.stem.removeprefix("part-").split("-")
        return int(words[0]), int(words[2] if len(words) == 4 else words[0])

    def next_block(self, shard: int) -> int:
        """The first number above all committed blocks of a shard."""
        return max((self.place(part)[1] for part in self.shard_parts(shard)), default=-1) + 1

    def create(self) -> None:
        """Make the folder, or take up the sweep that is there.

        Raises: FolderError when it cannot be made or holds files that are not a sweep's. Nothing foreign is touched.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FolderError(f"out={self.path}: a file of that name is in the way. Choose another folder.")
        with explained("cannot make", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._refuse_foreign()
        if not self.about.exists():
            self.write_about({})
        for folder in (self.images, self.rows):
            with explained("cannot make", folder):
                folder.mkdir(exist_ok=True)
        sync_folders([self.path, self.path.absolute().parent])

    def read_about(self) -> dict[str, Any]:
        """What `sweep.json` says; empty when there is none."""
        try:
            found = json.loads(self.about.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise FolderError(f"{self.about}: cannot be read ({error}). Delete it to have it written again.") from error
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise FolderError(f"{self.about}: not written by sdbatch. Choose another folder with out=.")
        return found

    def write_about(self, facts: dict[str, Any]) -> None:
        """Replace `sweep.json` by these facts, whole or not at all."""
        text = json.dumps({"format": _FORMAT, **facts}, indent=2, sort_keys=True, ensure_ascii=False)
        write_file(self.about, (text + "\n").encode())

    def read_settled(self, name: str) -> int | None:
        """A number that was settled for the sweep; None while it is not."""
        try:
            return int((self.settled / name).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def settle(self, name: str, value: int) -> int:
        """Settle a number for the whole sweep, and return it: of several workers that do so the first decides."""
        with explained("cannot make", self.settled):
            self.settled.mkdir(exist_ok=True)
        publish(write_temporary(self.settled / name, f"{value}\n".encode()), self.settled / name)
        sync_folders([self.settled, self.path])
        settled = self.read_settled(name)
        assert settled is not None
        return settled

    @contextmanager
    def lock(self) -> Generator[None]:
        """Hold the folder as its only driver.

        Raises: FolderError naming the other driver, when there is one. A dead driver's lock is free.
        """
        with holding(self.path / LOCK):
            yield

    def set_aside(self, files: Sequence[Path]) -> list[Path]:
        """Move damaged files into `damaged/`, where a user can look at them, and return where they are now.

        Raises: FolderError when one cannot be read at all: a disk or server that stumbles damages no file.
        """
        moved: list[Path] = []
        for file in files:
            with explained("cannot read", file), file.open("rb") as handle:
                while handle.read(1_000_000):
                    pass
            with explained("cannot move", file):
                target = first = self.damaged / file.relative_to(self.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                number = 1
                while target.exists():
                    target = first.with_stem(f"{file.stem}-{number}")
                    number += 1
                moved.append(file.rename(target))
        if files:
            sync_folders({self.damaged, self.path, *(path.parent for path in [*files, *moved])})
        return moved

    def _refuse_foreign(self) -> None:
        if self.is_sweep:
            self.read_about()
            return
        with explained("cannot read", self.path):
            entries = sorted(self.path.iterdir())
        # A crash while making the folder leaves some of our names, but nothing inside images/ and rows/ yet.
        foreign = [entry for entry in entries if entry.name not in _NAMES and not entry.name.startswith(TEMPORARY)]
        foreign += [entry for folder in (self.images, self.rows) if folder.is_dir() for entry in folder.iterdir()]
        if foreign:
            names = ", ".join(str(entry.relative_to(self.path)) for entry in foreign[:3])
            more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
            raise FolderError(f"out={self.path}: holds files that are not a sweep's ({names}{more}). Choose another or an empty folder.")


def _group(shard: int) -> str:
    return f"{shard // GROUP_SHARDS:04d}"
