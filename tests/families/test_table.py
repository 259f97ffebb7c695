from __future__ import annotations

import subprocess
import sys

import pytest

from sdbatch.errors import ConfigError
from sdbatch.families import FAMILIES, SAMPLERS, find_family, find_sampler
from sdbatch.families.samplers import FLOW_SAMPLERS, NOISE_SAMPLERS


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_whole(name: str) -> None:
    family = FAMILIES[name]
    assert family.name == name
    assert set(family.samplers) <= set(SAMPLERS)
    assert family.default_sampler in family.samplers
    assert family.native_px % family.size_multiple_px == 0
    assert len({part.name for part in family.components}) == len({part.prefixes for part in family.components}) == len(family.components)
    assert family.denoiser in ("unet", "transformer")
    assert {encoder.component for encoder in family.encoders} == {part.name for part in family.components if "encoder" in part.name}
    assert any(encoder.context for encoder in family.encoders)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_s_name_says_its_schedule(name: str) -> None:
    sampler = SAMPLERS[name]
    assert sampler.name == name
    assert list(sampler.options) == sorted(sampler.options)
    endings = {"Karras": "_karras", "Exponential": "_exponential", "Beta": "_beta", "SGM Uniform": "_trailing"}
    assert (name in FLOW_SAMPLERS) == name.startswith("flow_")
    assert name.endswith(endings.get(sampler.schedule, ""))
    assert (sampler.schedule in ("Automatic", "Simple")) == (not name.endswith(tuple(endings.values())))


def test_no_two_samplers_are_the_same() -> None:
    assert len({(s.scheduler, s.options) for s in SAMPLERS.values()}) == len(SAMPLERS)
    for names in (NOISE_SAMPLERS, FLOW_SAMPLERS):
        assert len({(SAMPLERS[name].label, SAMPLERS[name].schedule, SAMPLERS[name].options) for name in names}) == len(names)


def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"there is no sampler 'dpmpp_2m_karas'\. Did you mean dpmpp_2m_karras"):
        find_sampler("dpmpp_2m_karas")
    with pytest.raises(ConfigError, match=r"model\.family: there is no family 'sd9'"):
        find_family("sd9")


def test_planning_and_rehearsal_need_no_torch() -> None:
    code = "import sys, sdbatch.families, sdbatch.pipeline, sdbatch.pipeline.rehearsal; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
