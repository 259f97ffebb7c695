"""How a plan is run: everything that does not decide the images, as kept in `sweep.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sdbatch.plan.tree import Tree, get


@dataclass(frozen=True)
class Settings:
    """A run's settings."""

    name: str
    batch_size: int | None = None
    """None: the first worker decides, and its choice is kept for the sweep."""
    device: str = "auto"
    threads: int | None = None
    """CPU threads of one worker."""
    on_oom: str = "halve"
    format: str = "files"
    """`files`, or how images are packed in blocks: `webdataset`, `parquet`."""
    grid: bool = True
    grid_limit: int = 400
    tracking: str = "mlflow"
    tracking_uri: str | None = None
    experiment: str = "sdbatch"
    outputs: str = "outputs"
    spool: str | None = None
    """Where workers keep what they have not committed; None: in the machine's temporary folder."""
    launcher: dict[str, Any] = field(default_factory=lambda: {"name": "local"})

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """From JSON; keys of other versions are left out."""
        known = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


def read_settings(config: Tree, name: str, launcher: Mapping[str, Any]) -> Settings:
    """The settings of a composed configuration."""
    batch_size = config["batch_size"]
    return Settings(
        name=name,
        batch_size=None if batch_size == "auto" else int(batch_size),
        device=get(config, "memory.device", "auto"),
        threads=get(config, "memory.threads"),
        on_oom=get(config, "memory.on_oom", "halve"),
        format=get(config, "output.format", "files"),
        grid=get(config, "output.grid", True),
        grid_limit=get(config, "output.grid_limit", 400),
        tracking=get(config, "tracking.backend", "mlflow"),
        tracking_uri=get(config, "tracking.uri"),
        experiment=get(config, "tracking.experiment", "sdbatch"),
        outputs=get(config, "paths.outputs", "outputs"),
        spool=str(Path(spool).expanduser().absolute()) if (spool := get(config, "paths.spool")) else None,
        launcher=dict(launcher),
    )
