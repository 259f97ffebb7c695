"""Versions of libraries, read from their metadata: known holes, what sdbatch requires, builds that do not fit together."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from sdbatch.doctor.finding import Finding, Site, fault, ok


@dataclass(frozen=True, slots=True)
class Hole:
    """Versions of a library below one in which a hole was closed."""

    name: str
    closed_in: str
    what: str
    since: str = "0"
    """The first version that has it."""


HOLES = (
    Hole("torch", "2.6.0", "CVE-2025-32434: torch.load runs code even with weights_only=True"),
    Hole("torch", "2.10.0", "CVE-2026-24747: a checkpoint corrupts memory even with weights_only=True"),
    Hole("diffusers", "0.38.0", "CVE-2026-44513: a model folder runs code past trust_remote_code=False"),
    Hole("diffusers", "0.42.1", "GHSA-4prv-5hj7-c2xr: a library name in model_index.json runs code"),
    Hole("transformers", "5.3.0", "CVE-2026-4372: a model's config.json runs code"),
    Hole("hydra-core", "1.3.4", "CVE-2026-68508: a configuration runs code"),
    Hole("hydra-core", "1.3.7", "CVE-2026-106439: a configuration empties the list of what it may not call"),
    Hole("mlflow", "3.9.1", "CVE-2026-2614 and CVE-2026-2652: a server's files are read, its login is passed by"),
    Hole("mlflow", "3.10.2", "CVE-2026-0545: a server's jobs are started without login"),
    Hole("pillow", "10.3.0", "CVE-2023-50447 and CVE-2024-28219: a picture or its profile runs code"),
    Hole("pillow", "12.1.1", "CVE-2026-25990: a PSD picture writes out of bounds", since="10.3.0"),
    Hole("pyarrow", "14.0.1", "CVE-2023-47248: a Parquet file runs code"),
    Hole("pyyaml", "5.4", "CVE-2020-14343: a YAML file runs code"),
)
"""Holes that files of strangers, or a server in the network, can reach through what sdbatch uses."""

SHOWN = ("torch", "diffusers", "transformers", "hydra-core", "omegaconf", "mlflow", "safetensors", "pillow", "pyarrow", "torchvision")


def check_libraries(site: Site) -> Iterator[Finding]:
    """Versions, one finding for all that is well."""
    del site
    found: list[Finding] = [*check_holes(), *check_requirements(), *check_torchvision()]
    if not found:
        versions = {name: version_of(name) for name in SHOWN}
        found = [ok("library", ", ".join(f"{name} {version}" for name, version in versions.items() if version))]
    yield from found


def version_of(name: str) -> str | None:
    """The installed version; None when it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_holes() -> Iterator[Finding]:
    """Libraries with a hole that is known."""
    for hole in HOLES:
        version = version_of(hole.name)
        if version is None:
            continue
        try:
            is_open = Version(hole.since) <= Version(version) < Version(hole.closed_in)
        except InvalidVersion:
            continue
        if is_open:
            yield fault("library.hole", f"{hole.name} {version}: {hole.what}", f"pip install '{hole.name}>={hole.closed_in}'")


def check_requirements() -> Iterator[Finding]:
    """What sdbatch requires and is missing or of another version."""
    for text in importlib.metadata.requires("sdbatch") or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        version = version_of(requirement.name)
        if version is None:
            yield fault("library.missing", f"{requirement.name} is not installed", f"pip install '{wanted}'")
        elif not requirement.specifier.contains(version, prereleases=True):
            yield fault(
                "library.version", f"{requirement.name} {version}, sdbatch needs {requirement.specifier}", f"pip install '{wanted}'"
            )


def check_torchvision() -> Iterator[Finding]:
    """A torchvision of another build than torch breaks every import of diffusers."""
    torch, vision = version_of("torch"), version_of("torchvision")
    if torch is None or vision is None:
        return
    todo = "pip uninstall torchvision (sdbatch does not need it), or install the one of torch's own build."
    for text in importlib.metadata.requires("torchvision") or ():
        requirement = Requirement(text)
        if requirement.name == "torch" and not requirement.specifier.contains(Version(torch).public, prereleases=True):
            yield fault("library.torchvision", f"torchvision {vision} is made for torch{requirement.specifier}, torch is {torch}", todo)
            return
    if _build(torch) != _build(vision):
        said = f"torchvision {vision} is of another build than torch {torch}: importing diffusers fails (torchvision::nms does not exist)"
        yield fault("library.torchvision", said, todo)


def _build(version: str) -> str:
    """`cpu`, `cu130`, ...; `registry` for a build without a mark, as the package registry has them."""
    local = version.partition("+")[2]
    return local if re.fullmatch(r"cpu|cu\d+|rocm[\d.]+|xpu", local) else "registry"
