"""Every mistake gets one clear sentence with the key to type and the nearest valid names. All faults come at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sdbatch.errors import SdbatchError
from tests.planning import plan_of

GOLDEN = Path(__file__).parent.parent / "golden" / "errors.txt"
CASES = [
    ["stepz=3"],
    ["lora=rad"],
    ["sampler=eulr"],
    ["vae=nope"],
    ["steps=abc"],
    ["steps=0,5000", "seed=4294967296", "width=100", "guidance_scale=inf"],
    ["seed=-1"],
    ["seed=1.5"],
    ["lora=[red]", "lora.blue.weight=1"],
    ["lora=[],[red]", "lora.red.weight=0.1,0.2"],
    ["lora=[red]", "lora.red.wieght=1"],
    ["controlnet=[edges]"],
    ["controlnet=[edges]", "controlnet.edges.image=gone.png"],
    ["controlnet=[edges]", "controlnet.edges.image=control.png", "controlnet.edges.start=0.5", "controlnet.edges.end=0.5"],
    ["prompt=a (cat:1.2)"],
    ["memory.dtype=int8"],
    ["batch_size=0"],
    ["prompt=x", "name=../etc"],
    ["name='${oc.env:HOME}'"],
    ["name='${nam}'"],
    ["matrix.product={seed:5}"],
    ["matrix.zip={seed:[1,2],steps:[3]}"],
    ["matrix.prompts.file=gone.txt"],
    ["seed=1,2", "matrix.product={seed:[3]}"],
    ["seed=1,2", "seed=3"],
    ["lora.red.weight=strong", "lora=[red]"],
    ["output.grid=maybe"],
    ["model=sdxl2"],
    ["family.config=gone"],
    ["checkpoint.file=gone.safetensors"],
    ["hydra/launcher=basic"],
    ["matrix.draws=9"],
    ["sampler.options._target_=os.system"],
    ["+sed.x=1"],
    ["lora=[red]", "+lora.red.wieght=1"],
    ["~seed"],
    ["checkpoint=/there/is.safetensors"],
    ["lora=[red,/there/is.safetensors]"],
    ["sed=1", "stepz=3", "sampler=eulr", "steps=abc"],
    ["lora=[glob(*)]"],
    ["hydra.run.dir=there"],
]


@pytest.fixture
def no_embedded(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    """Messages list what is there; what ships with sdbatch changes, the workspace's files do not."""
    for module in ("sdbatch.weights.catalog", "sdbatch.plan.files"):
        monkeypatch.setattr(f"{module}.embedded_root", lambda: workspace / "nothing-embedded")


@pytest.mark.usefixtures("no_embedded")
def test_error_messages_are_as_reviewed(workspace: Path) -> None:
    told: list[str] = []
    for case in CASES:
        with pytest.raises(SdbatchError) as caught:
            plan_of(*case)
        told.append(f"$ {' '.join(case)}\n{str(caught.value).replace(str(workspace), '.')}\n")
    text = "\n".join(told)
    if not GOLDEN.exists():
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sed: 3", r"mine.yaml: sed: there is no such key. Did you mean seed"),
        ("lora: {red: {wieght: 3}}", r"mine.yaml: lora.red.wieght: there is no such key. Did you mean lora.red.weight"),
        ("steps: abc", r"mine.yaml: steps: 'abc' is not a whole number"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_file(workspace: Path, text: str, said: str) -> None:
    (workspace / "conf/experiment").mkdir(parents=True)
    (workspace / "conf/experiment/mine.yaml").write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(SdbatchError, match=said):
        plan_of("experiment=mine")


@pytest.mark.parametrize(("option", "package"), [("lora/red", "lora.red"), ("model/mine", "_global_"), ("experiment/mine", "_global_")])
def test_a_file_without_its_package_line_is_told_which(workspace: Path, option: str, package: str) -> None:
    path = workspace / f"conf/{option}.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("weight: 0.8\n" if option == "lora/red" else "steps: 7\n")
    group, name = option.split("/")
    with pytest.raises(SdbatchError, match=f"first line must be: # @package {re.escape(package)}$"):
        plan_of(f"{group}=[{name}]" if group == "lora" else f"{group}={name}")


@pytest.mark.usefixtures("workspace")
def test_a_sweep_without_m_says_so() -> None:
    with pytest.raises(SdbatchError, match=r"this sweeps seed\. Add -m"):
        plan_of("seed=1,2", sweep=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [x, x]\nb: *a\n", "aliases"),
        ("a: !!python/object/apply:os.system [id]\n", "tags"),
        ("a: [1\n", "not readable as YAML"),
        ("prompt: one\nprompt: two\n", "duplicate"),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_yaml_that_is_a_trap_is_refused(workspace: Path, text: str, said: str) -> None:
    (workspace / "conf/experiment").mkdir(parents=True)
    (workspace / "conf/experiment/trap.yaml").write_text(f"# @package _global_\n{text}")
    with pytest.raises(SdbatchError, match=said):
        plan_of("experiment=trap")
