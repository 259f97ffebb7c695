"""A throw-away Slurm of two nodes with two fake GPUs each, on this machine and loopback only. No systemd, no accounting."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.engines.waiting import wait_for

CONFIG = """\
ClusterName=sdbatch
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
# Nodes may claim more CPUs than there are.
SlurmdParameters=config_overrides
AuthType=auth/none
CredType=cred/none
# Without authentication the daemons must listen on loopback only.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
# A requeued job waits for its old credentials to end: two minutes by default, five seconds at least.
AuthInfo=cred_expire=5
SlurmctldPort={port}
SlurmctldPidFile={root}/pid/slurmctld.pid
SlurmdPidFile={root}/pid/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SwitchType=switch/none
MpiDefault=none
# No cgroups: a container has none to give.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=5
MinJobAge=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
GresTypes=gpu
"""
PARTITIONS = """\
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NODES = ("n1", "n2")
GPUS = 2
NODE = f"CPUs=4 RealMemory=4000 Gres=gpu:{GPUS} State=UNKNOWN"


@dataclass(frozen=True)
class Slurm:
    """The cluster that runs."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """For commands that talk to it."""
        return {**os.environ, "SLURM_CONF": str(self.root / "slurm.conf")}

    def run(self, *command: str, check: bool = True) -> str:
        """Run a Slurm command; returns what it prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def states(self, job: str) -> dict[str, str]:
        """Array task -> its state, of the tasks that have not ended."""
        shown = self.run("squeue", "--noheader", "--array", "--format=%K %T", f"--jobs={job}", check=False)
        return dict(line.split() for line in shown.splitlines())

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job or an array's task."""
        shown = self.run("scontrol", "show", "job", "-o", job)
        return pairs(shown.split())

    def cancel_all(self) -> None:
        """Leave nothing for the next test."""
        self.run("scancel", "--user=root", check=False)
        wait_for(lambda: not self.run("squeue", "--noheader"), 90, "an empty queue")

    def start_node(self, name: str) -> None:
        """Start a node's daemon."""
        subprocess.run(["slurmd", "-N", name, "-c"], env=self.environment, check=True)

    def kill_node(self, name: str) -> None:
        """As a lost machine: the daemon and all of its jobs' processes, without a word."""
        daemon = int((self.root / f"pid/slurmd-{name}.pid").read_text())
        _signal_all([daemon, *self._find({"SLURMD_NODENAME": name})], signal.SIGKILL)

    def pids(self, job: str, task: int) -> list[int]:
        """Processes of an array's task."""
        return self._find({"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(task)})

    def _find(self, wanted: dict[str, str]) -> list[int]:
        """Processes of this cluster's jobs with these words in their environment."""
        words = {**wanted, "SLURM_CONF": self.environment["SLURM_CONF"]}
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if pid != os.getpid() and words.items() <= environment_of(pid).items()]

    def stop(self) -> None:
        """End every process of it."""
        self.run("scancel", "--user=root", check=False)
        daemons = [int(text) for path in (self.root / "pid").glob("*.pid") if (text := path.read_text().strip())]
        _signal_all(daemons, signal.SIGTERM)
        time.sleep(1.0)
        _signal_all({*daemons, *self._find({})}, signal.SIGKILL)


def start_slurm(root: Path) -> Slurm:
    """Start it; two seconds."""
    for folder in ("state", "spool/n1", "spool/n2", "log", "pid", "dev"):
        (root / folder).mkdir(parents=True)
    root.chmod(0o755)
    host, port = socket.gethostname().split(".")[0], _free_port()
    lines = [CONFIG.format(host=host, user="root", port=port, root=root)]
    gres: list[str] = []
    for number, name in enumerate(NODES, 1):
        lines.append(f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + number} {NODE}\n")
        gres.append(f"NodeName={name} Name=gpu File={root}/dev/gpu[0-{GPUS - 1}]\n")
    for gpu in range(GPUS):
        # A device file, as Slurm wants it, that leads nowhere: /dev/null by another name.
        os.mknod(root / f"dev/gpu{gpu}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (root / "slurm.conf").write_text("".join(lines) + PARTITIONS)
    (root / "gres.conf").write_text("".join(gres))
    (root / "cgroup.conf").write_text("CgroupAutomount=no\n")
    slurm = Slurm(root)
    subprocess.run(["slurmctld"], env=slurm.environment, check=True)
    for name in NODES:
        slurm.start_node(name)
    wait_for(lambda: slurm.run("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D", check=False) == str(len(NODES)), 90, "idle nodes")
    return slurm


def _free_port() -> int:
    """A port with two free ones above it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(int(probe.getsockname()[1]), 60_000)


def _signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def environment_of(pid: int) -> dict[str, str]:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return pairs(words)


def pairs(words: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE` words by key."""
    return {key: value for key, _, value in (word.partition("=") for word in words)}
