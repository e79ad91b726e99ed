"""A real SLURM of a few nodes on one machine, as a context manager.

Each node is a slurmd in its own namespaces: it has a host name, processes and an /etc/hosts like a machine, and can be
powered off. Nodes share network and file system; their GPUs are empty files. Needs root, slurm-wlm and munge.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from amplify_ds.network import free_port
from amplify_ds.processes import end_with_parent

GPUS = 8  # of each node
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")  # states of a job
GPUS_AND_CORES = ("--cpus-per-task=1", "--gpus-per-node=1")  # for launch/slurm.sbatch, on nodes of two cores
SECONDS_TO_START = 60
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=login(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={directory}/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=requeue_delay=1,sched_interval=2
ReturnToService=2
SlurmdTimeout={slurmd_timeout}
SlurmdParameters=config_overrides
KillWait={kill_wait}
MinJobAge=600
FirstJobId={first}
JobRequeue={requeue}
GresTypes=gpu
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverTimeLimit=0
PartitionName=shared Nodes=ALL MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


class Slurm:
    """A running SLURM. environment: variables for sbatch, squeue and the like. names: of the nodes."""

    def __init__(self, directory: Path, names: tuple[str, ...]):
        self.directory, self.names = directory, names
        self.environment = {**os.environ, "SLURM_CONF": str(directory / "slurm.conf")}
        self._nodes: dict[str, subprocess.Popen] = {}

    def run(self, *arguments: object, directory: Path | None = None, **variables: str) -> str:
        """Run a command such as squeue, in `directory`, and return its output. Fails if the command does."""
        environment = self.environment | variables
        command = [str(argument) for argument in arguments]
        result = subprocess.run(command, cwd=directory, env=environment, text=True, capture_output=True)
        assert result.returncode == 0, (command, result.stdout, result.stderr)
        return result.stdout.strip()

    def submit(self, directory: Path, *arguments: object, **variables: str) -> str:
        """Submit a job and return its number. arguments: options of sbatch, the script and its arguments."""
        command = ["sbatch", "--parsable", "--output", self.directory / "%j.log", *arguments]
        return self.run(*command, directory=directory, **variables)

    def job(self, number: str) -> dict[str, str]:
        """Return the description of a job: JobState, ExitCode, Restarts, BatchHost, …"""
        return dict(re.findall(r"(\w+)=(\S+)", self.run("scontrol", "show", "job", number)))

    def log(self, number: str) -> str:
        path = self.directory / f"{number}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def log_exists(self, number: str) -> bool:
        return (self.directory / f"{number}.log").exists()

    def wait_for(self, number: str, *states: str, seconds: float = 300) -> dict[str, str]:
        """Wait until the job is in one of the states, by default a final one, and return its description."""
        return self.wait_until(lambda: self._in_state(number, states or ENDED), number, seconds)

    def wait_until(self, condition, number: str, seconds: float = 300):
        """Wait until `condition()` is true, and return its value."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{self.job(number)}\n{self.log(number)}"
            time.sleep(0.2)
        return value

    def cancel(self, *numbers: str) -> None:
        """End jobs, start nodes that were powered off, and wait until all nodes are idle."""
        for number in numbers:
            with suppress(AssertionError):
                self.run("scancel", "--signal=KILL", "--full", number)
                self.run("scancel", number)
        for name in self.names:
            if name not in self._nodes:
                self.restart_node(name)
        deadline = time.monotonic() + SECONDS_TO_START
        while self.idle() != set(self.names):
            assert time.monotonic() < deadline, self.run("sinfo", "-N", "-l")
            time.sleep(0.2)

    def restart_node(self, name: str) -> None:
        """Start a node that was powered off, and forget the jobs that were on it."""
        for state in ("DOWN", "RESUME"):
            if state == "RESUME":
                self.start_node(name)
            self.run("scontrol", "update", f"NodeName={name}", f"State={state}", "Reason=test")

    def power_off(self, name: str) -> None:
        """Kill everything on a node at once."""
        self._nodes.pop(name).kill()

    def kill_slurmd(self, name: str) -> None:
        """Kill slurmd alone: the processes of jobs on that node continue."""
        for process in psutil.process_iter(["cmdline"]):
            if process.info["cmdline"] and process.info["cmdline"][:4] == ["slurmd", "-D", "-N", name]:
                if process.environ()["SLURM_CONF"] == self.environment["SLURM_CONF"]:  # others may run beside
                    process.kill()

    def start_node(self, name: str) -> None:
        inside = 'mount --bind hosts /etc/hosts; hostname "$0"; slurmd -D -N "$0" & wait; exec sleep infinity'
        command = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", inside]
        self._start(f"slurmd-{name}", [*command, name], name)

    def _in_state(self, number: str, states: tuple[str, ...]) -> dict[str, str] | None:
        job = self.job(number)
        return job if job["JobState"] in states else None

    def _start(self, log: str, command: list[str], node: str | None = None) -> subprocess.Popen:
        with open(self.directory / f"{log}.log", "a") as file:
            process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                preexec_fn=end_with_parent,
            )
        if node:
            self._nodes[node] = process
        return process

    def start(self) -> None:
        (self.directory / "key").write_bytes(os.urandom(1024))
        (self.directory / "key").chmod(0o600)
        files = {name: f"--{name}-file={self.directory}/munged.{name}" for name in ("pid", "log", "seed")}
        munged = [
            "munged",
            "--force",
            f"--key-file={self.directory}/key",
            f"--socket={self.directory}/munge",
            *files.values(),
        ]
        self.servers = [self._start("munged", [*munged, "--foreground"])]
        while not (self.directory / "munge").exists():
            time.sleep(0.05)
        controller = ["unshare", "--uts", "sh", "-c", "hostname login; exec slurmctld -D"]
        self.servers.append(self._start("slurmctld", controller))
        for name in self.names:
            self.start_node(name)
        deadline = time.monotonic() + SECONDS_TO_START
        while self.idle() != set(self.names):
            assert time.monotonic() < deadline, [path.read_text() for path in self.directory.glob("slurm*.log")]
            time.sleep(0.1)

    def idle(self) -> set[str]:
        result = subprocess.run(
            ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"], env=self.environment, text=True, capture_output=True
        )
        return set(result.stdout.split())

    def end(self) -> None:
        for process in [*self._nodes.values(), *reversed(self.servers)]:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()


@contextmanager
def slurm_of(
    directory: Path,
    names: tuple[str, ...] = ("node1", "node2"),
    slurmd_timeout: int = 300,
    kill_wait: int = 30,
    requeue: int = 1,
    **options: str,
) -> Iterator[Slurm]:
    """Start SLURM in `directory`, and end it afterwards. options: other lines of slurm.conf, NAME=VALUE."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "state").mkdir()
    directory.chmod(0o755)
    ports = [free_port() for _ in range(1 + len(names))]
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs=2 Gres=gpu:{GPUS}"
        for name, port in zip(names, ports[1:])
    )
    text = CONFIGURATION.format(
        directory=directory,
        ports=ports,
        nodes=nodes,
        slurmd_timeout=slurmd_timeout,
        kill_wait=kill_wait,
        requeue=requeue,
        first=random.randrange(1, 9000),  # ports follow from it, and tests of several workers share the machine's
    )
    for option, value in options.items():
        text = re.sub(rf"^{option}=.*\n", "", text, flags=re.MULTILINE) + f"{option}={value}\n"
    (directory / "slurm.conf").write_text(text)
    for number in range(GPUS):
        (directory / f"gpu{number}").touch()
    node_list = ",".join(names)
    (directory / "gres.conf").write_text(f"NodeName={node_list} Name=gpu File={directory}/gpu[0-{GPUS - 1}]\n")
    (directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # else slurmd looks for a mounted cgroup2
    (directory / "hosts").write_text(f"127.0.0.1 localhost login {' '.join(names)}\n")
    slurm = Slurm(directory, names)
    with ExitStack() as at_end:
        at_end.callback(slurm.end)
        slurm.servers = []
        slurm.start()
        yield slurm
