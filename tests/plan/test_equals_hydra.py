"""A plan equals what stock Hydra composes, job by job, for the same choices, however they are written; and so does any slice of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sdbatch.config.compose import Composer
from sdbatch.config.schema import identity_defaults
from sdbatch.plan.cells import prune
from sdbatch.plan.identity import canonical
from sdbatch.plan.plan import Plan
from tests.conftest import BASE
from tests.planning import plan_of

Point = Mapping[str, str]
"""Key -> value, in Hydra's grammar."""

VALUES = {
    "width": ["64", "128"],
    "clip_skip": ["1", "2"],
    "guidance_rescale": ["0", "0.7"],
    "sampler": ["euler", "ddim", "dpmpp_2m_karras"],
    "vae": ["baked", "soft"],
    "checkpoint": ["base", "other"],
    "memory.dtype": ["float32", "auto"],
}
STACKS: list[Point] = [
    {"lora": "[]"},
    {"lora": "[red]", "lora.red.weight": "0.5"},
    {"lora": "[red,blue]"},
    {"lora": "[blue]", "steps": "9"},
]
PROMPTS: dict[str, list[Point]] = {
    "matrix.prompts.file=prompts.csv": [{"prompt": "'a dog, sitting'", "height": "64"}, {"prompt": "'a ${x} cat'", "height": "128"}],
    "matrix.prompts.text=['a {red|blue} fox']; matrix.prompts.template=all": [{"prompt": "'a red fox'"}, {"prompt": "'a blue fox'"}],
    "matrix.prompts.text=['a {red|blue} fox',b]": [{"prompt": "'a {red|blue} fox'"}, {"prompt": "b"}],
}


@dataclass(frozen=True)
class Written:
    """A sweep as it is written, and all that it says."""

    arguments: tuple[str, ...]
    points: tuple[Point, ...]
    draws: int | None


@st.composite
def sweeps(draw: st.DrawFn) -> Written:
    """Axes of every kind, with what is left out and random draws."""
    arguments: list[str] = []
    axes: list[list[Point]] = []
    for key in draw(st.lists(st.sampled_from(list(VALUES)), max_size=2, unique=True)):
        values = draw(st.lists(st.sampled_from(VALUES[key]), min_size=2, unique=True))
        arguments.append(f"{key}={','.join(values)}")
        axes.append([{key: value} for value in values])
    if draw(st.booleans()):
        seeds, texts = ["7", "3"], ["c", "d"]
        arguments.append(f"matrix.zip={{seed:[{','.join(seeds)}],negative_prompt:[{','.join(texts)}]}}")
        axes.append([{"seed": seed, "negative_prompt": text} for seed, text in zip(seeds, texts, strict=True)])
    if stacks := draw(st.lists(st.sampled_from(STACKS), max_size=3, unique_by=str)):
        items = ",".join("{" + ",".join(f"{key}:{value}" for key, value in stack.items()) + "}" for stack in stacks)
        arguments.append(f"matrix.list=[{items}]")
        axes.append(list(stacks))
    if prompts := draw(st.sampled_from([None, *PROMPTS])):
        arguments += prompts.split("; ")
        axes.append(PROMPTS[prompts])
    points = [{key: value for part in parts for key, value in part.items()} for parts in product(*axes)]
    draws = draw(st.one_of(st.none(), st.integers(1, len(points))))
    if draws is not None:
        arguments.append(f"matrix.draws={draws}")
    # Never all of them: the first point stays.
    elif left_out := [point for point in points[1:] if draw(st.integers(0, 4)) == 0 and not any(key.startswith("lora") for key in point)]:
        items = [",".join(f"{key}:{value}" for key, value in point.items()) for point in left_out]
        arguments.append(f"matrix.exclude=[{','.join('{' + item + '}' for item in items)}]")
        points = [point for point in points if point not in left_out]
    return Written(tuple(arguments), tuple(points), draws)


@pytest.fixture
def composed(workspace: Path) -> Callable[[Point], str]:
    """What stock Hydra composes for a point; each once, for it takes a fifth of a second."""
    (workspace / "prompts.csv").write_text('prompt,height\n"a dog, sitting",64\na ${x} cat,128\n')
    composer = Composer(overrides=BASE)
    known: dict[str, str] = {}

    def compose(point: Point) -> str:
        key = str(sorted(point.items()))
        if key not in known:
            texts = {name: value.strip("'") for name, value in point.items() if name == "prompt"}
            job = [f"{name}={value}" for name, value in point.items() if name not in texts]
            known[key] = canonical(prune(composer.compose([*BASE, *job], texts).plain, identity_defaults()))
        return known[key]

    return compose


@settings(
    max_examples=10, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sweep=sweeps().filter(lambda sweep: len(sweep.points) <= 16), cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_every_cell_is_what_hydra_composes(sweep: Written, cuts: tuple[float, float], composed: Callable[[Point], str]) -> None:
    plan = plan_of(*sweep.arguments)
    ours = sorted(canonical(plan.config(index)) for index in range(len(plan)))
    hydras = sorted({composed(point) for point in sweep.points})
    if sweep.draws is None:
        assert ours == hydras
    else:
        assert len(ours) == len(set(ours)) == sweep.draws and set(ours) <= set(hydras)
    check_slice(plan, *sorted(round(cut * len(plan)) for cut in cuts))


def check_slice(plan: Plan, first: int, last: int) -> None:
    """A slice is that stretch of the whole."""

    def columns(first: int, last: int) -> list[Any]:
        cells = plan.slice(first, last)
        return [column.tolist() for column in (*cells.points, cells.group, cells.recipe, cells.shard, cells.ids)]

    assert columns(first, last) == [column[first:last] for column in columns(0, len(plan))]


@pytest.mark.usefixtures("workspace")
def test_a_key_that_others_interpolate_is_composed_not_overlaid(workspace: Path) -> None:
    (workspace / "conf" / "experiment").mkdir(parents=True)
    (workspace / "conf" / "experiment" / "square.yaml").write_text("# @package _global_\nheight: ${width}\n")
    plan = plan_of("experiment=square", "width=64,128")
    assert [(plan.cell(index).width, plan.cell(index).height) for index in range(2)] == [(64, 64), (128, 128)]
