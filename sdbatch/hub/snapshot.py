"""Repositories by id: a diffusers folder of exactly the files that are read, or one file, from the Hub's cache or the Hub.

What is in the cache is used without asking the network, so that a plan means the same tomorrow; `sdbatch pull` asks for
what is newest. A folder is links into the Hub's own cache, made whole and then renamed: it is there complete or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from sdbatch.errors import WeightFileError
from sdbatch.hub.address import Address
from sdbatch.hub.client import UnreachableError, explained, is_offline
from sdbatch.weights.cache import cache_folder
from sdbatch.weights.kinds import WEIGHT_SUFFIXES

SAFE_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model"})
"""Weights as plain numbers, configs and tokenizers. Never pickles, never code."""
_OTHER_PORTS = frozenset({"onnx", "openvino", "flax", "safety_checker", "feature_extractor"})
"""Folders and words of a pipeline repository that are not read."""


def find(address: Address) -> Path:
    """The folder or file of an address, from the cache where it is there, else fetched.

    Raises: WeightFileError when it is neither.
    """
    if (path := find_cached(address)) is not None:
        return path
    try:
        return fetch(address)
    except UnreachableError as fault:
        place = f"{address.repo}/{address.file}" if address.file else address.repo
        command = f"sdbatch pull checkpoint.repo={place} checkpoint.revision={address.revision}"
        raise WeightFileError(f"{fault} It is not in the cache either: run `{command}` where there is a network.") from None


def find_cached(address: Address) -> Path | None:
    """What was fetched before for this revision; None when it was not, or when a part of it is gone."""
    commit = _cached_commit(address)
    if commit is None:
        return None
    if address.file is None:
        folder = _folder(address, commit)
        return folder if _is_whole(folder) else None
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(address.repo_id, address.file, revision=commit, repo_type=address.repo_type)
    return Path(path) if isinstance(path, str) else None


def fetch(address: Address) -> Path:
    """Ask the Hub and fetch what is not in its cache yet.

    Raises: WeightFileError, UnreachableError.
    """
    if is_offline():
        raise UnreachableError(f"{address.repo}: the Hub may not be asked (HF_HUB_OFFLINE is set).")
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    with explained(address):
        if address.file is not None:
            _refuse_strange(address)
            return Path(hf_hub_download(address.repo_id, address.file, revision=address.revision, repo_type=address.repo_type))
        about = HfApi().repo_info(address.repo_id, revision=address.revision, repo_type=address.repo_type)
        commit = str(about.sha)
        chosen = choose_files([item.rfilename for item in getattr(about, "siblings", None) or ()])
        if not chosen:
            raise WeightFileError(
                f"{address.repo}: is no diffusers folder of .safetensors (pickles are not fetched). "
                f"Name one of its files, {address.repo}/FILE, see {address.page}/tree/{address.revision}."
            )
        # By branch or tag, so that the Hub's cache remembers what it meant.
        snapshot = snapshot_download(address.repo_id, revision=address.revision, repo_type=address.repo_type, allow_patterns=chosen)
        return _link(Path(snapshot), _folder(address, commit), chosen)


def to_name(address: Address, path: Path) -> str:
    """What rows and images call it: the repository (and file) at the commit that was used."""
    commit = path.name.rpartition("@")[2] if address.file is None else _commit_of(path)
    file = f"/{PurePosixPath(address.file).stem}" if address.file else ""
    return f"{address.repo}{file}@{commit[:12]}"


def choose_files(names: Iterable[str]) -> list[str]:
    """Of a repository's files those that sdbatch reads: the pipeline or component, full precision before half."""
    allowed = [PurePosixPath(name) for name in names if PurePosixPath(name).suffix in SAFE_SUFFIXES]
    allowed = [path for path in allowed if _OTHER_PORTS.isdisjoint(path.parts) and len(path.parts) <= 2 and not str(path).startswith(".")]
    whole = PurePosixPath("model_index.json") in allowed
    # Beside a pipeline's folders the same weights often lie again as one file.
    wanted = [path for path in allowed if not (whole and path.parent == PurePosixPath(".") and path.name != "model_index.json")]
    weights = [path for path in wanted if path.suffix == ".safetensors"]
    if not weights or not any(path.name in ("model_index.json", "config.json", "adapter_config.json") for path in wanted):
        return []
    full = {path.parent for path in weights if not _is_variant(path)}
    return sorted(str(path) for path in wanted if not (_is_variant(path) and path.parent in full))


def _is_variant(path: PurePosixPath) -> bool:
    """Whether a name carries a precision: `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors`."""
    return ".fp16" in path.name or ".bf16" in path.name or ".non_ema" in path.name


def _refuse_strange(address: Address) -> None:
    if address.file is not None and PurePosixPath(address.file).suffix.lower() not in WEIGHT_SUFFIXES:
        raise WeightFileError(f"{address.file}: is no weight file by its name. Choose one of {', '.join(sorted(WEIGHT_SUFFIXES))}.")


def _folder(address: Address, commit: str) -> Path:
    return cache_folder() / "hub" / f"{address.repo.replace('/', '--')}@{commit}"


def _link(snapshot: Path, folder: Path, names: list[str]) -> Path:
    if _is_whole(folder):
        return folder
    temporary = folder.with_name(f".tmp-{os.getpid()}-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    for name in names:
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        (temporary / name).symlink_to((snapshot / name).resolve())
    shutil.rmtree(folder, ignore_errors=True)
    try:
        temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not _is_whole(folder):  # else another process was quicker
            raise
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a folder is there and everything it links to still is: the Hub's cache may be emptied at any time."""
    return folder.is_dir() and all(path.exists() for path in folder.rglob("*"))


def _cached_commit(address: Address) -> str | None:
    if address.is_pinned:
        return address.revision
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    storage = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=address.repo_id, repo_type=address.repo_type)
    try:
        return (storage / "refs" / address.revision).read_text().strip()
    except OSError:
        return None


def _commit_of(path: Path) -> str:
    """The commit in a path of the Hub's cache: `.../snapshots/<commit>/<file>`."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else "unknown"
