"""What every reader of weight files promises of any bytes: one sentence that names the file, or a header. Nothing else."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, settings

from sdbatch.errors import WeightFileError
from sdbatch.weights.identify import identify

FUZZ = settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])


def never_crashes(path: Path) -> None:
    """Read the header and say what the file is; only a WeightFileError may come out."""
    try:
        identify(path)
    except WeightFileError as error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)
