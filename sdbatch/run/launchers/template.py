"""A job file around the worker for engines that sdbatch does not talk to: Kubernetes and SkyPilot."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from sdbatch.config.launcher import TemplateLauncher
from sdbatch.errors import ConfigError
from sdbatch.results.folder import SweepFolder
from sdbatch.run.launchers.command import Share, worker_command


def job_file(folder: SweepFolder, launcher: TemplateLauncher, name: str) -> str:
    """The YAML, with how to use it in its head. Raises ConfigError when the sweep is not on the volume."""
    out = folder.path.absolute()
    mount = Path(launcher.mount).absolute() if launcher.mount else out.parent
    if not out.is_relative_to(mount):
        raise ConfigError(f"hydra.launcher.mount={mount}: the sweep's folder {out} is not in it. Give out=, or another mount.")
    share = Share(launcher.gpus_per_worker, launcher.cpus_per_worker)
    command = worker_command(["python"], out, share, [f"workers={launcher.workers}"])
    label = f"sdbatch-{re.sub(r'[^a-z0-9-]+', '-', name.lower()).strip('-')}"[:52].rstrip("-")
    match launcher.target:
        case "kubernetes":
            head = f"kubectl apply -f FILE; the claim {launcher.volume} must hold this machine's {mount}, models included, at the same path"
            body = _kubernetes(launcher, label, command, mount)
        case _:
            head = f"sky jobs launch FILE; the volume {launcher.volume} must hold this machine's {mount}, models included, at the same path"
            body = _skypilot(launcher, label, command, mount)
    return f"# {head}.\n# Progress: sdbatch status {out}\n{yaml.dump(body, Dumper=_Dumper, sort_keys=False, width=1000)}"


class _Dumper(yaml.SafeDumper):
    """Shell lines as a block; nothing by reference, which people do not read."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never."""
        del data
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _kubernetes(launcher: TemplateLauncher, label: str, command: list[str], mount: Path) -> dict[str, Any]:
    """An Indexed Job: the index says at which end of the plan a pod begins. Evicted pods do not count as failures."""
    amounts: dict[str, Any] = {"cpu": str(launcher.cpus_per_worker), "memory": f"{launcher.mem_gb}Gi"}
    if launcher.gpus_per_worker:
        amounts[launcher.gpu_resource] = str(launcher.gpus_per_worker)
    container = {
        "name": "worker",
        "image": launcher.image,
        "command": command,
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": [{"name": "sweep", "mountPath": str(mount)}],
    }
    pod = {
        "restartPolicy": "Never",
        # A batch is finished and committed in this time, or dropped.
        "terminationGracePeriodSeconds": 60,
        "containers": [container],
        "volumes": [{"name": "sweep", "persistentVolumeClaim": {"claimName": launcher.volume}}],
    }
    spec = {
        "completionMode": "Indexed",
        "completions": launcher.workers,
        "parallelism": launcher.workers,
        "backoffLimitPerIndex": 3,
        "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]},
        "template": {"spec": pod},
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": label}, "spec": spec}


def _skypilot(launcher: TemplateLauncher, label: str, command: list[str], mount: Path) -> dict[str, Any]:
    """A task of so many nodes; a managed job (`sky jobs`) starts again when nodes are taken away."""
    resources: dict[str, Any] = {"cpus": f"{launcher.cpus_per_worker}+", "memory": f"{launcher.mem_gb}+"}
    if launcher.gpus_per_worker:
        resources["accelerators"] = f"{launcher.accelerator}:{launcher.gpus_per_worker}"
    return {
        "name": label,
        "num_nodes": launcher.workers,
        "resources": resources,
        "volumes": {str(mount): launcher.volume},
        "setup": "\n".join(launcher.setup) + "\n",
        "run": shlex.join(word for word in command if not word.startswith("workers=")) + "\n",
    }
