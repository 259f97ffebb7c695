from __future__ import annotations

from pathlib import Path

import pytest

from sdbatch.tracking.target import Target, default_uri, redact


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://user:pw@host:5000/x", "https://***@host:5000/x"),
        ("postgresql://me:s3cret@db/mlflow", "postgresql://***@db/mlflow"),
        ("uri: http://u@h/?token=abc&x=1 end", "uri: http://***@h/?token=***&x=1 end"),
        ("https://h/?X-Amz-Signature=abc", "https://h/?X-Amz-Signature=***"),
        ("a photo of @home, http://host/plain", "a photo of @home, http://host/plain"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
    ],
)
def test_credentials_are_masked_and_nothing_else(text: str, masked: str) -> None:
    assert redact(text) == masked


def test_all_sweeps_of_one_folder_share_a_database() -> None:
    one, other = default_uri(Path("/data/outputs/a")), default_uri(Path("/data/outputs/b"))
    assert one == other == "sqlite:////data/outputs/mlflow.db"
    assert Target(one).sqlite_file == Path("/data/outputs/mlflow.db")


def test_a_server_has_no_file() -> None:
    target = Target("http://127.0.0.1:5000")
    assert target.is_server
    assert target.sqlite_file is None
