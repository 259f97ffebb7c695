"""The samplers by the names users know, each with the diffusers scheduler and options that run it.

The options are those of the scheduler's constructor, or of its `step` (`eta`). `label` and `schedule` are what A1111
calls the same thing. One family of names has several schedules: `euler_karras` is Euler on Karras' noise levels.
"""

from __future__ import annotations

from typing import Any

from sdbatch.cell import Sampler
from sdbatch.errors import ConfigError, did_you_mean

_KARRAS = {"use_karras_sigmas": True}
_EXPONENTIAL = {"use_exponential_sigmas": True}
_BETA = {"use_beta_sigmas": True}
_TRAILING = {"timestep_spacing": "trailing"}
_2M: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2}
_2M_SDE: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
_3M_SDE: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}
_FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
_2S: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2, "lower_order_final": True}


def _sampler(name: str, label: str, schedule: str, scheduler: str, **options: Any) -> Sampler:
    return Sampler(name, label, schedule, f"{scheduler}Scheduler", tuple(sorted(options.items())))


_TABLE = (
    # name                      A1111's label       its schedule    diffusers class          options
    _sampler("euler", "Euler", "Automatic", "EulerDiscrete"),
    _sampler("euler_karras", "Euler", "Karras", "EulerDiscrete", **_KARRAS),
    _sampler("euler_exponential", "Euler", "Exponential", "EulerDiscrete", **_EXPONENTIAL),
    _sampler("euler_beta", "Euler", "Beta", "EulerDiscrete", **_BETA),
    _sampler("euler_trailing", "Euler", "SGM Uniform", "EulerDiscrete", **_TRAILING),
    _sampler("euler_a", "Euler a", "Automatic", "EulerAncestralDiscrete"),
    _sampler("euler_a_trailing", "Euler a", "SGM Uniform", "EulerAncestralDiscrete", **_TRAILING),
    _sampler("heun", "Heun", "Automatic", "HeunDiscrete"),
    _sampler("heun_karras", "Heun", "Karras", "HeunDiscrete", **_KARRAS),
    _sampler("dpm2", "DPM2", "Automatic", "KDPM2Discrete"),
    _sampler("dpm2_karras", "DPM2", "Karras", "KDPM2Discrete", **_KARRAS),
    _sampler("dpm2_a", "DPM2 a", "Automatic", "KDPM2AncestralDiscrete"),
    _sampler("dpm2_a_karras", "DPM2 a", "Karras", "KDPM2AncestralDiscrete", **_KARRAS),
    _sampler("lms", "LMS", "Automatic", "LMSDiscrete"),
    _sampler("lms_karras", "LMS", "Karras", "LMSDiscrete", **_KARRAS),
    _sampler("dpmpp_2m", "DPM++ 2M", "Automatic", "DPMSolverMultistep", **_2M),
    _sampler("dpmpp_2m_karras", "DPM++ 2M", "Karras", "DPMSolverMultistep", **_2M, **_KARRAS),
    _sampler("dpmpp_2m_exponential", "DPM++ 2M", "Exponential", "DPMSolverMultistep", **_2M, **_EXPONENTIAL),
    _sampler("dpmpp_2m_beta", "DPM++ 2M", "Beta", "DPMSolverMultistep", **_2M, **_BETA),
    _sampler("dpmpp_2m_trailing", "DPM++ 2M", "SGM Uniform", "DPMSolverMultistep", **_2M, **_TRAILING),
    _sampler("dpmpp_2m_sde", "DPM++ 2M SDE", "Automatic", "DPMSolverMultistep", **_2M_SDE),
    _sampler("dpmpp_2m_sde_karras", "DPM++ 2M SDE", "Karras", "DPMSolverMultistep", **_2M_SDE, **_KARRAS),
    _sampler("dpmpp_2m_sde_exponential", "DPM++ 2M SDE", "Exponential", "DPMSolverMultistep", **_2M_SDE, **_EXPONENTIAL),
    _sampler("dpmpp_2m_sde_heun", "DPM++ 2M SDE Heun", "Automatic", "DPMSolverMultistep", **_2M_SDE, solver_type="heun"),
    _sampler("dpmpp_3m_sde", "DPM++ 3M SDE", "Automatic", "DPMSolverMultistep", **_3M_SDE),
    _sampler("dpmpp_3m_sde_karras", "DPM++ 3M SDE", "Karras", "DPMSolverMultistep", **_3M_SDE, **_KARRAS),
    _sampler("dpmpp_3m_sde_exponential", "DPM++ 3M SDE", "Exponential", "DPMSolverMultistep", **_3M_SDE, **_EXPONENTIAL),
    _sampler("dpmpp_sde", "DPM++ SDE", "Automatic", "DPMSolverSDE"),
    _sampler("dpmpp_sde_karras", "DPM++ SDE", "Karras", "DPMSolverSDE", **_KARRAS),
    _sampler("dpmpp_2s", "DPM++ 2S", "Automatic", "DPMSolverSinglestep", **_2S),
    _sampler("dpmpp_2s_karras", "DPM++ 2S", "Karras", "DPMSolverSinglestep", **_2S, **_KARRAS),
    _sampler("unipc", "UniPC", "Automatic", "UniPCMultistep"),
    _sampler("unipc_karras", "UniPC", "Karras", "UniPCMultistep", **_KARRAS),
    _sampler("deis", "DEIS", "Automatic", "DEISMultistep"),
    _sampler("deis_karras", "DEIS", "Karras", "DEISMultistep", **_KARRAS),
    _sampler("sa_solver", "SA-Solver", "Automatic", "SASolver"),
    _sampler("ddim", "DDIM", "Automatic", "DDIM"),
    _sampler("ddim_trailing", "DDIM", "SGM Uniform", "DDIM", **_TRAILING),
    _sampler("ddim_eta1", "DDIM", "Automatic", "DDIM", eta=1.0),
    _sampler("ddpm", "DDPM", "Automatic", "DDPM"),
    _sampler("pndm", "PLMS", "Automatic", "PNDM", skip_prk_steps=True),
    _sampler("lcm", "LCM", "Automatic", "LCM"),
    _sampler("tcd", "TCD", "Automatic", "TCD", eta=0.3),
)

_FLOW_TABLE = (
    # For models that predict the flow from noise to picture; the model's config says how the steps shift with the size.
    _sampler("flow_euler", "Euler", "Simple", "FlowMatchEulerDiscrete"),
    _sampler("flow_euler_karras", "Euler", "Karras", "FlowMatchEulerDiscrete", **_KARRAS),
    _sampler("flow_euler_exponential", "Euler", "Exponential", "FlowMatchEulerDiscrete", **_EXPONENTIAL),
    _sampler("flow_euler_beta", "Euler", "Beta", "FlowMatchEulerDiscrete", **_BETA),
    _sampler("flow_dpmpp_2m", "DPM++ 2M", "Simple", "DPMSolverMultistep", **_2M, **_FLOW),
    _sampler("flow_unipc", "UniPC", "Simple", "UniPCMultistep", **_FLOW),
)

NOISE_SAMPLERS: tuple[str, ...] = tuple(sampler.name for sampler in _TABLE)
"""For models that predict the noise or the velocity."""

FLOW_SAMPLERS: tuple[str, ...] = tuple(sampler.name for sampler in _FLOW_TABLE)
"""For models that predict the flow."""

SAMPLERS: dict[str, Sampler] = {sampler.name: sampler for sampler in (*_TABLE, *_FLOW_TABLE)}


def find_sampler(name: str) -> Sampler:
    """The sampler of that name.

    Raises:
        ConfigError: no such sampler; the message names the nearest.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"sampler: there is no sampler {name!r}. {did_you_mean(name, SAMPLERS)}")
    return SAMPLERS[name]


def names_of(text: str) -> list[str]:
    """The samplers that other programs call so: `DPM++ 2M Karras`, `dpmpp 2m karras`, `UniPCMultistepScheduler`; none for other words."""
    asked = _key(text)
    found: list[str] = []
    for sampler in SAMPLERS.values():
        schedules = ("", "Automatic") if sampler.schedule in ("Automatic", "Simple") else ()
        labels = [f"{sampler.label} {schedule}" for schedule in (sampler.schedule, *schedules)]
        if asked in map(_key, (sampler.name, *labels)) or (asked == _key(sampler.scheduler) and not sampler.options):
            found.append(sampler.name)
    return found


def _key(text: str) -> str:
    return "".join(letter for letter in text.lower().replace("++", "pp").replace("ancestral", "a") if letter.isalnum())
