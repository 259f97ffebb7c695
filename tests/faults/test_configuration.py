"""Configurations and prompts of strangers: no code runs, nothing explodes, no secret leaves, every text stays what it is."""

from __future__ import annotations

import json
import os
import time
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdbatch.errors import SdbatchError
from sdbatch.results.folder import SweepFolder
from sdbatch.results.infotext import parse
from sdbatch.results.png import read_cell, read_texts
from sdbatch.results.reader import load_rows
from sdbatch.run.settle import redacted
from tests.conftest import BASE, Sdbatch
from tests.planning import image_ids, job_of, plan_of

REHEARSAL = (*BASE, "engine=rehearsal", "out=sweep", "steps=2", "width=64", "height=64")
SECRET = "hunter2-correct-horse"

TARGETS = {
    "os.system": "touch MARKER",
    "builtins.open": "{file: MARKER, mode: w}",
    "pathlib.Path.touch": "MARKER",
    "hydra.utils.instantiate": "{_target_: os.system, command: touch MARKER}",
    "torch.load": "MARKER",
}
PLACES = {
    "at the root": "_target_: {target}\n_args_: [{value}]\n",
    "in a group": "model:\n  _target_: {target}\n  _args_: [{value}]\n",
    "where any key is taken": "sampler:\n  options:\n    _target_: {target}\n    _args_: [{value}]\n",
    "in an item of a stack": "lora:\n  red:\n    file: red\n    _target_: {target}\n    _args_: [{value}]\n",
    "as the launcher": "hydra:\n  launcher:\n    _target_: {target}\n    _args_: [{value}]\n",
    "as a callback": "hydra:\n  callbacks:\n    mine:\n      _target_: {target}\n      _args_: [{value}]\n",
}
CASES = [("os.system", place) for place in PLACES] + [(target, "as the launcher") for target in TARGETS]


def write_option(workspace: Path, text: str) -> None:
    """`experiment=trap`: a YAML file of a stranger in the user's `./conf`."""
    folder = workspace / "conf/experiment"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trap.yaml").write_text(f"# @package _global_\n{text}")


@pytest.mark.parametrize(("target", "place"), CASES)
def test_a_target_is_never_called_wherever_it_stands(workspace: Path, target: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE", "os.system:builtins.open:torch.load:pathlib.Path.touch")
    value = TARGETS[target].replace("MARKER", str(workspace / "marker"))
    write_option(workspace, PLACES[place].format(target=target, value=value))
    with pytest.raises(SdbatchError, match=r"trap\.yaml: line \d: _target_ is not allowed"):
        plan_of("experiment=trap")
    assert not (workspace / "marker").exists()


@pytest.mark.parametrize("key", ["+x", "+sampler.options", "hydra.launcher", "+hydra.callbacks.mine", "+lora.red"])
def test_a_target_of_the_command_line_is_never_called(workspace: Path, key: str) -> None:
    with pytest.raises(SdbatchError, match="_target_ is not allowed"):
        plan_of(f"{key}._target_=os.system", f"+{key.lstrip('+')}.command='touch marker'")
    with pytest.raises(SdbatchError, match="_target_ is not allowed"):
        plan_of(f"{key}={{_target_:os.system,command:'touch marker'}}")
    assert not (workspace / "marker").exists()


def laughs(depth: int = 8) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("where", ["conf", "config-dir", "searchpath"])
def test_a_yaml_bomb_is_refused_at_once_wherever_it_lies(workspace: Path, where: str) -> None:
    folder = workspace / ("conf" if where == "conf" else "strange") / "experiment"
    folder.mkdir(parents=True)
    (folder / "trap.yaml").write_text(f"# @package _global_\n{laughs()}")
    more = {"conf": [], "config-dir": ["-cd", "strange"], "searchpath": [f"hydra.searchpath=[file://{workspace}/strange]"]}[where]
    start_s = time.process_time()
    with pytest.raises(SdbatchError, match=r"trap\.yaml: line 3: YAML aliases"):
        plan_of("experiment=trap", *more)
    assert time.process_time() - start_s < 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: !!python/object/apply:os.system ['touch marker']\n", "line 2: YAML tags"),
        (b"a: !!python/name:os.system\n", "line 2: YAML tags"),
        (b"prompt: one\nprompt: two\n", "duplicate"),
        (b"prompt:\n\t- a\n", "line 3"),
        (b"prompt: a\x00b\n", "not readable"),
        (b"prompt: \xff\xfe\n", "not readable"),
        (b"prompt: " + b"x" * 9_000_000, "over 8 MB"),
        (b"[" * 20_000, "deeper than"),
        (b"[]", "experiment/trap"),
    ],
    ids=["apply", "name", "duplicate", "tab", "nul", "latin-1", "huge", "deep", "list"],
)
def test_yaml_that_is_no_configuration_is_refused_with_its_line(workspace: Path, content: bytes, said: str) -> None:
    write_option(workspace, "")
    path = workspace / "conf/experiment/trap.yaml"
    path.write_bytes(path.read_bytes() + content)
    with pytest.raises(SdbatchError, match=said):
        plan_of("experiment=trap")
    assert not (workspace / "marker").exists()


DETOURS = [
    ["name=${oc.env:HARMLESS}"],
    ["name=env", '+sampler.options.note="${oc.${name}:HARMLESS}"'],
    ["paths.outputs=${oc.env:HARMLESS}", '+sampler.options.note="${paths.outputs}"'],
    ["paths.outputs=${oc.env:HARMLESS}", '+sampler.options.note="${oc.select:paths.outputs}"'],
    ["tracking.uri=${oc.env:HARMLESS}", 'model.name="${tracking.uri}"'],
    ["tracking.experiment=${oc.env:HARMLESS}"],
    ['+matrix.product={model.name:["${oc.env:HARMLESS}"]}'],
    ["+sampler.options.note=\"${oc.decode:'${oc.env:HARMLESS}'}\""],
    ["out=${oc.env:MY_API_TOKEN}"],
    ["tracking.uri=http://example.org/${oc.env:AWS_SECRET_ACCESS_KEY}"],
]


@pytest.mark.parametrize("overrides", DETOURS, ids=lambda overrides: overrides[-1])
@pytest.mark.usefixtures("workspace")
def test_no_detour_brings_the_environment_into_a_result(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HARMLESS", "MY_API_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    with pytest.raises(SdbatchError, match=r"environment variables can be used only in|a variable of this name holds a secret") as refused:
        plan_of(*overrides)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("written", ["negative_prompt=${oc.env:HARMLESS}", '+matrix.product={negative_prompt:["${oc.env:HARMLESS}"]}'])
@pytest.mark.usefixtures("workspace")
def test_a_prompt_that_names_the_environment_is_text(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARMLESS", SECRET)
    assert plan_of(written, sweep="matrix" in written).cell(0).negative_prompt == "${oc.env:HARMLESS}"


def test_folders_and_servers_may_come_from_the_environment(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(workspace / "scratch"))
    job = job_of(
        "out=${oc.env:SCRATCH}/sweep", "paths.models=[${oc.env:SCRATCH}/models,models]", "tracking.uri=http://${oc.env:HOST,there}:5000"
    )
    assert job.out == workspace / "scratch/sweep"
    assert job.settings.tracking_uri == "http://there:5000"
    with pytest.raises(SdbatchError, match="NOT_SET}: this environment variable is not set"):
        plan_of("out=${oc.env:NOT_SET}")


@pytest.mark.usefixtures("workspace")
def test_tokens_for_the_workers_are_not_written_down() -> None:
    variables = f"{{HF_TOKEN:{SECRET},NCCL_DEBUG:INFO}}"
    settings = job_of("hydra/launcher=ray", f"+hydra.launcher.runtime_env.env_vars={variables}").settings
    assert settings.launcher["runtime_env"]["env_vars"]["HF_TOKEN"] == SECRET
    written = redacted(settings)
    assert SECRET not in json.dumps(written)
    assert written["launcher"]["runtime_env"]["env_vars"] == {"NCCL_DEBUG": "INFO"}


HOSTILE = [
    "${oc.env:HF_TOKEN}",
    "a ${x} \\${y} $HOME `id` $(id) {a|b} [c] \\",
    'a fox"><script>alert(1)</script><img src=x onerror=alert(1)>',
    "a fox\nNegative prompt: forged\nSteps: 99, Sampler: none, Seed: 1",
    "../../../../etc/passwd",
    "/etc/passwd\x1b[31mred\x1b]0;title\x07",
    "=cmd|' /C calc'!A0",
    "{{7*7}} {% include '/etc/passwd' %}",
    "'; drop table runs; --",
    "e\u0301 \u00e9 \u202egnp.exe 🦊 \u200b\ufeff",
    "x" * 8000,
    "drill:fail\x1b[2J\x1b[31m",
]


class Page(HTMLParser):
    """The elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs), attrs


def test_hostile_prompts_stay_text_in_everything_that_is_written(
    workspace: Path, sdbatch: Sdbatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (workspace / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in HOSTILE), encoding="utf-8")
    done = sdbatch(*REHEARSAL, "matrix.prompts.file=prompts.jsonl", "tracking.uri=sqlite:///mlflow.db", "-m")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    folder = SweepFolder(workspace / "sweep")

    rows = {row["prompt"]: row for row in load_rows(folder).to_pylist()}
    assert set(rows) == set(HOSTILE)
    plain = {prompt for part in folder.parts() for prompt in pq.read_table(part, columns=["prompt"])["prompt"].to_pylist()}
    assert plain == set(HOSTILE)

    for prompt, row in rows.items():
        if row["status"] != "ok":
            continue
        image = folder.file(row["image"])
        assert read_cell(image)["prompt"] == prompt
        assert parse(read_texts(image)["parameters"]).prompt == prompt
        assert image.name == f"{row['image_id']}.png"

    page = Page((workspace / "sweep/grid.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 2, "the page's own script and its data"

    exported = sdbatch("export", "sweep", "format=parquet")
    assert exported.returncode == 0, exported.stderr
    shards = [pq.read_table(path, columns=["prompt"])["prompt"].to_pylist() for path in workspace.rglob("train-*.parquet")]
    assert {prompt for shard in shards for prompt in shard} == {prompt for prompt in HOSTILE if rows[prompt]["status"] == "ok"}

    told = done.stdout + done.stderr + sdbatch("status", "sweep").stdout
    assert "\x1b" not in told, "a prompt steers the terminal"
    for path in workspace.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    outside = {path.name for path in workspace.parent.iterdir()} | {path.name for path in workspace.iterdir()}
    assert not outside & {"etc", "passwd", "passwd.png"}


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large])
@given(prompts=st.lists(TEXTS.filter(str.strip), min_size=20, max_size=60))
def test_no_prompt_names_a_file(prompts: list[str], workspace: Path) -> None:
    (workspace / "p.jsonl").write_text("\n".join(json.dumps(prompt) for prompt in prompts), encoding="utf-8")
    plan = plan_of("matrix.prompts.file=p.jsonl")
    folder = SweepFolder(workspace / "sweep")
    paths = [folder.image_path(image_id, len(plan)) for image_id in image_ids(plan)]
    assert len({path.lower() for path in paths}) == len(plan)
    for path in paths:
        assert Path(os.path.realpath(folder.file(path))).is_relative_to(folder.path.resolve() / "images")
        assert path.isascii() and len(Path(path).name) < 80


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no prompts in it"),
        (b"\n \n\r\n", "no prompts in it"),
        (b"a fox\nfa\xe7ade\n", "line 2 is not UTF-8"),
        (b"a fox\na\x00b\n", "line 2 is not a prompt"),
        (b"a fox\n" + b"x" * 10_000_000 + b"\n", "line 2 is not a prompt"),
        (b"\xff\xfea\x00", "not UTF-8"),
    ],
    ids=["empty", "blank", "latin-1", "nul", "ten megabytes", "utf-16"],
)
def test_a_prompt_file_that_is_none_is_refused_with_its_line(workspace: Path, content: bytes, said: str) -> None:
    (workspace / "prompts.txt").write_bytes(content)
    with pytest.raises(SdbatchError, match=said):
        plan_of("matrix.prompts.file=prompts.txt")


def test_a_lone_surrogate_is_refused_before_anything_is_made(workspace: Path) -> None:
    (workspace / "prompts.jsonl").write_text('{"prompt": "a fox"}\n{"prompt": "a \\ud800 fox"}\n')
    with pytest.raises(SdbatchError, match="prompt"):
        plan_of("matrix.prompts.file=prompts.jsonl")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=4294967296", "seed"),
        ("seed=-1", "seed"),
        ("seed=1e3", "seed"),
        ("seed=9223372036854775808", "seed"),
        ("steps=0", "steps"),
        ("steps=1000000000", "steps"),
        ("width=513", "width"),
        ("width=0", "width"),
        ("guidance_scale=nan", "guidance_scale"),
        ("guidance_scale=inf", "guidance_scale"),
        ("guidance_rescale=1.5", "guidance_rescale"),
        ("clip_skip=0", "clip_skip"),
        ("batch_size=-1", "batch_size"),
        ("seed=range(3,3)", "no values"),
        ("name=CON/../x", "name"),
        ("name=x.", "name"),
        ("name=-rf", "name"),
        ("prompt='a fox <lora:style_a:0.8>'", r"prompt: .*'lora=\[style_a\]' lora.style_a.weight=0.8"),
        ("negative_prompt='<hypernet:bad>'", r"negative_prompt: .*'hypernetwork=\[bad\]'"),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_values_out_of_range_are_refused_by_key(override: str, said: str) -> None:
    with pytest.raises(SdbatchError, match=said):
        plan_of(override)


@pytest.mark.usefixtures("workspace")
def test_a_prompt_of_the_command_line_is_swept_only_with_m() -> None:
    for text in ("range(1,3)", "a fox, red (dark:1.2)", '"a fox, red (dark:1.2) 🦊"'):
        plan = plan_of(f"prompt={text}", sweep=False)
        assert len(plan) == 1
        assert plan.cell(0).prompt == text.strip('"')
    assert len(plan_of("prompt=range(1,3)")) == 2
    assert plan_of('prompt="range(1,3)"').cell(0).prompt == "range(1,3)"
