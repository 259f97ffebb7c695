"""Files are options: a file dropped at `models/loras/style_a.safetensors` is `lora=style_a`.

Only names are read here, no file is opened: thousands of files cost milliseconds.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from sdbatch.cell import STACKS
from sdbatch.errors import ConfigError, WeightFileError, did_you_mean
from sdbatch.weights.kinds import GROUPS, WEIGHT_SUFFIXES, Kind
from sdbatch.weights.peft import ADAPTER_CONFIG, ADAPTER_MODEL

MAX_DEPTH = 6
"""Sub-folders below a kind's folder that are looked into."""

_NOT_A_NAME = frozenset({"true", "false", "null", "inf", "nan"})
"""Words that Hydra's grammar reads as values, not as names."""

_INPAINTING = "inpaint"
"""In the name of a checkpoint: a model of another shape, which a `*` must not take for its base."""

_PREFERRED_SUFFIXES = (".safetensors", ".sft")


@dataclass(frozen=True, slots=True)
class Entry:
    """A weight file, or a diffusers folder, found by its name."""

    path: Path
    relative: str
    """Path inside the kind's folder with `/`, such as `styles/style_a.safetensors`."""
    is_folder: bool

    @property
    def stem(self) -> str:
        """The file name without its suffix; a folder's whole name."""
        return self.path.name if self.is_folder else self.path.stem


def embedded_root() -> Path:
    """The models that ship with sdbatch: the last root of every catalogue."""
    return Path(__file__).resolve().parent.parent / "embedded"


def to_option_name(stem: str) -> str:
    """The option name of a file: what Hydra takes as a key without quotes (`[A-Za-z_][A-Za-z0-9_-]*`).

    Dots, spaces and brackets become `_`; letters outside ASCII lose their accents or become their code point.
    """
    plain = "".join(_to_ascii(char) for char in unicodedata.normalize("NFKD", stem))
    name = "_".join(re.findall(r"[A-Za-z0-9_-]+", plain)) or "_"
    if name.lower() in _NOT_A_NAME or not re.match(r"[A-Za-z_]", name):
        return f"_{name}"
    return name


def _without_guard(name: str) -> str:
    """An option name that is typed as a value alone: it may begin with a digit unless the whole reads as a number, `4x_sharp`."""
    bare = name.removeprefix("_")
    try:
        float(bare)
    except ValueError:
        return bare if bare[:1].isdigit() else name
    return name


def _to_ascii(char: str) -> str:
    if char.isascii():
        return char
    if unicodedata.combining(char):
        return ""
    return f" u{ord(char):x} " if char.isalnum() else " "


class Catalog:
    """The weight files of some models folders, by kind and option name.

    A root may be a models folder (`models/loras/...`), or the folder of ComfyUI or A1111 that holds one. Earlier roots
    shadow later ones; the embedded models come last. Each kind is scanned once, when it is first asked for.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        given = [Path(root).expanduser() for root in roots]
        self.roots: tuple[Path, ...] = tuple(dict.fromkeys([*(root for root in given if root != embedded_root()), embedded_root()]))
        self.known_names: Callable[[str, str], Sequence[str]] = lambda _group, _preset: ()
        """The file names that a preset of a group is known by; whoever knows the presets sets it."""
        self._scanned: dict[str, tuple[tuple[Entry, ...], ...]] = {}
        self._options: dict[str, dict[str, Path]] = {}

    def options(self, group: str) -> dict[str, Path]:
        """Option name -> path of every weight file of this group, sorted by name.

        Raises: ConfigError for a group that holds no weight files.
        """
        if group not in self._options:
            merged: dict[str, Path] = {}
            for entries in self._entries(group):
                for name, path in _name_entries(entries).items():
                    merged.setdefault(name if group in STACKS else _without_guard(name), path)
            self._options[group] = dict(sorted(merged.items()))
        return self._options[group]

    def find(self, group: str, name_or_path: str) -> Path:
        """The weight file that an option name, a file name, a path inside the kind's folder, any path or a preset stands for.

        Raises: WeightFileError that lists the nearest names, and the folders that were searched.
        """
        options = self.options(group)
        if name_or_path in options:
            return options[name_or_path]
        asked = name_or_path.replace(os.sep, "/")
        for entries in self._entries(group):
            matches = [entry for entry in entries if asked in _spellings(entry)]
            if len(matches) > 1:
                listed = ", ".join(sorted(entry.relative for entry in matches))
                raise WeightFileError(f"{group}={name_or_path}: {len(matches)} files have this name: {listed}. Give one of these.")
            if matches:
                return matches[0].path
        path = Path(name_or_path).expanduser()
        if name_or_path and _is_weight_path(path):
            # Without the config beside it, peft's file has no alpha.
            is_peft = path.name.startswith(ADAPTER_MODEL) and is_diffusers_folder(path.absolute().parent)
            return path.absolute().parent if is_peft else path.absolute()
        by_key = {to_option_name(option): found for option, found in options.items()}
        if (option := to_option_name(name_or_path)) in by_key:
            return by_key[option]
        if known := self.find_known(group, self.known_names(group, name_or_path)):
            return options[known]
        raise WeightFileError(self._not_found(group, name_or_path))

    def find_known(self, group: str, names: Iterable[str]) -> str | None:
        """The option whose file has the first of these names that is there; None when none is.

        Case, punctuation and the suffix do not count, `*` stands for any text: `DreamShaper 8*` is `dreamshaper_8_pruned.ckpt`.
        """
        options: dict[str, str] = {}
        for option, path in self.options(group).items():
            options.setdefault(_to_letters(path.name), option)
        for name in names:
            pattern = _to_letters(name)
            # Sorted already: of several that fit a `*` the first by name is taken.
            for letters, option in options.items():
                if fnmatchcase(letters, pattern) and (_INPAINTING in pattern or _INPAINTING not in letters):
                    return option
        return None

    def target(self, group: str) -> Path:
        """The folder in which a new file of this group is put: of the first root, whether it exists or not."""
        return next(iter(_kind_folders(self.roots[0], _kind(group))), self.roots[0] / _kind(group).folders[0])

    def folders(self, group: str) -> list[Path]:
        """The existing folders in which files of this group are looked for, first root first."""
        return [folder for root in self.roots for folder in _kind_folders(root, _kind(group))]

    def _entries(self, group: str) -> tuple[tuple[Entry, ...], ...]:
        if group not in self._scanned:
            kind = _kind(group)
            self._scanned[group] = tuple(_scan_root(root, kind) for root in self.roots)
        return self._scanned[group]

    def _not_found(self, group: str, asked: str) -> str:
        first = self.roots[0] / _kind(group).folders[0]
        searched = ", ".join(str(folder) for folder in self.folders(group)) or f"no folder: {first} does not exist"
        if Path(asked).suffix.lower() in WEIGHT_SUFFIXES or os.sep in asked:
            what = "there is no such file"
        else:
            what = "there is no file of this name"
        hint = did_you_mean(asked, self.options(group))
        return f"{group}={asked}: {what}. {hint} Searched: {searched}. Put the file there, or give its path."


def _kind(group: str) -> Kind:
    if group not in GROUPS:
        raise ConfigError(f"{group}: no group of weight files. {did_you_mean(group, GROUPS)}")
    return GROUPS[group]


def _scan_root(root: Path, kind: Kind) -> tuple[Entry, ...]:
    entries = [entry for folder in _kind_folders(root, kind) for entry in _iter_entries(folder, "", MAX_DEPTH, set())]
    if kind.group == "checkpoint":
        return tuple(entry for entry in entries if not _is_vae_beside(entry))
    if kind.group == "vae":
        beside = [entry for folder in _kind_folders(root, GROUPS["checkpoint"]) for entry in _iter_entries(folder, "", MAX_DEPTH, set())]
        entries += [entry for entry in beside if _is_vae_beside(entry)]
    return tuple(entries)


def _is_vae_beside(entry: Entry) -> bool:
    # A1111's habit: `model.vae.pt` lies next to `model.ckpt`, in the folder of the checkpoints.
    return not entry.is_folder and entry.stem.lower().endswith(".vae")


def _kind_folders(root: Path, kind: Kind) -> list[Path]:
    found: list[Path] = []
    for base in (root, root / "models"):
        folders = [entry for entry in _list_folder(base) if entry.is_dir()]
        # Other programs write `Lora` and `VAE`: compare in lower case.
        found += [Path(entry.path) for name in kind.folders for entry in folders if entry.name.lower() == name]
    return found


def _list_folder(folder: Path | str) -> list[os.DirEntry[str]]:
    """The visible entries of a folder by name; none when it is missing or unreadable."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith((".", "~"))), key=lambda entry: entry.name)
    except OSError:
        return []


def _iter_entries(folder: Path | str, inside: str, depth: int, visited: set[str]) -> Iterator[Entry]:
    for entry in _list_folder(folder):
        relative = inside + entry.name
        if _has_weight_suffix(entry.name) and entry.is_file():
            yield Entry(Path(entry.path), relative, is_folder=False)
        elif depth > 0 and entry.is_dir() and _is_first_visit(entry, visited):
            if is_diffusers_folder(entry.path):
                yield Entry(Path(entry.path), relative, is_folder=True)
            else:
                yield from _iter_entries(entry.path, relative + "/", depth - 1, visited)


def _is_first_visit(entry: os.DirEntry[str], visited: set[str]) -> bool:
    # Only a linked folder can lead back to itself.
    if not entry.is_symlink():
        return True
    target = str(Path(entry.path).resolve())
    if target in visited:
        return False
    visited.add(target)
    return True


def is_diffusers_folder(folder: Path | str) -> bool:
    """Whether a folder is one model: a pipeline (`model_index.json`), a component (`config.json` and weights), or peft's adapter."""
    names = [entry.name for entry in _list_folder(folder)]
    has_config = "config.json" in names or ADAPTER_CONFIG in names
    return "model_index.json" in names or (has_config and any(_has_weight_suffix(name) for name in names))


def _has_weight_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in WEIGHT_SUFFIXES  # noqa: PTH122  (a Path per name costs 3x)


def _is_weight_path(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and is_diffusers_folder(path))


def _to_letters(name: str) -> str:
    """A file name without case, punctuation and the suffix of a weight file."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    whole = stem if suffix.lower() in WEIGHT_SUFFIXES else name
    return re.sub(r"[^a-z0-9*]", "", whole.lower())


def _spellings(entry: Entry) -> tuple[str, ...]:
    """What a user may call an entry beside its option name."""
    if entry.is_folder:
        return (entry.relative, entry.path.name)
    return (entry.relative, entry.path.name, entry.stem, entry.relative.removesuffix(entry.path.suffix))


def _name_entries(entries: Iterable[Entry]) -> dict[str, Path]:
    """Unique option names within one root.

    A name that two files share belongs to the one at the top; files in sub-folders then carry the sub-folder's name.
    """
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        by_name.setdefault(to_option_name(entry.stem), []).append(entry)
    named: dict[str, Path] = {}
    crowded: list[Entry] = []
    for name, sharers in by_name.items():
        at_top = sorted((entry for entry in sharers if len(sharers) == 1 or "/" not in entry.relative), key=_by_preference)
        if at_top:
            named[name] = at_top[0].path
        crowded += [entry for entry in sharers if entry not in at_top[:1]]
    for entry in sorted(crowded, key=_by_preference):
        named[_free_name(entry, named)] = entry.path
    return named


def _by_preference(entry: Entry) -> tuple[bool, str]:
    return (entry.path.suffix not in _PREFERRED_SUFFIXES, entry.relative)


def _free_name(entry: Entry, taken: dict[str, Path]) -> str:
    inside = entry.relative.removesuffix("" if entry.is_folder else entry.path.suffix)
    name = to_option_name(inside)
    if name in taken:
        name = to_option_name(f"{inside}{entry.path.suffix}")
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    return candidate
