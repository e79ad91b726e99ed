"""The machines of a job: whether they can be reached, and which ones a restart uses after a failure."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from amplify_ds.cluster.hostfile import Host
from amplify_ds.cluster.remote import Answer, run_on_all
from amplify_ds.cluster.supervisor import Signals
from amplify_ds.errors import AmplifyError, print_error

SECONDS_BETWEEN_POLLS = 10
SECONDS_FOR_HOSTS = 600  # to wait at a restart for machines that do not answer: they may be rebooting
# Prints a free port and the numbers of cores and GPUs.
PROBE = (
    "import glob, os, socket; s = socket.socket(); s.bind(('', 0)); "
    "gpus = glob.glob('/dev/nvidia[0-9]*') + glob.glob('/dev/kfd'); "
    "print(s.getsockname()[1], len(os.sched_getaffinity(0)), len(gpus))"
)


class Machine(NamedTuple):
    """What a machine reports about itself."""

    free_port: int
    cores: int
    gpus: int


def query_machines(hosts: Sequence[Host]) -> dict[Host, Machine]:
    """Return what each machine reports. Raises AmplifyError that lists all machines that cannot be used, and why."""
    answers = probe(hosts)
    if lost := [host for host in hosts if answers[host].code]:
        reasons = "\n".join(_why(host, answers[host]) for host in lost)
        raise AmplifyError(f"these machines of the hostfile cannot be used:\n{reasons}")
    return {host: Machine(*map(int, answer.output.split()[-3:])) for host, answer in answers.items()}


def probe(hosts: Sequence[Host]) -> dict[Host, Answer]:
    """Return each machine's answer. The code is 0 if it can be reached and has this Python at the same path."""
    return run_on_all(hosts, [sys.executable, "-c", PROBE], seconds=30)


def _why(host: Host, answer: Answer) -> str:
    if answer.code in (124, 255):
        remedy = f"'ssh {host.name} true' must work without a password"
    else:
        remedy = f"{sys.executable} must exist there, at the same path in a directory that all machines share"
    return f"  {host.name}: {answer.reason}; {remedy}"


def remaining(hosts: list[Host], drop: bool, training: Sequence[str], signals: Signals) -> list[Host]:
    """Return the machines for a restart: all of them, or with `drop` those that answer and can divide the batch.

    Without `drop`, waits for machines that do not answer; raises AmplifyError after SECONDS_FOR_HOSTS.
    """
    deadline = time.monotonic() + SECONDS_FOR_HOSTS
    while hosts and not signals.received:
        answers = probe(hosts)
        answering = [host for host in hosts if answers[host].code == 0]
        lost = ", ".join(f"{host.name} ({answers[host].reason})" for host in hosts if host not in answering)
        if not lost:
            return hosts
        if drop and answering:
            kept = _that_divide_the_batch(answering, training)
            print_error(f"lost: {lost}; continuing with {', '.join(host.name for host in kept)}")
            return kept
        if time.monotonic() > deadline:
            raise AmplifyError(f"no restart: {lost} did not answer for {SECONDS_FOR_HOSTS} s; see --drop-lost-nodes")
        print_error(f"waiting for {lost}")
        signals.pause(SECONDS_BETWEEN_POLLS)
    return hosts


def _that_divide_the_batch(hosts: list[Host], training: Sequence[str]) -> list[Host]:
    """Return as many of these machines as possible, such that a dry run of the training succeeds on them."""
    error = ""
    for count in range(len(hosts), 0, -1):
        command = [sys.executable, "-m", "amplify_ds.train", *training, "--dry-run"]
        environment = {**os.environ, "RANK": "0", "WORLD_SIZE": str(count * hosts[0].slots)}
        result = subprocess.run(command, env=environment, text=True, capture_output=True)
        if result.returncode == 0:
            return hosts[:count]
        error = error or result.stderr.strip()
    raise AmplifyError(f"no restart on {len(hosts)} machines or fewer: {error}")
