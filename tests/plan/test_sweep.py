"""Axes: from the command line, from matrix, from files, and at random."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from sdbatch.errors import ConfigError, PlanError
from sdbatch.plan.outline import axis_lines, axis_summary
from tests.planning import image_ids, job_of, plan_of, values

pytestmark = pytest.mark.usefixtures("workspace")


def test_a_comma_is_two_jobs_and_brackets_are_one_stack() -> None:
    separate = plan_of("lora=red,blue")
    assert [[file.name for file in separate.cell(index).recipe.loras] for index in range(2)] == [["red"], ["blue"]]
    stack = plan_of("lora=[red,blue]")
    assert [file.name for file in stack.cell(0).recipe.loras] == ["red", "blue"]
    assert len(stack) == 1


def test_strengths_are_the_cells_and_files_the_recipes() -> None:
    plan = plan_of("lora=[red,blue]", "lora.red.weight=0,0.5,1", "lora.blue.text_encoder_weight=0.25")
    assert len(plan.recipes) == 1
    assert [plan.cell(index).strengths[0].model for index in range(3)] == [0.0, 0.5, 1.0]
    assert plan.cell(0).strengths[0].text_encoder == 0.0
    assert plan.cell(0).strengths[1].text_encoder == 0.25


def test_the_plan_loads_each_checkpoint_once() -> None:
    plan = plan_of("seed=range(0,3)", "lora=red,blue", "checkpoint=base,other")
    order = [plan.cell(index).recipe for index in range(len(plan))]
    changes = [
        (recipe.checkpoint.name, recipe.loras[0].name) for index, recipe in enumerate(order) if index == 0 or recipe != order[index - 1]
    ]
    assert changes == [("base", "red"), ("base", "blue"), ("other", "red"), ("other", "blue")]


def test_cells_of_one_size_stand_together() -> None:
    plan = plan_of("seed=range(0,3)", "width=64,128")
    assert values(plan, "width") == [64, 64, 64, 128, 128, 128]


def test_equal_cells_are_made_once() -> None:
    assert len(plan_of("seed=1,1,2")) == 2


def test_matrix_multiplies_product_zip_and_list_and_leaves_out() -> None:
    plan = plan_of(
        "matrix.product={seed:[1,2]}",
        "matrix.zip={prompt:[a,b],negative_prompt:[c,d]}",
        "matrix.list=[{steps:5},{steps:9,guidance_scale:3}]",
        "matrix.exclude=[{seed:2,prompt:b}]",
    )
    assert len(plan) == 2 * 2 * 2 - 2
    cells = [plan.cell(index) for index in range(len(plan))]
    assert {(cell.prompt, cell.negative_prompt) for cell in cells} == {("a", "c"), ("b", "d")}
    assert {(cell.steps, cell.guidance_scale) for cell in cells} == {(5, 2.5), (9, 3.0)}


def test_a_list_may_choose_other_stacks_with_their_own_strengths() -> None:
    plan = plan_of("matrix.list=[{lora:[]},{lora:[red],lora.red.weight:0.5},{lora:[red,blue],lora.blue.weight:0.2}]")
    cells = [plan.cell(index) for index in range(3)]
    assert sorted(tuple(strength.model for strength in cell.strengths) for cell in cells) == [(), (0.5,), (1.0, 0.2)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prompts.txt", "a red fox\n\na cat, sitting (best:1.2)\n"),
        ("prompts.csv", 'prompt,seed\na red fox,1\n"a cat, sitting (best:1.2)",2\n'),
        ("prompts.jsonl", '{"prompt": "a red fox"}\n"a cat, sitting (best:1.2)"\n'),
    ],
)
def test_prompt_files(workspace: Path, name: str, text: str) -> None:
    (workspace / name).write_text("\ufeff" + text.replace("\n", "\r\n"), encoding="utf-8")
    plan = plan_of(f"matrix.prompts.file={name}")
    assert sorted(plan.cell(index).prompt for index in range(2)) == ["a cat, sitting (best:1.2)", "a red fox"]


def test_a_parquet_prompt_file_brings_any_keys(workspace: Path) -> None:
    import pandas as pd

    pd.DataFrame({"prompt": ["a", "b"], "seed": [7, 8], "guidance_scale": [2.0, 3.0]}).to_parquet(workspace / "p.parquet")
    plan = plan_of("matrix.prompts.file=p.parquet")
    assert [(cell.prompt, cell.seed, cell.guidance_scale) for cell in map(plan.cell, range(2))] == [("a", 7, 2.0), ("b", 8, 3.0)]


def test_templates_and_wildcards_expand_and_unknown_ones_are_refused(workspace: Path) -> None:
    (workspace / "wild").mkdir()
    (workspace / "wild" / "animal.txt").write_text("fox\nowl\n")
    source = ["matrix.prompts.template=all", "matrix.prompts.wildcards=wild"]
    plan = plan_of("matrix.prompts.text=['a {red|blue} __animal__']", *source)
    assert sorted(plan.cell(index).prompt for index in range(4)) == ["a blue fox", "a blue owl", "a red fox", "a red owl"]
    with pytest.raises(ConfigError, match="no wildcard 'anmal'"):
        plan_of("matrix.prompts.text=['a __anmal__']", *source)


def test_without_templates_braces_are_text() -> None:
    assert plan_of("matrix.prompts.text=['a {red|blue} fox']").cell(0).prompt == "a {red|blue} fox"


def test_draws_are_distinct_repeatable_and_sample_intervals() -> None:
    axes = ["seed=range(0,1000)", "prompt=a,b,c", "matrix.draws=50"]
    first, again = plan_of(*axes), plan_of(*axes)
    assert image_ids(first) == image_ids(again)
    assert len(set(image_ids(first))) == 50
    assert image_ids(plan_of(*axes, "matrix.draw_seed=1")) != image_ids(first)
    drawn = plan_of("guidance_scale=interval(3,9)", "matrix.draws=20")
    assert all(3 <= drawn.cell(index).guidance_scale <= 9 for index in range(20))
    with pytest.raises(ConfigError, match=r"matrix\.draws=N"):
        plan_of("guidance_scale=interval(3,9)")
    with pytest.raises(ConfigError, match="only 6 distinct points"):
        plan_of("seed=1,2", "prompt=a,b,c", "matrix.draws=7")


@pytest.mark.parametrize("prompt", ["a ${x} fox", "${", "{a|b}, (c:1.2) [d]", 'it\'s "quoted" \\ back', "äöü 🦊", "a, b, c", "range(1,3)"])
def test_a_prompt_comes_out_unchanged(prompt: str) -> None:
    plan = plan_of(f"prompt={prompt}", sweep=False)
    assert len(plan) == 1
    assert plan.cell(0).prompt == prompt
    assert json.loads(plan.cell(0).config)["prompt"] == prompt


def test_a_prompt_with_interpolation_in_yaml_is_text(workspace: Path) -> None:
    (workspace / "conf" / "experiment").mkdir(parents=True)
    (workspace / "conf" / "experiment" / "odd.yaml").write_text('# @package _global_\nprompt: "costs ${steps} coins"\n')
    assert plan_of("experiment=odd", sweep=False).cell(0).prompt == "costs ${steps} coins"


@pytest.mark.parametrize(
    "written",
    [
        "matrix.list=[{prompt:'PROMPT',width:64}]",
        "matrix.product={prompt:['PROMPT']}",
        "matrix.zip={prompt:['PROMPT'],seed:[1]}",
        "matrix.prompts.text=['PROMPT']",
    ],
)
@pytest.mark.parametrize("prompt", ["a ${x} fox", "costs \\${steps} coins"])
def test_a_prompt_within_a_matrix_is_text(written: str, prompt: str) -> None:
    assert plan_of(written.replace("PROMPT", prompt)).cell(0).prompt == prompt.replace("\\", "")


def test_a_prompt_with_interpolation_can_be_left_out() -> None:
    plan = plan_of("matrix.prompts.text=['a ${x} fox',b]", "matrix.exclude=[{prompt:'a ${x} fox'}]")
    assert [plan.cell(index).prompt for index in range(len(plan))] == ["b"]


def test_the_folder_stays_when_an_axis_grows_and_changes_with_what_is_fixed() -> None:
    short, long = job_of("seed=range(0,2)", "lora=red,blue"), job_of("seed=range(0,9)", "lora=red")
    assert short.out != job_of("seed=range(0,2)", "lora=red,blue", "steps=9").out
    assert short.out == job_of("seed=range(0,9)", "lora=red,blue").out
    assert long.out != short.out
    weak, strong = job_of("lora=[red]", "lora.red.weight=0.1"), job_of("lora=[red]", "lora.red.weight=0.9")
    assert weak.out != strong.out
    assert weak.config["lora"]["red"]["weight"] == 0.1


def test_excluding_everything_is_said() -> None:
    with pytest.raises(ConfigError, match="leaves out every cell"):
        plan_of("seed=1,2", "matrix.exclude=[{steps:20}]")


def test_excluding_an_option_that_is_not_swept_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"matrix\.exclude: sampler chooses options and is not swept here"):
        plan_of("seed=1,2", "sampler=euler", "matrix.exclude=[{sampler:euler,seed:2}]")


def test_block_weights_are_an_axis_in_presets_and_numbers_and_checked_for_the_family() -> None:
    plan = plan_of("lora=[red]", "lora.red.blocks=MIDD,NONE", "seed=1,2")
    assert [plan.cell(index).strengths[0].blocks for index in range(4)] == ["MIDD", "MIDD", "NONE", "NONE"]
    assert len(set(image_ids(plan))) == 4
    assert plan_of("lora=[red]", f"lora.red.blocks={[1] * 17}").cell(0).strengths[0].blocks == ",".join(["1"] * 17)
    assert image_ids(plan_of("lora=[red]", "lora.red.strict=true")) == image_ids(plan_of("lora=[red]"))
    with pytest.raises(PlanError, match=r"lora\.red\.blocks: 3 numbers were given; LoRAs of sd1 have 17 or 26"):
        plan_of("lora=[red]", "lora.red.blocks=[1,0,1]")
    with pytest.raises(PlanError, match=r"lora\.red\.blocks: there is no preset 'MID'\. Did you mean MIDD"):
        plan_of("lora=[red]", "lora.red.blocks=MID,ALL")


def test_hypernetworks_are_a_stack_with_a_weight_that_is_swept(workspace: Path) -> None:
    folder = workspace / "models/hypernetworks"
    folder.mkdir()
    state = {f"linear.{n}.{kind}": torch.zeros(32, 32)[: 32 if kind == "weight" else 1] for n in range(2) for kind in ("weight", "bias")}
    torch.save({32: (state, state), "layer_structure": [1, 1, 1]}, folder / "fine.pt")
    plan = plan_of("hypernetwork=[fine]", "hypernetwork.fine.weight=0,0.5")
    assert len(plan.recipes) == 1
    assert [plan.cell(index).hypernetwork_weights for index in range(2)] == [(0.0,), (0.5,)]
    assert len({*image_ids(plan), *image_ids(plan_of())}) == 3
    torch.save({768: (state, state)}, folder / "wide.pt")
    with pytest.raises(PlanError, match=r"hypernetwork\.wide: wide is a hypernetwork for SD 1\.x .*Fitting here: fine"):
        plan_of("hypernetwork=[wide]")
    with pytest.raises(PlanError, match=r"hypernetwork\.fine\.weight: 11.0 is out of range"):
        plan_of("hypernetwork=[fine]", "hypernetwork.fine.weight=11")


def test_an_axis_that_changes_no_image_is_refused() -> None:
    with pytest.raises(PlanError, match="batch_size: does not change the image"):
        plan_of("batch_size=1,2")


def test_glob_sweeps_the_options_of_a_group() -> None:
    plan = plan_of("sampler=glob(euler_*,exclude=*_a*)")
    assert {plan.cell(index).sampler.name for index in range(len(plan))} == {
        "euler_karras",
        "euler_exponential",
        "euler_beta",
        "euler_trailing",
    }


def test_a_sweep_in_hydras_own_yaml_is_taken(workspace: Path) -> None:
    (workspace / "jobs").mkdir()
    text = "defaults: [config, _self_]\nhydra: {sweeper: {params: {seed: 'range(0,3)', lora: 'red,blue'}}}\n"
    (workspace / "jobs/mine.yaml").write_text(text)
    assert len(plan_of("-cd", "jobs", "-cn", "mine", sweep=False)) == 6
    assert len(plan_of("-cd", "jobs", "-cn", "mine", "seed=1,2")) == 4


JOB = """defaults: [config, _self_]
prompt: a car
matrix:
  product: {seed: 'range(0,3)', guidance_scale: 'interval(1,2)'}
  zip: {width: [64, 128], height: [128, 64]}
  list: [{steps: 5}, {steps: 9, clip_skip: 2}]
  prompts: {text: [a fox, a cat]}
  draws: 12
"""


@pytest.mark.parametrize(
    ("given", "key", "expected"),
    [
        ("seed=7", "seed", {7}),
        ("seed=range(20,30)", "seed", set(range(20, 30))),
        ("guidance_scale=5", "guidance_scale", {5.0}),
        ("guidance_scale=interval(8,9)", "guidance_scale", None),
        ("width=64", "width", {64}),
        ("steps=7", "steps", {7}),
        ("prompt=an owl", "prompt", {"an owl"}),
        ("matrix.product.seed=[8,9]", "seed", {8, 9}),
        ("matrix.prompts.text=[an owl]", "prompt", {"an owl"}),
    ],
)
def test_the_command_line_takes_an_axis_from_a_job(workspace: Path, given: str, key: str, expected: set[object] | None) -> None:
    (workspace / "conf").mkdir()
    (workspace / "conf/job.yaml").write_text(JOB)
    cells = [plan.cell(index) for plan in [plan_of("-cn", "job", given)] for index in range(len(plan))]
    found = {getattr(cell, key) for cell in cells}
    assert found <= expected if expected else all(8 <= value <= 9 for value in found)
    others = {"seed", "width", "steps", "prompt"} - {key}
    assert all(len({getattr(cell, other) for cell in cells}) > 1 for other in others), "the other axes stay, those tied to it too"


def test_an_axis_of_a_job_can_be_taken_out(workspace: Path) -> None:
    (workspace / "conf").mkdir()
    (workspace / "conf/job.yaml").write_text(JOB.replace("  draws: 12\n", "").replace(", guidance_scale: 'interval(1,2)'", ""))
    assert len(plan_of("-cn", "job", "~matrix.product.seed")) == 8


def test_plans_show_the_values_of_their_axes_and_which_keys_go_together() -> None:
    plan = plan_of("seed=range(0,9)", "lora=[red]", "matrix.zip={prompt:['a fox, sitting',b],lora.red.weight:[0.5,1.0]}", "clip_skip=1")
    assert axis_lines(plan) == [
        "axis     seed: 9 (0, 1, 2, ..., 8)",
        "axis     prompt: 2 (a fox, sitting | b)",
        "with     lora.red.weight: 2 (0.5, 1)",
    ]
    assert axis_summary(plan) == "seed (9) x prompt, lora.red.weight (2: a fox, sitting | b)"


def test_pictures_of_a_job_are_looked_for_beside_it(workspace: Path) -> None:
    (workspace / "elsewhere").mkdir()
    for place, colour in (("elsewhere", "red"), (".", "blue")):
        for name in ("one.png", "two.png"):
            Image.new("RGB", (8, 8), colour).save(workspace / place / name)
    Image.new("RGB", (8, 8), "green").save(workspace / "here.png")
    job = "defaults: [config, {override task: img2img}, _self_]\ntask: {image: one.png}\n"
    (workspace / "elsewhere/fixed.yaml").write_text(job)
    (workspace / "elsewhere/swept.yaml").write_text(f"{job}matrix: {{product: {{task.image: [one.png, two.png, here.png]}}}}\n")

    def pictures(*given: str) -> list[str]:
        plan = plan_of("-cd", "elsewhere", "-cn", *given)
        sources = [plan.cell(index).source for index in range(len(plan))]
        return [str(Path(source.image).relative_to(workspace)) for source in sources if source is not None]

    assert pictures("fixed") == ["elsewhere/one.png"]
    assert pictures("fixed", "task.image=one.png") == ["one.png"]
    assert pictures("fixed", "task.image=one.png,two.png") == ["one.png"], "they are alike"
    assert pictures("swept") == ["elsewhere/one.png", "here.png"]
    assert pictures("swept", "matrix.product.task.image=[two.png]") == ["two.png"]


def test_a_column_of_a_prompt_file_that_is_no_key_is_told_with_the_file(workspace: Path) -> None:
    (workspace / "p.csv").write_text("id,prompt,lora,lora.red.weight\n7,a cat,[red],0.5\n")
    with pytest.raises(ConfigError, match=r"matrix\.prompts\.file=p\.csv: its column 'id' is no key"):
        plan_of("matrix.prompts.file=p.csv")
    (workspace / "p.csv").write_text("prompt,lora,lora.red.weight\na cat,[red],0.5\n")
    assert plan_of("matrix.prompts.file=p.csv").cell(0).strengths[0].model == 0.5
