"""Old and ill-fitting libraries, as their metadata on `sys.path` tells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sdbatch.doctor.finding import Finding, Level, Site
from sdbatch.doctor.library import check_libraries


def pretend(folder: Path, name: str, version: str, *requires: str) -> None:
    """The metadata of an installed library."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {text}" for text in requires)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.fixture
def site_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def faults() -> list[Finding]:
    return [finding for finding in check_libraries(Site(Path("outputs"))) if finding.level is Level.fault]


def test_what_is_installed_here_has_no_fault() -> None:
    assert faults() == []


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("torch", "2.5.1", "CVE-2025-32434"),
        ("torch", "2.9.1+cu128", "CVE-2026-24747"),
        ("diffusers", "0.40.0", "GHSA-4prv-5hj7-c2xr"),
        ("transformers", "4.57.0", "CVE-2026-4372"),
        ("hydra-core", "1.3.2", "CVE-2026-68508"),
        ("mlflow", "3.9.0", "CVE-2026-2614"),
        ("pillow", "12.0.0", "CVE-2026-25990"),
        ("pyarrow", "13.0.0", "CVE-2023-47248"),
    ],
)
def test_a_library_with_a_known_hole_is_a_fault(name: str, version: str, said: str, site_packages: Path) -> None:
    pretend(site_packages, name, version)
    found = faults()
    assert any(said in finding.found and finding.todo.startswith(f"pip install '{name}>=") for finding in found)


def test_a_version_outside_of_what_sdbatch_requires_is_a_fault(site_packages: Path) -> None:
    pretend(site_packages, "omegaconf", "2.1.0")
    assert [(finding.check, "omegaconf 2.1.0" in finding.found) for finding in faults()] == [("library.version", True)]


@pytest.mark.parametrize(
    ("torch", "vision", "requires", "is_bad"),
    [
        ("2.13.0+cpu", "0.28.0", "torch==2.13.0", True),
        ("2.13.0", "0.28.0+cpu", "torch==2.13.0", True),
        ("2.13.0+cu130", "0.28.0+cu128", "torch==2.13.0", True),
        ("2.13.0", "0.27.0", "torch==2.12.0", True),
        ("2.13.0", "0.28.0", "torch==2.13.0", False),
        ("2.13.0+cpu", "0.28.0+cpu", "torch==2.13.0", False),
    ],
)
def test_a_torchvision_of_another_build_is_a_fault(torch: str, vision: str, requires: str, is_bad: bool, site_packages: Path) -> None:
    pretend(site_packages, "torch", torch)
    pretend(site_packages, "torchvision", vision, requires)
    found = faults()
    assert [finding.check for finding in found] == (["library.torchvision"] if is_bad else [])


def test_nothing_heavy_is_imported_to_tell() -> None:
    code = (
        "import sys; from pathlib import Path; from sdbatch.doctor.finding import Site; from sdbatch.doctor.table import examine;"
        "examine(Site(Path('/tmp'))); print([name for name in ('torch', 'diffusers', 'mlflow', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
