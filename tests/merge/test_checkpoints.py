"""Checkpoints merged into a file: equal to sd-mecha's, committed whole or not at all, and what does not fit is refused."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdbatch.cell import Merge, WeightFile
from sdbatch.errors import ConfigError, FolderError, WeightFileError
from sdbatch.merge.blocks import read_blocks
from sdbatch.merge.checkpoint import Order, make_checkpoint, merge_weights
from sdbatch.merge.convert import Change, convert
from sdbatch.merge.source import open_source
from sdbatch.merge.table import find_fault
from tests.conftest import heed_interrupts
from tests.merge.conftest import quiet, weight_file
from tests.pipeline.models import save
from tests.pipeline.zoo import Zoo


def test_the_ends_of_the_ratio_are_the_sources(tiny: WeightFile, pastel: WeightFile, tmp_path: Path) -> None:
    for ratio, source in ((0.0, tiny), (1.0, pastel)):
        out = tmp_path / f"{ratio}.safetensors"
        make_checkpoint(Order(tiny, out, Merge(pastel, ratio=ratio)), quiet)
        found, wanted = load_file(out), load_file(source.path)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_layouts_mix(tiny: WeightFile, pastel: WeightFile, tmp_path: Path) -> None:
    convert(Change(pastel, tmp_path / "folder"), quiet)
    folder = WeightFile("folder", str(tmp_path / "folder"), "0" * 64)
    for name, other in (("single", pastel), ("folder", folder)):
        make_checkpoint(Order(tiny, tmp_path / f"{name}.safetensors", Merge(other, ratio=0.3)), quiet)
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("single", "folder"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    make_checkpoint(Order(folder, tmp_path / "from_folder.safetensors", Merge(tiny, ratio=0.7)), quiet)
    third = load_file(tmp_path / "from_folder.safetensors")
    assert third.keys() == one.keys()
    assert max(float((one[name].float() - third[name].float()).abs().max()) for name in one) < 0.01


def test_it_says_what_it_was_made_of(tiny: WeightFile, pastel: WeightFile, tmp_path: Path) -> None:
    make_checkpoint(Order(tiny, tmp_path / "new.safetensors", Merge(pastel, tiny, "ties", 0.4, density=0.2)), quiet)
    said = open_source(weight_file(tmp_path / "new.safetensors")).metadata
    recipe = json.loads(said["sdbatch.merge"])
    assert recipe["checkpoint"] == {"name": "tiny", "sha256": tiny.sha256}
    assert recipe["merge"]["b"] == {"name": "tiny_pastel", "sha256": pastel.sha256}
    assert (recipe["merge"]["method"], recipe["merge"]["ratio"], recipe["merge"]["density"]) == ("ties", 0.4, 0.2)
    assert said["modelspec.merged_from"] == "tiny, tiny_pastel, tiny"
    assert said["modelspec.prediction_type"] == "v"
    assert said["modelspec.architecture"]


def test_equal_orders_write_equal_bytes(tiny: WeightFile, pastel: WeightFile, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        make_checkpoint(Order(tiny, tmp_path / folder / "new.safetensors", Merge(pastel, tiny, "dare", seed=3)), quiet)
    assert (tmp_path / "one/new.safetensors").read_bytes() == (tmp_path / "two/new.safetensors").read_bytes()


def test_nothing_is_overwritten(tiny: WeightFile, pastel: WeightFile, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    out.write_text("precious")
    with pytest.raises(WeightFileError, match="is there already, and is never overwritten"):
        make_checkpoint(Order(tiny, out, Merge(pastel)), quiet)
    assert out.read_text() == "precious"


def test_a_name_taken_meanwhile_is_not_overwritten(tiny: WeightFile, pastel: WeightFile, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"

    def take(done: int, total: int) -> None:
        out.write_text("another's")

    with pytest.raises(WeightFileError, match="another program has written this name"):
        make_checkpoint(Order(tiny, out, Merge(pastel)), take)
    assert out.read_text() == "another's"
    assert [path.name for path in tmp_path.iterdir()] == ["new.safetensors"]


def test_a_fault_on_the_way_leaves_nothing(tiny: WeightFile, pastel: WeightFile, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_checkpoint(Order(tiny, tmp_path / "new.safetensors", Merge(pastel)), stop)
    assert list(tmp_path.iterdir()) == []


def test_what_the_file_system_refuses_is_told_of_the_new_file_and_leaves_nothing(
    tiny: WeightFile, pastel: WeightFile, tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(FolderError, match=r"cannot write \S+/new\.safetensors: the file is larger than the limit") as told:
            make_checkpoint(Order(tiny, tmp_path / "new.safetensors", Merge(pastel)), quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ".tmp" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


SLOW = """
import sys, time
from pathlib import Path
from sdbatch.cell import Merge
from sdbatch.merge.checkpoint import Order, make_checkpoint
from sdbatch.verbs.progress import ended_by_signals
from tests.merge.conftest import weight_file

tiny, pastel, out = (Path(text) for text in sys.argv[1:])

def slowly(done, total):
    print(done, flush=True)
    time.sleep(0.05)

with ended_by_signals():
    make_checkpoint(Order(weight_file(tiny), out, Merge(weight_file(pastel))), slowly)
"""


@pytest.mark.parametrize(
    ("number", "code", "left"), [(signal.SIGTERM, 143, 0), (signal.SIGINT, -signal.SIGINT, 0), (signal.SIGKILL, -9, 1)]
)
def test_an_end_while_writing(number: int, code: int, left: int, tiny: WeightFile, pastel: WeightFile, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    command = [sys.executable, "-c", SLOW, tiny.path, pastel.path, str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=heed_interrupts
    ) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)  # a pipe that nobody reads would be a second fault
    assert process.returncode == code, errors
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == left, "a hidden part of a file at most"
    make_checkpoint(Order(tiny, out, Merge(pastel)), quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["new.safetensors"], "the next writer clears it away"


@pytest.mark.parametrize(
    ("merge", "key", "said"),
    [
        ({"method": "weigted_sum"}, "method", "Did you mean weighted_sum"),
        ({"method": "ties"}, "c", "needs a third checkpoint"),
        ({"c": WeightFile("c", "/c", "0"), "method": "slerp"}, "c", "does nothing with slerp"),
        ({"c": WeightFile("c", "/c", "0"), "method": "dare", "density": 0.0}, "density", "above 0"),
    ],
)
def test_what_cannot_be_asked(merge: dict[str, object], key: str, said: str) -> None:
    fault = find_fault(Merge(WeightFile("b", "/b", "0"), **merge))  # pyright: ignore[reportArgumentType]
    assert fault is not None
    assert fault[0] == key
    assert said in fault[1]


def test_other_families_and_shapes_are_refused_naming_both(tiny: WeightFile, zoo: Zoo) -> None:
    sources = [open_source(tiny), open_source(zoo("sd1").checkpoint)]
    with pytest.raises(WeightFileError, match=r"tiny and sd10 cannot be merged.*tensors differ"):
        merge_weights(sources, Merge(zoo("sd1").checkpoint))
    flux = [open_source(tiny), open_source(zoo("flux_dev").checkpoint)]
    with pytest.raises(WeightFileError, match="tiny and flux_dev0 cannot be merged"):
        merge_weights(flux, Merge(zoo("flux_dev").checkpoint))


def test_block_weights_of_another_length_are_refused(tiny: WeightFile, pastel: WeightFile) -> None:
    sources = [open_source(tiny), open_source(pastel)]
    with pytest.raises(ConfigError, match="4 block weights: this model has 13 blocks"):
        merge_weights(sources, Merge(pastel, blocks=(0.0, 1.0, 0.0, 1.0)))


def test_training_leftovers_do_not_survive_a_merge_but_markers_do(tiny: WeightFile, pastel: WeightFile, tmp_path: Path) -> None:
    tensors = load_file(tiny.path)
    full = save(
        {**tensors, "model_ema.decay": torch.tensor(0.5), "v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}, tmp_path / "full.safetensors"
    )
    make_checkpoint(Order(full, tmp_path / "new.safetensors", Merge(pastel)), quiet)
    assert load_file(tmp_path / "new.safetensors").keys() == {*tensors, "v_pred", "ztsnr"}


def test_sources_may_be_pickles(tiny: WeightFile, pastel: WeightFile, tmp_path: Path) -> None:
    torch.save({"state_dict": load_file(pastel.path), "epoch": 3}, tmp_path / "pastel.ckpt")
    other = weight_file(tmp_path / "pastel.ckpt")
    make_checkpoint(Order(tiny, tmp_path / "new.safetensors", Merge(other, ratio=1.0)), quiet)
    found, wanted = load_file(tmp_path / "new.safetensors"), load_file(pastel.path)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_memory_of_mapped_sources_is_given_back(tiny: WeightFile, pastel: WeightFile, tmp_path: Path) -> None:
    """A merge of two files of 200 MB holds a few tensors of 8 MB, not the files."""
    for name, seed in (("a", 0), ("b", 1)):
        generator = torch.Generator().manual_seed(seed)
        blocks = {f"down_blocks.0.resnets.{index}.conv1.weight": torch.randn(2048, 2048, generator=generator).half() for index in range(25)}
        save(blocks, tmp_path / f"{name}.safetensors")
    program = (
        "import sys, resource; from pathlib import Path; from sdbatch.cell import Merge, WeightFile\n"
        "from sdbatch.merge.checkpoint import Order, make_checkpoint\n"
        "a, b, out = (Path(text) for text in sys.argv[1:])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "file = lambda path: WeightFile(path.stem, str(path), path.stem)\n"
        "make_checkpoint(Order(file(a), out, Merge(file(b))), lambda done, total: None)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)\n"
    )
    command = [sys.executable, "-c", program, *(str(tmp_path / f"{name}.safetensors") for name in ("a", "b", "out"))]
    grown_mb = float(subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout)
    assert grown_mb < 120, "of 400 MB that were read and 200 that were written"


mecha = pytest.importorskip("sd_mecha", reason="the oracle of the next tests: pip install sd-mecha")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[WeightFile]:
    """Three checkpoints that sd-mecha knows: SD 1.x by every name, narrow in every width."""
    from tests.merge.oracle import write_sd1

    folder = tmp_path_factory.mktemp("sd1")
    return [write_sd1(folder / f"{name}.safetensors", seed) for seed, name in enumerate("abc")]


@pytest.mark.parametrize(
    ("method", "ratio", "blocks"),
    [
        ("weighted_sum", 0.3, ""),
        ("add_difference", 0.8, ""),
        ("slerp", 0.4, ""),
        ("ties", 0.5, ""),
        ("weighted_sum", 0.25, "GRAD_V"),
        ("weighted_sum", 0.9, "COSINE"),
    ],
)
def test_equals_sd_mecha(method: str, ratio: float, blocks: str, originals: list[WeightFile], tmp_path: Path) -> None:
    from tests.merge.oracle import merge_with_mecha

    weights = read_blocks(blocks) if blocks else ()
    count = 3 if method in ("add_difference", "ties") else 2
    # All changes kept: sd-mecha trims one fewer than the paper's share, which test_methods.py computes by hand.
    merge = Merge(originals[1], originals[2] if count == 3 else None, method, ratio, weights, density=1.0)
    started = time.monotonic()
    make_checkpoint(Order(originals[0], tmp_path / "ours.safetensors", merge), quiet)
    assert time.monotonic() - started < 20
    wanted = merge_with_mecha([file.path for file in originals[:count]], method, ratio, weights, tmp_path / "theirs.safetensors")
    found = load_file(tmp_path / "ours.safetensors")
    assert wanted.keys() <= found.keys()
    assert len(wanted) > 1000
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-6, rtol=2e-5, msg=name)


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
def test_scales_beside_weights_are_refused(scale: str, tmp_path: Path) -> None:
    """Such weights alone are not the model's."""
    layer = "double_blocks.0.img_attn.qkv"
    save({f"{layer}.weight": torch.zeros(3, 1), f"{layer}.{scale}": torch.ones(())}, tmp_path / "x.safetensors")
    with pytest.raises(WeightFileError, match=rf"float8 with scales beside them \({layer}\.{scale}\), which are neither"):
        open_source(weight_file(tmp_path / "x.safetensors"))
