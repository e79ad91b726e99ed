"""A real SLURM of a few nodes on one machine, for as long as a block runs.

Each node is a slurmd in namespaces of its own: it has a host name, processes and an /etc/hosts as a machine has, and
can be powered off. Network and file system are shared; the GPUs are empty files. Needs root, slurm-wlm and munge.
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
GPUS_AND_CORES = ("--cpus-per-task=1", "--gpus-per-node=1")  # for launch/slurm.sbatch, on nodes of two cores
SECONDS_TO_START = 60
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=login(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={place}/munge
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
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
    """environment: variables for sbatch, squeue and the like. names: of the nodes."""

    def __init__(self, place: Path, names: tuple[str, ...]):
        self.place, self.names = place, names
        self.environment = {**os.environ, "SLURM_CONF": str(place / "slurm.conf")}
        self._nodes: dict[str, subprocess.Popen] = {}

    def run(self, *words: object, directory: Path | None = None, **variables: str) -> str:
        """The output of a command such as squeue, which must succeed."""
        environment = self.environment | variables
        command = [str(word) for word in words]
        result = subprocess.run(command, cwd=directory, env=environment, text=True, capture_output=True)
        assert result.returncode == 0, (words, result.stdout, result.stderr)
        return result.stdout.strip()

    def submit(self, directory: Path, *words: object, **variables: str) -> str:
        """The number of a new job. words: options of sbatch, the script and its arguments."""
        command = ["sbatch", "--parsable", "--output", self.place / "%j.log", *words]
        return self.run(*command, directory=directory, **variables)

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job: JobState, ExitCode, Restarts, BatchHost, …"""
        return dict(re.findall(r"(\w+)=(\S+)", self.run("scontrol", "show", "job", number)))

    def log(self, number: str) -> str:
        path = self.place / f"{number}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def log_exists(self, number: str) -> bool:
        return (self.place / f"{number}.log").exists()

    def wait_for(self, number: str, *states: str, seconds: float = 120) -> dict[str, str]:
        """What is known of the job once it is in one of the states; by default, once it has ended for good."""
        states = states or ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")
        return self.wait_until(lambda: self._in_state(number, states), number, seconds)

    def wait_until(self, happens, number: str, seconds: float = 120):
        """What `happens()` returns once that is true."""
        deadline = time.monotonic() + seconds
        while not (value := happens()):
            assert time.monotonic() < deadline, f"{self.job(number)}\n{self.log(number)}"
            time.sleep(0.2)
        return value

    def cancel(self, *numbers: str) -> None:
        """End jobs, wait until SLURM has tidied up after them, and start nodes that were powered off."""
        for number in numbers:
            with suppress(AssertionError):
                self.run("scancel", "--signal=KILL", "--full", number)
                self.run("scancel", number)
        for name in self.names:
            if name not in self._nodes:
                self.start_node(name)
                self.run("scontrol", "update", f"NodeName={name}", "State=RESUME")
        deadline = time.monotonic() + SECONDS_TO_START
        while self.idle() != set(self.names):
            assert time.monotonic() < deadline, self.run("sinfo", "-N", "-l")
            time.sleep(0.2)

    def power_off(self, name: str) -> None:
        """Kill everything on a node at once."""
        self._nodes.pop(name).kill()

    def kill_slurmd(self, name: str) -> None:
        """Kill slurmd alone: the processes of jobs on that node go on."""
        for process in psutil.process_iter(["cmdline"]):
            if process.info["cmdline"] and process.info["cmdline"][:4] == ["slurmd", "-D", "-N", name]:
                process.kill()

    def start_node(self, name: str) -> None:
        inside = 'mount --bind hosts /etc/hosts; hostname "$0"; slurmd -D -N "$0" & wait; exec sleep infinity'
        words = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", inside]
        self._start(f"slurmd-{name}", [*words, name], name)

    def _in_state(self, number: str, states: tuple[str, ...]) -> dict[str, str] | None:
        job = self.job(number)
        return job if job["JobState"] in states else None

    def _start(self, log: str, words: list[str], node: str | None = None) -> subprocess.Popen:
        with open(self.place / f"{log}.log", "a") as file:
            process = subprocess.Popen(
                words,
                cwd=self.place,
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
        (self.place / "key").write_bytes(os.urandom(1024))
        (self.place / "key").chmod(0o600)
        files = {name: f"--{name}-file={self.place}/munged.{name}" for name in ("pid", "log", "seed")}
        words = ["munged", "--force", f"--key-file={self.place}/key", f"--socket={self.place}/munge", *files.values()]
        self.servers = [self._start("munged", [*words, "--foreground"])]
        while not (self.place / "munge").exists():
            time.sleep(0.05)
        controller = ["unshare", "--uts", "sh", "-c", "hostname login; exec slurmctld -D"]
        self.servers.append(self._start("slurmctld", controller))
        for name in self.names:
            self.start_node(name)
        deadline = time.monotonic() + SECONDS_TO_START
        while self.idle() != set(self.names):
            assert time.monotonic() < deadline, [path.read_text() for path in self.place.glob("slurm*.log")]
            time.sleep(0.1)

    def idle(self) -> set[str]:
        found = subprocess.run(
            ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"], env=self.environment, text=True, capture_output=True
        )
        return set(found.stdout.split())

    def end(self) -> None:
        for process in [*self._nodes.values(), *reversed(self.servers)]:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()


@contextmanager
def slurm_of(
    place: Path,
    names: tuple[str, ...] = ("node1", "node2"),
    slurmd_timeout: int = 30,
    kill_wait: int = 30,
    requeue: int = 1,
    **options: str,
) -> Iterator[Slurm]:
    """options: further lines of slurm.conf, NAME=VALUE."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "state").mkdir()
    place.chmod(0o755)
    ports = [free_port() for _ in range(1 + len(names))]
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs=2 Gres=gpu:{GPUS}"
        for name, port in zip(names, ports[1:])
    )
    text = CONFIGURATION.format(
        place=place,
        ports=ports,
        nodes=nodes,
        slurmd_timeout=slurmd_timeout,
        kill_wait=kill_wait,
        requeue=requeue,
        first=random.randrange(1, 9000),  # ports follow from it, and tests of several workers share the machine's
    )
    for option, value in options.items():
        text = re.sub(rf"^{option}=.*\n", "", text, flags=re.MULTILINE) + f"{option}={value}\n"
    (place / "slurm.conf").write_text(text)
    for number in range(GPUS):
        (place / f"gpu{number}").touch()
    listed = ",".join(names)
    (place / "gres.conf").write_text(f"NodeName={listed} Name=gpu File={place}/gpu[0-{GPUS - 1}]\n")
    (place / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # else slurmd looks for a mounted cgroup2
    (place / "hosts").write_text(f"127.0.0.1 localhost login {' '.join(names)}\n")
    slurm = Slurm(place, names)
    with ExitStack() as at_end:
        at_end.callback(slurm.end)
        slurm.servers = []
        slurm.start()
        yield slurm
