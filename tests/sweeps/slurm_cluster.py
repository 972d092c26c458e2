"""A real SLURM of two nodes in a temporary folder: no systemd, no installed config.

    with running_cluster(folder) as cluster:
        cluster.call("sinfo")

Both nodes are this machine, one under its own name and one under another.
Partition ``low`` is preempted by ``urgent``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.hang import HANG
from tests.multidevice.processes import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "srun")
HOST = socket.gethostname().split(".")[0]
# CPUs of each. The first in the alphabet must be a name that can be looked up: there
# processes of several nodes meet.
SECOND = f"{HOST}-second"
NODES = {HOST: 2, SECOND: 1}

# A requeued job waits for its old credentials to expire: two minutes by default, here
# a few seconds. Nodes are set down by hand, so nothing waits for a timeout.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MaxArraySize=5
ReturnToService=2
SlurmdTimeout=300
"""
PARTITIONS = """\
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""


class Cluster:
    """Daemons with a common folder; ``environ`` makes SLURM's commands talk to them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: list[subprocess.Popen] = []
        # Not even a test run that is killed leaves a daemon or a job behind: then the
        # pipe closes, and this process ends them.
        self.guard = subprocess.Popen(
            [sys.executable, __file__, self.environ["SLURM_CONF"]],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def call(self, *command: str) -> str:
        """Output of a command; fails as the command does."""
        done = subprocess.run(
            command, env=self.environ, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def start(self) -> None:
        """Returns when both nodes are idle."""
        munge = self.folder / "munge"
        munge.mkdir()
        self.folder.chmod(0o755)  # munged wants its socket reachable
        key = munge / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        paths = {"socket": "socket", "key-file": "key", "pid-file": "pid"}
        paths |= {"log-file": "log", "seed-file": "seed"}
        options = [f"--{name}={munge / file}" for name, file in paths.items()]
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text(self._config())
        self._daemon("munged", "--foreground", "--force", *options)
        wait_for((munge / "socket").exists, "munged")
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        wait_for(self._all_idle, "idle nodes")

    def start_node(self, node: str) -> None:
        self._daemon("slurmd", "-D", "-N", node, node=node)

    def lose_node(self, node: str) -> None:
        """As a power cut: everything of SLURM on the node is gone at once."""
        for mark in (f"TEST_NODE={node}", f"SLURMD_NODENAME={node}"):
            kill_all(self.environ["SLURM_CONF"], mark)
        self.call("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def restore_node(self, node: str) -> None:
        """The lost node comes back, empty."""
        self.start_node(node)
        # SLURM refuses to resume a node that has registered and is back already.
        with contextlib.suppress(RuntimeError):
            self.call("scontrol", "update", f"nodename={node}", "state=resume")
        wait_for(lambda: self._is_up(node), f"{node} to be back")

    def stop(self) -> None:
        """Ends the daemons and every process of a job."""
        self.guard.stdin.close()
        self.guard.wait()
        for daemon in self.daemons:
            daemon.wait()

    def _daemon(self, *command: str, node: str = "") -> None:
        with (self.folder / "daemons.log").open("a") as log:
            # slurmd hands the node on to the helpers of its jobs
            environ = {**self.environ, "TEST_NODE": node}
            pipes = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self.daemons.append(
                subprocess.Popen(command, env=environ, start_new_session=True, **pipes)
            )

    def _config(self) -> str:
        text = CONFIG.format(host=HOST, folder=self.folder, controller_port=free_port())
        for node, cpus in NODES.items():
            text += (
                f"NodeName={node} NodeHostname={HOST} NodeAddr=127.0.0.1 "
                f"Port={free_port()} CPUs={cpus} RealMemory=1000\n"
            )
        return text + PARTITIONS

    def _is_up(self, node: str) -> bool:
        found = self.call("sinfo", "-h", "-N", "-p", "low", "-n", node, "-o", "%T")
        return found.split()[:1] in (["idle"], ["mixed"], ["allocated"])

    def _all_idle(self) -> bool:
        try:
            states = self.call("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split()
        except RuntimeError:
            return False
        return states == ["idle"] * len(NODES)


def missing_programs() -> list[str]:
    """What of SLURM is not installed here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster in ``folder`` (new, and a short path: sockets lie there)."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def wait_for(condition, what: str, seconds: float = HANG) -> None:
    """Until ``condition()``; a hang ends here, with a message."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.1)


def kill_all(config: str, mark: str = "") -> None:
    """Kills the processes of one cluster: all inherited its ``SLURM_CONF``.

    ``mark`` is another variable that they must have.
    """
    needed = {f"SLURM_CONF={config}", *filter(None, [mark])}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            text = (process / "environ").read_bytes().decode(errors="replace")
            if needed <= set(text.split("\0")):
                os.kill(int(process.name), signal.SIGKILL)


if __name__ == "__main__":
    sys.stdin.read()
    # What a dying process has just started is there when all others are gone.
    for _ in range(3):
        kill_all(sys.argv[1])
        time.sleep(0.05)
