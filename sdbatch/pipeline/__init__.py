"""From cells to pictures: assemble, encode, denoise, decode. torch is imported here and below, and only when asked for."""

from __future__ import annotations

from sdbatch.pipeline.engine import Engine, OutOfMemory, PendingBatch, batch_key, build_engine

__all__ = ["Engine", "OutOfMemory", "PendingBatch", "batch_key", "build_engine"]
