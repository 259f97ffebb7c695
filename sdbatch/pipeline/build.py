"""The table of engines, by the name of a recipe's `engine`. Nothing here imports torch until it is asked for."""

from __future__ import annotations

import os

from sdbatch.errors import ConfigError, did_you_mean
from sdbatch.importing import without_collector
from sdbatch.pipeline.engine import Engine


def build_engine(name: str, device: str = "cpu", threads: int | None = None) -> Engine:
    """The engine of a recipe's `engine`, on one device (`cpu`, `cuda`, `cuda:1`).

    Side effects: sets OMP_WAIT_POLICY for this process unless it is set; without effect where torch is loaded already.

    Raises:
        ConfigError: no such engine.
    """
    match name:
        case "diffusers":
            # Read when torch is loaded. Threads that wait spinning burn three times the CPU time of the work on a busy machine.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            with without_collector():
                from sdbatch.pipeline.libraries import importing_lean

                with importing_lean():
                    from sdbatch.pipeline.diffusers_engine import DiffusersEngine  # 2.5 s of CPU, of which torch is 1

            return DiffusersEngine(device, threads)
        case "rehearsal":
            from sdbatch.pipeline.rehearsal import RehearsalEngine  # beside it for symmetry

            return RehearsalEngine(device, threads)
        case _:
            raise ConfigError(f"engine: there is no engine {name!r}. {did_you_mean(name, ('diffusers', 'rehearsal'))}")
