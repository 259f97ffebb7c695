"""A plan equals what stock Hydra composes, job by job, for the same overrides."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sdbatch.config.compose import Composer
from sdbatch.config.schema import identity_defaults
from sdbatch.plan.cells import prune
from sdbatch.plan.identity import canonical
from tests.conftest import BASE
from tests.planning import plan_of

VALUES = {
    "seed": ["1", "2", "77"],
    "steps": ["5", "20", "30"],
    "guidance_scale": ["1", "2.5", "7"],
    "width": ["64", "128"],
    "clip_skip": ["1", "2"],
    "guidance_rescale": ["0", "0.7"],
    "prompt": ["a cat", "'a dog, sitting'"],
    "sampler": ["euler", "ddim", "dpmpp_2m_karras"],
    "vae": ["baked", "soft"],
    "lora": ["[]", "[red]", "[red,blue]", "blue"],
    "checkpoint": ["base", "other"],
    "memory.dtype": ["float32", "auto"],
}
sweeps = st.fixed_dictionaries(
    {}, optional={key: st.lists(st.sampled_from(options), min_size=1, max_size=3, unique=True) for key, options in VALUES.items()}
)


@pytest.mark.usefixtures("workspace")
@settings(
    max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sweep=sweeps.filter(lambda found: len(found) <= 4))
def test_every_cell_is_what_hydra_composes(sweep: dict[str, list[str]]) -> None:
    plan = plan_of(*[f"{key}={','.join(options)}" for key, options in sweep.items()])
    ours = sorted(canonical(plan.config(index)) for index in range(len(plan)))
    composer = Composer(overrides=BASE)
    jobs = product(*([f"{key}={option}" for option in options] for key, options in sweep.items()))
    hydras = {canonical(prune(composer.compose([*BASE, *job]).plain, identity_defaults())) for job in jobs}
    assert ours == sorted(hydras)


@pytest.mark.usefixtures("workspace")
def test_a_key_that_others_interpolate_is_composed_not_overlaid(workspace: Path) -> None:
    (workspace / "conf" / "experiment").mkdir(parents=True)
    (workspace / "conf" / "experiment" / "square.yaml").write_text("# @package _global_\nheight: ${width}\n")
    plan = plan_of("experiment=square", "width=64,128")
    assert [(plan.cell(index).width, plan.cell(index).height) for index in range(2)] == [(64, 64), (128, 128)]
