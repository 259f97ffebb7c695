"""The files a plan names: found in the models folders, known by content, each hashed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.hub import snapshot
from sdbatch.hub.address import is_address, read_address
from sdbatch.plan.picture import read_size
from sdbatch.weights.catalog import Catalog, embedded_root
from sdbatch.weights.hashes import Hasher

CONFIG_MARK = "model_index.json"
"""The file that makes a folder a folder of weightless configs."""


class FileBook:
    """Looks up every file of a plan by (group, name as typed), and remembers what it found."""

    def __init__(self, catalog: Catalog, hasher: Hasher | None = None) -> None:
        self.catalog = catalog
        self.hasher = hasher or Hasher()
        self._found: dict[tuple[str, str], WeightFile] = {}

    def file(self, group: str, asked: str) -> WeightFile:
        """A file of any group: weights, an input `image`, or a `config` folder. Raises WeightFileError."""
        match group:
            case "image":
                return self.image(asked)
            case "config":
                return self.config(asked)
            case _:
                return self.weight(group, asked)

    def weight(self, group: str, asked: str) -> WeightFile:
        """A weight file of a group, or what an address of the Hub stands for. Raises WeightFileError."""
        return self._remember(
            group, asked, lambda: snapshot.find(read_address(asked)) if is_address(asked) else self.catalog.find(group, asked)
        )

    def image(self, asked: str) -> WeightFile:
        """A picture given as input. Raises WeightFileError."""
        return self._remember("image", asked, lambda: _existing_image(asked))

    def config(self, asked: str) -> WeightFile:
        """A folder of weightless configs: a path, or the name of one that ships with sdbatch. Raises WeightFileError."""
        return self._remember("config", asked, lambda: find_config(asked))

    def _remember(self, group: str, asked: str, find: Callable[[], Path]) -> WeightFile:
        key = (group, asked)
        if key not in self._found:
            path = find()
            sha256 = config_sha256(path) if group == "config" else self.hasher.sha256(path)
            self._found[key] = WeightFile(_name(asked, path), str(path.absolute()), sha256)
        return self._found[key]


def _name(asked: str, path: Path) -> str:
    if is_address(asked):
        return snapshot.to_name(read_address(asked), path)
    return path.stem if "/" in asked or "." in asked else asked


def _existing_image(asked: str) -> Path:
    path = Path(asked).expanduser()
    if not path.is_file():
        raise WeightFileError(f"{asked}: there is no such image.")
    read_size(path)
    return path


def config_roots() -> list[Path]:
    """Folders whose sub-folders are configs that ship with sdbatch."""
    families = Path(__file__).parent.parent / "families" / "configs"
    return [families, embedded_root() / "configs", embedded_root() / "checkpoints"]


def find_config(asked: str) -> Path:
    """The folder of a name or path. Raises WeightFileError."""
    folders = [Path(asked).expanduser(), *(root / asked for root in config_roots())]
    for folder in folders:
        if (folder / CONFIG_MARK).is_file():
            return folder
    shipped = sorted(
        {child.name for root in config_roots() if root.is_dir() for child in root.iterdir() if (child / CONFIG_MARK).is_file()}
    )
    raise WeightFileError(
        f"family.config={asked}: no folder with a {CONFIG_MARK}. Shipped: {', '.join(shipped) or 'none'}; or give a path."
    )


def config_sha256(folder: Path) -> str:
    """A hash of the configs and the tokenizer in a folder, weights left out."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in {".json", ".txt"}:
            total.update(f"{path.relative_to(folder).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
