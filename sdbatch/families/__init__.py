"""The families of models that sdbatch runs, one file each, in one table. Nothing here imports torch."""

from __future__ import annotations

from sdbatch.errors import ConfigError, did_you_mean
from sdbatch.families.base import Component, Encoder, Family
from sdbatch.families.flux import FLUX
from sdbatch.families.samplers import SAMPLERS, find_sampler
from sdbatch.families.sd1 import SD1
from sdbatch.families.sd2 import SD2
from sdbatch.families.sdxl import SDXL

FAMILIES: dict[str, Family] = {family.name: family for family in (SD1, SD2, SDXL, FLUX)}

__all__ = ["FAMILIES", "SAMPLERS", "Component", "Encoder", "Family", "find_family", "find_sampler"]


def find_family(name: str) -> Family:
    """The family of that name.

    Raises:
        ConfigError: no such family; the message lists what there is.
    """
    if name not in FAMILIES:
        raise ConfigError(f"model.family: there is no family {name!r}. {did_you_mean(name, FAMILIES)}")
    return FAMILIES[name]
