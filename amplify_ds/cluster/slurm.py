"""The SLURM job of this process: machines, ranks, and where the ranks meet.

srun starts one launcher on each node of a job; all derive the same hosts, address and port from the job's environment
variables. No file is written, and no ssh is needed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from amplify_ds.cluster.hostfile import Host
from amplify_ds.errors import AmplifyError

PORTS = range(20_000, 30_000)  # below those that the system assigns to connections


class SlurmJob(NamedTuple):
    """A SLURM job, and this process's node in it."""

    hosts: list[Host]  # the nodes, with their numbers of ranks
    node: int | None  # index of this node, None outside a step
    port: int  # where the ranks meet on the first node
    name: str  # of this start
    predecessor: str | None  # name of the previous start, if the job was requeued
    restarts: int  # how often it was requeued


def current_job(ranks: int | None = None, environment: Mapping[str, str] = os.environ) -> SlurmJob:
    """Return the job of this process. ranks: per node; None means one for each GPU of the job on a node, at least one.

    Raises AmplifyError outside a job, and for a step with more than one task per node.
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
    """Return the GPUs of this job per node, at least 1.

    With --exclusive a batch script sees all GPUs of the node, a step only those of the job.
    """
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
