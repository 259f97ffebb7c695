"""A random model on disk, shared with the pipeline's tests."""

from __future__ import annotations

from tests.pipeline.conftest import engine, model, one_thread, zoo

__all__ = ["engine", "model", "one_thread", "zoo"]
