"""Large libraries are imported without searching them for garbage."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from sdbatch.importing import without_collector


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
