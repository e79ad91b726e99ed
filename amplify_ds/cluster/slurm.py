"""The SLURM job that this process is part of, as a launch needs it: machines, ranks, and where the ranks meet.

Every node of a job runs one launcher, started by srun; all derive the same hosts, address and port from the job's
variables. Nothing is written, and no machine needs ssh.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from amplify_ds.cluster.hostfile import Host
from amplify_ds.errors import AmplifyError

PORTS = range(20_000, 30_000)  # below those that the system gives out


class SlurmJob(NamedTuple):
    """hosts: the nodes, with the ranks of each. node: index of this node among them, None outside a step. port: where
    the ranks meet on the first node. name: of this start; predecessor: of the start before, if the job was requeued.
    restarts: how often it was.
    """

    hosts: list[Host]
    node: int | None
    port: int
    name: str
    predecessor: str | None
    restarts: int


def current_job(ranks: int | None = None, environment: Mapping[str, str] = os.environ) -> SlurmJob:
    """Return the job of this process. ranks: per node; None: one for each GPU that the job was given, else one.

    Raises AmplifyError outside a job, and for a step that has more than one task per node.
    """
    number = environment.get("SLURM_JOB_ID")
    if not number:
        raise AmplifyError("--slurm is for use inside a SLURM job: sbatch launch/slurm.sbatch, or srun after salloc")
    in_step = "SLURM_STEP_ID" in environment
    nodes = environment["SLURM_STEP_NODELIST" if in_step else "SLURM_JOB_NODELIST"]
    names = _output("scontrol", "show", "hostnames", nodes).split()
    if in_step and environment.get("SLURM_STEP_NUM_TASKS") != str(len(names)):
        raise AmplifyError(
            f"this step has {environment.get('SLURM_STEP_NUM_TASKS')} tasks on {len(names)} nodes, expected one per "
            "node, which starts the ranks: srun --ntasks-per-node=1 bash launch/train.sh --slurm -- …"
        )
    restarts = int(environment.get("SLURM_RESTART_COUNT") or 0)
    slots = ranks or _gpus(environment, in_step)
    return SlurmJob(
        hosts=[Host(name, slots) for name in names],
        node=int(environment["SLURM_NODEID"]) if in_step else None,
        port=PORTS[int(number) % len(PORTS)],  # two jobs may share a machine
        name=f"{number}-{restarts}",
        predecessor=f"{number}-{restarts - 1}" if restarts else None,
        restarts=restarts,
    )


def _gpus(environment: Mapping[str, str], in_step: bool) -> int:
    """GPUs of this job on a node, or 1. With --exclusive a batch script sees all GPUs of the node; a step, its own."""
    if in_step:
        return int(environment.get("SLURM_GPUS_ON_NODE") or 1)
    step = ("srun", "--nodes=1", "--ntasks=1", "--overlap")
    return int(_output(*step, "sh", "-c", "echo ${SLURM_GPUS_ON_NODE:-1}").split()[-1])


def _output(*command: str) -> str:
    try:
        result = subprocess.run(command, text=True, capture_output=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise AmplifyError(f"{command[0]} is not installed here, or not in PATH: {os.environ.get('PATH')}") from None
    if result.returncode:
        raise AmplifyError(f"{' '.join(command)} failed: {result.stderr.strip()}")
    return result.stdout
