"""What a checkpoint predicts: the noise (epsilon), the velocity (v), or the flow."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from sdbatch.weights import training
from sdbatch.weights.header import Header
from sdbatch.weights.key import Keys
from sdbatch.weights.signature import V_PREDICTION_MARKERS, ZERO_SNR_MARKERS
from sdbatch.weights.value import read_values

_FLOW_FAMILIES = frozenset(
    {"flux", "flux2", "chroma", "sd3", "auraflow", "lumina2", "z_image", "sana", "qwen_image", "hidream", "wan", "ltx"}
)

_SD2_BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
_SD2_V_SPREAD = 0.09
"""Standard deviation of that bias above which an SD 2.x file predicts v. The published files lie well apart;
no name or shape tells them."""


class Prediction(NamedTuple):
    """What is known of the training target."""

    type: str | None
    zero_snr: bool


def find_prediction(header: Header, keys: Keys, kind: str, family: str | None) -> Prediction:
    """Prediction type by marker tensors, scheduler config, metadata, or (SD 2.x) one bias; None when nothing tells."""
    if kind not in {"checkpoint", "denoiser", "lora"}:
        return Prediction(None, zero_snr=False)
    zero_snr = keys.has_any(ZERO_SNR_MARKERS) or header.metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    config = header.values.get("scheduler.scheduler_config")
    scheduler = cast(dict[str, Any], config) if isinstance(config, dict) else {}
    if keys.has_any(V_PREDICTION_MARKERS):
        return Prediction("v_prediction", zero_snr)
    if isinstance(said := scheduler.get("prediction_type"), str):
        known = said if said in {"epsilon", "v_prediction", "sample"} else "flow"
        return Prediction(known, zero_snr or scheduler.get("rescale_betas_zero_snr") is True)
    if said := training.find_prediction_type(header.metadata):
        return Prediction(said, zero_snr)
    if family in _FLOW_FAMILIES:
        return Prediction("flow", zero_snr)
    if family == "sd2" and kind != "lora":
        return Prediction(_measure_sd2(header), zero_snr)
    return Prediction(None, zero_snr)


def _measure_sd2(header: Header) -> str | None:
    values = read_values(header, [name for name in (_SD2_BIAS,) if name in header.tensors]).get(_SD2_BIAS, ())
    if not values:
        return None
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    return "v_prediction" if spread > _SD2_V_SPREAD else "epsilon"
