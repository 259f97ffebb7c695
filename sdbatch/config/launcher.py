"""Launchers as a user configures them: every option with its unit. `conf/hydra/launcher/NAME.yaml` holds the same keys."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sdbatch.errors import ConfigError, did_you_mean

TARGETS = ("kubernetes", "skypilot")
"""What the template launcher can print."""


@dataclass
class LocalLauncher:
    """Worker processes of this machine."""

    name: str = "local"
    workers: int | None = None
    """Unset: one for every device of `memory.device`. More than there are devices share them."""


@dataclass
class SlurmLauncher:
    """One Slurm array of warm workers."""

    name: str = "slurm"
    workers: int = 1
    """Tasks of the array; each keeps its models in memory until no work is left or its time is up."""
    gpus_per_worker: int = 1
    """0: on the CPU. Each GPU has a process of its own."""
    cpus_per_worker: int = 4
    mem_gb: int | None = None
    """Unset: what the partition gives."""
    timeout_min: int = 240
    """A worker that reaches it with work left goes back into the queue."""
    signal_delay_s: int = 90
    """How long before the time limit a worker is told to commit and leave."""
    parallel: int | None = None
    """Most workers that run at the same time; unset: all."""
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    constraint: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """More sbatch options by their long names, such as `{reservation: mine}`."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the worker: `module load cuda`, `source /shared/venv/bin/activate`."""
    srun: list[str] = field(default_factory=list)
    """More arguments of srun, such as `--container-image=...`."""
    python: str | None = None
    """The Python on the nodes, with what comes before it (`apptainer exec --nv sdbatch.sif python`); unset: this one."""
    wait: bool = False
    """Follow the sweep to its end, then draw and record it; else return when it is submitted."""


@dataclass
class RayLauncher:
    """Warm workers on a Ray cluster that runs."""

    name: str = "ray"
    address: str = "auto"
    """`HOST:PORT` of the head, or `auto`: RAY_ADDRESS, else the cluster of this machine."""
    workers: int = 1
    gpus_per_worker: int = 1
    """0: on the CPU. Each GPU has a process of its own."""
    cpus_per_worker: int = 1
    mem_gb: int | None = None
    """Memory that Ray reserves for a worker; unset: none."""
    resources: dict[str, float] = field(default_factory=dict)
    """Custom resources of the cluster that a worker takes."""
    runtime_env: dict[str, Any] = field(default_factory=dict)
    """Ray's own: `{env_vars: {...}}`, `{pip: [...]}`, a container."""
    wait: bool = False
    """Follow the sweep to its end, then draw and record it; else return when it is submitted."""


@dataclass
class TemplateLauncher:
    """A job file around the worker, printed for an engine that sdbatch does not talk to."""

    name: str = "template"
    target: str = "kubernetes"
    """`kubernetes`: an Indexed Job; `skypilot`: a task."""
    workers: int = 1
    """Pods, or nodes."""
    gpus_per_worker: int = 1
    """0: on the CPU. Each GPU has a process of its own."""
    cpus_per_worker: int = 4
    mem_gb: int = 16
    image: str = "sdbatch:latest"
    """Container image with sdbatch in it (Kubernetes)."""
    gpu_resource: str = "nvidia.com/gpu"
    """The GPU's resource name (Kubernetes)."""
    accelerator: str = "L4"
    """The GPU's name (SkyPilot)."""
    volume: str = "sdbatch"
    """The volume (claim) that holds the sweep's folder and the models."""
    mount: str | None = None
    """Where the volume is mounted, here and there; unset: the parent of the sweep's folder."""
    setup: list[str] = field(default_factory=lambda: ["pip install sdbatch"])
    """Shell lines that prepare a node (SkyPilot)."""


Launcher = LocalLauncher | SlurmLauncher | RayLauncher | TemplateLauncher
LAUNCHERS: dict[str, type[Launcher]] = {
    "local": LocalLauncher,
    "slurm": SlurmLauncher,
    "ray": RayLauncher,
    "template": TemplateLauncher,
}
EARLY_S = 60
"""Slurm sends its warning up to so much earlier than it was asked to (sbatch --signal)."""
_LOWEST = {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 1, "mem_gb": 1, "timeout_min": 1, "signal_delay_s": 1, "parallel": 1}


def read_launcher(values: Mapping[str, Any]) -> Launcher:
    """The launcher of these values. Raises ConfigError, naming the key."""
    kind = LAUNCHERS.get(values.get("name") or "")
    if kind is None:
        asked = values.get("name") or values.get("_target_")
        raise ConfigError(f"hydra/launcher: {asked} does not run sdbatch's plans. Choose one of: {', '.join(LAUNCHERS)}.")
    known = [item.name for item in fields(kind)]
    for key in values:
        if key not in known:
            options = did_you_mean(key, known, shown=len(known))
            raise ConfigError(f"hydra.launcher.{key}: {values['name']} has no such option. {options}")
    try:
        # The texts stay as they are: ${HOME} in a set-up line is the shell's.
        found = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(kind), dict(values)), resolve=False)
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.launcher.{error.full_key}: {str(error).splitlines()[0]}") from None
    launcher = kind(**found)  # type: ignore[arg-type]
    _check(launcher)
    return launcher


def _check(launcher: Launcher) -> None:
    values = asdict(launcher)
    for key, lowest in _LOWEST.items():
        if (value := values.get(key)) is not None and value < lowest:
            raise ConfigError(f"hydra.launcher.{key}={value}: give {lowest} or more.")
    if isinstance(launcher, SlurmLauncher) and 60 * launcher.timeout_min < launcher.signal_delay_s + EARLY_S + 60:
        least = -(-(launcher.signal_delay_s + EARLY_S) // 60) + 1
        told = f"workers are told to leave {launcher.signal_delay_s} s before it (hydra.launcher.signal_delay_s), or {EARLY_S} s sooner"
        raise ConfigError(f"hydra.launcher.timeout_min={launcher.timeout_min}: {told}. Give {least} or more, or a shorter delay.")
    if isinstance(launcher, TemplateLauncher) and launcher.target not in TARGETS:
        raise ConfigError(f"hydra.launcher.target={launcher.target}: choose one of: {', '.join(TARGETS)}.")
