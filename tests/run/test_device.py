"""Which devices a machine has, as its driver, its scheduler and its user say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbatch.errors import ConfigError, DeviceError
from sdbatch.run import device
from sdbatch.run.device import cuda_devices, environment, find_places

WHOLE = "GPU 0: NVIDIA L4 (UUID: GPU-aaaa-1)\nGPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb-2)\n"
DIVIDED = WHOLE + "  MIG 3g.20gb     Device  0: (UUID: MIG-c7-1)\n  MIG 3g.20gb     Device  1: (UUID: MIG-c7-2)\n"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nvidia-smi, alone in PATH; a test writes what it does."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    return tmp_path / "nvidia-smi"


def write(driver: Path, script: str) -> None:
    driver.write_text(f"#!/bin/sh\n{script}\n")
    driver.chmod(0o755)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("0,1", ["0", "1"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0, 2,-1,1", ["0", "2"]),
        ("GPU-8932f937,GPU-aaaa-1", ["GPU-8932f937", "GPU-aaaa-1"]),
        ("MIG-c7-1,MIG-GPU-8932f937/1/0", ["MIG-c7-1", "MIG-GPU-8932f937/1/0"]),
    ],
)
def test_a_scheduler_says_which_by_number_or_uuid(visible: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cuda_devices() == names
    assert [place.device for place in find_places("auto", 1)] == ([f"cuda:{name}" for name in names] or ["cpu"])
    for place in find_places("auto", 1):
        assert environment(place)["CUDA_VISIBLE_DEVICES"] == (place.device.removeprefix("cuda:") if names else visible)
        assert "CUDA_DEVICE_ORDER" not in environment(place), "the scheduler's numbers are counted as it counts them"


@pytest.mark.parametrize(("listed", "names"), [(WHOLE, ["0", "1"]), (DIVIDED, ["0", "MIG-c7-1", "MIG-c7-2"])])
def test_a_worker_each_for_whole_gpus_and_for_the_parts_of_divided_ones(listed: str, names: list[str], driver: Path) -> None:
    write(driver, f"echo '{listed}'")
    assert cuda_devices() == names
    found = environment(find_places("cuda", 1)[-1])
    assert (found["CUDA_VISIBLE_DEVICES"], found["CUDA_DEVICE_ORDER"]) == (names[-1], "PCI_BUS_ID")


def test_no_driver_or_one_that_fails_is_no_gpu(driver: Path) -> None:
    assert [place.device for place in find_places("auto", 1)] == ["cpu"]
    write(driver, "echo No devices were found; exit 6")
    assert [place.device for place in find_places("auto", 1)] == ["cpu"]
    with pytest.raises(ConfigError, match=r"memory\.device=cuda: this machine shows no CUDA device"):
        find_places("cuda", 1)


def test_a_driver_that_hangs_is_told(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_SMI_S", 0.2)
    write(driver, "exec /bin/sleep 60")
    with pytest.raises(DeviceError, match="the driver hangs"):
        find_places("auto", 1)


@pytest.mark.parametrize(
    ("asked", "said"), [("cuda:2", "this machine has cuda:0, cuda:MIG-c7-1"), ("gpu", "give auto"), ("cuda:x y", "give auto")]
)
def test_a_device_that_is_not_there(asked: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,MIG-c7-1")
    assert [place.device for place in find_places("cuda:MIG-c7-1,cpu", 1)] == ["cuda:MIG-c7-1", "cpu"]
    with pytest.raises(ConfigError, match=said):
        find_places(asked, 1)
