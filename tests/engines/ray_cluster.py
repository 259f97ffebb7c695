"""A throw-away Ray cluster on this machine and loopback only: a head without CPUs, and nodes of two CPUs and a fake GPU.

It lives in a process of its own, since Ray reads its environment when it is imported.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from typing import Any

# Not 127.0.0.1: Ray takes that for "this machine" and puts the address of its network there.
SMALL = {"object_store_memory": 80 * 2**20, "node_ip_address": "127.0.0.2", "include_dashboard": False}
READY = "ready"


class RayCluster:
    """The cluster that runs."""

    def __init__(self, nodes: int) -> None:
        self.settings = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A dead node is noticed after two seconds in place of fifteen.
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "4",
        }
        command = [sys.executable, "-m", "tests.engines.ray_cluster", str(nodes)]
        environment = {**os.environ, **self.settings}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.address = self._answer()

    def add_node(self) -> None:
        """Another machine."""
        self._ask("add")

    def lose_node(self) -> None:
        """A machine is gone, without a word."""
        self._ask("lose")

    def lose_all(self) -> None:
        """Every machine, the head as well; may be called again."""
        if self._process.poll() is None:
            self._ask("end")
            self._process.wait(timeout=30)

    def _ask(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(READY):
                return line.removeprefix(READY).strip()
        raise AssertionError("the Ray cluster has ended")


def main(nodes: int) -> None:
    """Start it, say its address, and do what standard input says until it ends."""
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, **SMALL})
    there: list[Any] = [cluster.add_node(num_cpus=2, num_gpus=1, wait=False, **SMALL) for _ in range(nodes)]
    print(READY, cluster.address, flush=True)
    for line in sys.stdin:
        match line.strip():
            case "add":
                there.append(cluster.add_node(num_cpus=2, num_gpus=1, wait=False, **SMALL))
            case "lose":
                cluster.remove_node(there.pop(0), allow_graceful=False)
            case _:
                break
        print(READY, flush=True)
    for node in list(cluster.list_all_nodes()):
        cluster.remove_node(node, allow_graceful=False)
    print(READY, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
