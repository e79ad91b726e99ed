"""The machines of a job: can they take part, and which remain after a failure."""

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
from amplify_ds.errors import AmplifyError
from amplify_ds.errors import print_error as say

SECONDS_BETWEEN_LOOKS = 10
SECONDS_FOR_HOSTS = 600  # that do not answer at a restart: they may be starting again
# Free port, cores, GPUs: said by a machine that is asked whether it can take part.
LOOK = (
    "import glob, os, socket; s = socket.socket(); s.bind(('', 0)); "
    "gpus = glob.glob('/dev/nvidia[0-9]*') + glob.glob('/dev/kfd'); "
    "print(s.getsockname()[1], len(os.sched_getaffinity(0)), len(gpus))"
)


class Machine(NamedTuple):
    """What a machine says of itself."""

    free_port: int
    cores: int
    gpus: int


def that_take_part(hosts: Sequence[Host]) -> dict[Host, Machine]:
    """Ask all at once; AmplifyError that names every machine that cannot be reached, and how to fix it."""
    answers = ask(hosts)
    if lost := [host for host in hosts if answers[host].code]:
        reasons = "\n".join(_why(host, answers[host]) for host in lost)
        raise AmplifyError(f"these machines of the hostfile cannot take part:\n{reasons}")
    return {host: Machine(*map(int, answer.output.split()[-3:])) for host, answer in answers.items()}


def ask(hosts: Sequence[Host]) -> dict[Host, Answer]:
    """Whether each machine can be reached, and has this Python at the same path."""
    return run_on_all(hosts, [sys.executable, "-c", LOOK], seconds=30)


def _why(host: Host, answer: Answer) -> str:
    if answer.code in (124, 255):
        remedy = f"'ssh {host.name} true' must work without a password"
    else:
        remedy = f"{sys.executable} must be there, at the same path in a directory that all machines share"
    return f"  {host.name}: {answer.reason}; {remedy}"


def remaining(hosts: list[Host], drop: bool, training: Sequence[str], signals: Signals) -> list[Host]:
    """The machines for a restart: all, or those that answer and whose ranks can share the batch."""
    deadline = time.monotonic() + SECONDS_FOR_HOSTS
    while hosts and not signals.asked:
        answers = ask(hosts)
        there = [host for host in hosts if answers[host].code == 0]
        lost = ", ".join(f"{host.name} ({answers[host].reason})" for host in hosts if host not in there)
        if not lost:
            return hosts
        if drop and there:
            kept = _that_divide_the_batch(there, training)
            say(f"lost: {lost}; going on with {', '.join(host.name for host in kept)}")
            return kept
        if time.monotonic() > deadline:
            raise AmplifyError(f"no restart: {lost} did not answer for {SECONDS_FOR_HOSTS} s; see --drop-lost-nodes")
        say(f"waiting for {lost}")
        signals.pause(SECONDS_BETWEEN_LOOKS)
    return hosts


def _that_divide_the_batch(hosts: list[Host], training: Sequence[str]) -> list[Host]:
    """The most of these machines on which a dry run of the same training is content."""
    said = ""
    for count in range(len(hosts), 0, -1):
        words = [sys.executable, "-m", "amplify_ds.train", *training, "--dry-run"]
        environment = {**os.environ, "RANK": "0", "WORLD_SIZE": str(count * hosts[0].slots)}
        done = subprocess.run(words, env=environment, text=True, capture_output=True)
        if done.returncode == 0:
            return hosts[:count]
        said = said or done.stderr.strip()
    raise AmplifyError(f"no restart on {len(hosts)} machines or fewer: {said}")
