"""Large libraries are imported without searching them for garbage, and without what nobody uses of them."""

from __future__ import annotations

import builtins
import gc
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from sdbatch.importing import postponed, without, without_collector


def test_the_collector_rests_and_comes_back() -> None:
    with pytest.raises(ImportError), without_collector():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with without_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_imported_is_never_searched_again_and_nothing_else_is_kept() -> None:
    code = """
import gc
from sdbatch.importing import without_collector
with without_collector():
    pass
assert gc.get_freeze_count() == 0
with without_collector():
    import decimal
assert gc.get_freeze_count() > 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that says when it is run, with a submodule."""
    folder = tmp_path / "bulky"
    folder.mkdir()
    (folder / "__init__.py").write_text("import builtins\nbuiltins.bulky_runs = getattr(builtins, 'bulky_runs', 0) + 1\nanswer = 42\n")
    (folder / "part.py").write_text("small = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder.name
    for name in [name for name in sys.modules if name.split(".")[0] == folder.name]:
        del sys.modules[name]
    if runs():
        delattr(builtins, "bulky_runs")


def runs() -> int:
    return getattr(builtins, "bulky_runs", 0)


def test_a_package_that_is_there_can_be_done_without(package: str) -> None:
    with without(package):
        assert find_spec(package) is None
        with pytest.raises(ModuleNotFoundError):
            import_module(package)
    assert import_module(package).answer == 42


def test_what_is_loaded_already_is_neither_hidden_nor_postponed(package: str) -> None:
    loaded = import_module(package)
    with without(package), postponed(package, answer=0):
        assert import_module(package) is loaded
    assert loaded.answer == 42


def test_a_postponed_package_is_not_run_and_its_modules_are(package: str) -> None:
    with postponed(package):
        assert find_spec(package) is not None
        importer = import_module(package)
        assert import_module(f"{package}.part").small == 1
    assert runs() == 0
    assert package not in sys.modules, "the next import runs it"
    assert importer.answer == 42, "and so does what an importer asks of it later"
    assert runs() == 1


def test_what_is_asked_of_a_postponed_package_within_the_block_runs_it_unless_it_has_a_stand_in(package: str) -> None:
    with postponed(package, mark=str):
        importer = import_module(package)
        assert importer.mark is str
        assert runs() == 0
        assert importer.answer == 42
        assert runs() == 1
    assert import_module(package).answer == 42
    assert runs() == 1
