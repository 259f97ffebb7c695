"""Models whose noise schedule ends in pure noise: which samplers can begin there is known before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdbatch.errors import PlanError
from tests.conftest import narrow_checkpoint
from tests.planning import plan_of
from tests.weights.writer import write_safetensors

pytestmark = pytest.mark.usefixtures("workspace")


def faults_of(*overrides: str) -> list[str]:
    with pytest.raises(PlanError) as caught:
        plan_of(*overrides)
    return [f"{fault.key}: {fault.message}" for fault in caught.value.faults]


def test_every_sampler_that_cannot_begin_in_noise_is_told_with_the_other_faults(workspace: Path) -> None:
    markers: dict[str, tuple[int, ...]] = {"v_pred": (0,), "ztsnr": (0,)}
    write_safetensors(workspace / "models/checkpoints/noisy.safetensors", narrow_checkpoint() | markers, metadata={"content": "noisy"})
    write_safetensors(workspace / "models/embeddings/long.safetensors", {"emb_params": (2, 64)})
    said = faults_of("checkpoint=base,noisy", "sampler=euler,heun,dpm2_karras,heun", "embedding=[long]", "seed=1,2")
    ends = "whose noise schedule ends in pure noise (zero terminal SNR). Choose one of euler, euler_karras, "
    assert [text.partition("euler_karras, ")[0] + "euler_karras, " for text in said if text.startswith("sampler")] == [
        f"sampler: {name} cannot run noisy, {ends}" for name in ("heun", "dpm2_karras")
    ]
    assert any(text.startswith("embedding.long") for text in said)
    assert len(plan_of("checkpoint=base,noisy", "sampler=euler,ddim,unipc")) == 6
    assert len(plan_of("checkpoint=base", "sampler=heun")) == 1
    assert len(plan_of("checkpoint=noisy", "sampler=heun", "checkpoint.zero_snr=false")) == 1
    assert len(plan_of("checkpoint=noisy", "sampler=heun", "engine=rehearsal")) == 1


def test_what_the_user_or_the_family_s_config_says_counts_too(workspace: Path) -> None:
    assert "sampler: heun cannot run base" in faults_of("checkpoint.zero_snr=false,true", "sampler=heun")[0]
    (workspace / "configs/scheduler").mkdir()
    (workspace / "configs/scheduler/scheduler_config.json").write_text(json.dumps({"rescale_betas_zero_snr": True}))
    assert "sampler: lms cannot run base" in faults_of("sampler=lms")[0]
