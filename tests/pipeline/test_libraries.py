"""What the engine imports in a process of its own, and that what it leaves out is there when it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from sdbatch.cell import Sampler
from sdbatch.pipeline.samplers import Draw, build_schedule

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SAMPLERS = [
    Sampler("euler_beta", "Euler", "Beta", "EulerDiscreteScheduler", (("use_beta_sigmas", True),)),
    Sampler("lms", "LMS", "Automatic", "LMSDiscreteScheduler"),
]
CODE = """
import sys
from sdbatch.config.arguments import read_arguments
from sdbatch.pipeline.build import build_engine
from sdbatch.run.prepare import prepare

cells = [prepare(read_arguments(["lora=[style_a]", "steps=1", "width=64", "height=64"])).plan.cell(0)]
engine = build_engine("diffusers", "cpu", 1)
engine.prepare(cells[0].recipe)
assert engine.start(cells, lambda done, total: None).finish()[0].fault is None
print([name for name in ("torch._dynamo", "transformers.models", "scipy.stats", "peft", "accelerate") if name in sys.modules])

import torch._dynamo
from tests.pipeline.test_libraries import scheduled
from transformers import BertModel
print(scheduled())
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(())).item(), BertModel.__name__)
"""


def scheduled() -> str:
    """The noise levels of samplers that compute with scipy, after a step."""
    found: list[list[float]] = []
    for sampler in SAMPLERS:
        schedule = build_schedule(sampler, CONFIG, Draw(4, [], []))
        levels = schedule.scheduler.sigmas
        schedule.step(levels[:1].view(1, 1, 1, 1), schedule.timesteps[0], levels[:1].view(1, 1, 1, 1))
        found.append(levels.tolist())
    return json.dumps(found)


def test_an_image_needs_no_compiler_no_statistics_and_no_list_of_models(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    ended = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    unused, levels, rest = ended.stdout.splitlines()
    assert unused == "[]"
    assert levels == scheduled()
    assert rest == "2.0 BertModel"
