"""Run commands on other machines, by ssh or srun, quoted so that shells do not change them.

Options for ssh come from PDSH_SSH_ARGS_APPEND, which pdsh uses too; others belong in ~/.ssh/config.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from amplify_ds.cluster.hostfile import Host

MAX_CONNECTIONS = 64  # at the same time
# A connection without a sign of life for 15 s is lost: its node is down or cut off. Never asks for a password.
OPTIONS = "-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3".split()


class Answer(NamedTuple):
    """The result of a command. code: its exit code, 255 if ssh could not connect, 124 if the time was over."""

    code: int
    output: str
    errors: str

    @property
    def reason(self) -> str:
        """Why it failed, in one line."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


def ssh_options() -> list[str]:
    """Return the user's options followed by OPTIONS: ssh uses the first of two."""
    return [*shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", "")), *OPTIONS]


def command_on(
    host: Host, command: Iterable[str], variables: Mapping[str, str] | None = None, transport: str | None = None
) -> list[str]:
    """Return a command for this machine that runs `command` on `host`, in the same directory.

    transport: "here" for no connection, "ssh", or "srun" for a step of the SLURM job of this process; None means here
    if this is the host's name, else ssh. variables: added to the environment.
    """
    with_variables = ["env", *(f"{key}={value}" for key, value in (variables or {}).items()), *command]
    transport = transport or ("here" if host.is_here else "ssh")
    if transport == "srun":  # keeps directory and environment; --overlap: shares devices with the job's other steps
        return ["srun", "--nodes=1", "--ntasks=1", "--overlap", f"--nodelist={host.name}", *with_variables]
    if transport == "ssh":
        remote = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(with_variables)}"
        return ["ssh", *ssh_options(), host.name, remote]
    return with_variables


def python_command(module: str, *arguments: str) -> list[str]:
    """Return a command that runs a module with this interpreter, whose path DeepSpeed uses on every machine."""
    return [sys.executable, "-m", module, *arguments]


def run_on(
    host: Host,
    command: Iterable[str],
    seconds: float = 60,
    variables: Mapping[str, str] | None = None,
    transport: str | None = None,
) -> Answer:
    """Run a command on one machine, for `seconds` at most, and return its result."""
    try:
        result = subprocess.run(
            command_on(host, command, variables, transport),
            text=True,
            errors="replace",
            capture_output=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Answer(124, "", f"no answer within {seconds:g} s")
    except FileNotFoundError as error:
        return Answer(127, "", f"{error.filename} is not installed here")
    return Answer(result.returncode, result.stdout, result.stderr)


def run_each(
    commands: Mapping[Host, Iterable[str]],
    seconds: float = 60,
    variables: Mapping[str, str] | None = None,
    transport: str | None = None,
) -> dict[Host, Answer]:
    """Run a different command on each machine, all at once, and return the results."""
    with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
        answers = pool.map(lambda host: run_on(host, commands[host], seconds, variables, transport), commands)
        return dict(zip(commands, answers))


def run_on_all(hosts: Iterable[Host], command: Iterable[str], seconds: float = 60) -> dict[Host, Answer]:
    """Run the same command on all machines at once, and return the results."""
    command = list(command)
    return run_each(dict.fromkeys(hosts, command), seconds)
