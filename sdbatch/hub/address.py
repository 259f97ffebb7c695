"""How a repository of the Hub is written where a file is asked for: `hf://owner/name@revision/path/of/file`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdbatch.errors import WeightFileError

PREFIX = "hf://"
DATASETS = "datasets/"
DEFAULT_REVISION = "main"

_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_ADDRESS = re.compile(rf"(?P<repo>(?:{DATASETS})?{_PART}/{_PART})(?:@(?P<revision>[\w.%-]+))?(?:/(?P<file>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Address:
    """A repository at a revision, or one file of it."""

    repo: str
    """`owner/name`, or `datasets/owner/name`."""
    revision: str = DEFAULT_REVISION
    """Commit, tag or branch."""
    file: str | None = None
    """Path inside the repository; None: all of it, a diffusers folder."""

    @property
    def repo_id(self) -> str:
        """`owner/name`."""
        return self.repo.removeprefix(DATASETS)

    @property
    def repo_type(self) -> str:
        """In the Hub's words."""
        return "dataset" if self.repo.startswith(DATASETS) else "model"

    @property
    def page(self) -> str:
        """Where a person finds it."""
        return f"https://huggingface.co/{self.repo}"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return to_address(f"{self.repo}/{self.file}" if self.file else self.repo, self.revision)


def to_address(place: str, revision: str | None = None) -> str:
    """The text that stands for `owner/name`, or for `owner/name/path/of/file`, where a file is asked for."""
    start = 3 if place.startswith(DATASETS) else 2
    parts = place.split("/")
    # As the Hub writes the slash of `refs/pr/1` in its own addresses.
    at = (revision or DEFAULT_REVISION).replace("/", "%2F")
    return "/".join([f"{PREFIX}{'/'.join(parts[:start])}@{at}", *parts[start:]])


def is_address(asked: str) -> bool:
    """Whether a file is asked for by its place on the Hub."""
    return asked.startswith(PREFIX)


def read_address(asked: str) -> Address:
    """The address that a text stands for.

    Raises: WeightFileError when it is none, or leads out of the repository.
    """
    match = _ADDRESS.fullmatch(asked.removeprefix(PREFIX))
    if match is None or ".." in asked.split("/"):
        raise WeightFileError(f"{asked}: is no repository of the Hub. Write owner/name, such as stabilityai/sdxl-turbo.")
    return Address(match["repo"], (match["revision"] or DEFAULT_REVISION).replace("%2F", "/"), match["file"])
