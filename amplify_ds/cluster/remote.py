"""Commands on other machines, by ssh and without a shell of ours in between.

Options for ssh go where pdsh takes them too, into PDSH_SSH_ARGS_APPEND; the rest belongs in ~/.ssh/config.
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

AT_ONCE = 64  # connections
# A connection that says nothing for 15 s is lost: its node is down or cut off. A password is never asked for.
OPTIONS = "-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3".split()


class Answer(NamedTuple):
    """code: the command's, 255 when ssh did not get through, 124 when the time was over."""

    code: int
    output: str
    errors: str

    @property
    def reason(self) -> str:
        """Why it failed, in a line."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


def ssh_options() -> list[str]:
    """Options of ours behind the user's: ssh takes the first of two."""
    return [*shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", "")), *OPTIONS]


def words_on(
    host: Host, words: Iterable[str], variables: Mapping[str, str] | None = None, way: str | None = None
) -> list[str]:
    """`words` as a command for this machine that runs on `host`, in the same directory.

    way: "here" without a connection, "ssh", or "srun" as a step of the SLURM job that this is part of; without one,
    here if this is the host's name, else ssh.
    """
    command = ["env", *(f"{key}={value}" for key, value in (variables or {}).items()), *words]
    way = way or ("here" if host.is_here else "ssh")
    if way == "srun":  # takes directory and environment along; --overlap: beside what the job's devices do already
        return ["srun", "--nodes=1", "--ntasks=1", "--overlap", f"--nodelist={host.name}", *command]
    if way == "ssh":
        remote = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(command)}"
        return ["ssh", *ssh_options(), host.name, remote]
    return command


def python_words(module: str, *words: str) -> list[str]:
    """A module of ours under the interpreter that runs here: DeepSpeed starts ranks with that path on every machine."""
    return [sys.executable, "-m", module, *words]


def run_on(
    host: Host,
    words: Iterable[str],
    seconds: float = 60,
    variables: Mapping[str, str] | None = None,
    way: str | None = None,
) -> Answer:
    """Run a command on one machine and wait for it."""
    try:
        done = subprocess.run(
            words_on(host, words, variables, way),
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
    return Answer(done.returncode, done.stdout, done.stderr)


def run_each(
    commands: Mapping[Host, Iterable[str]],
    seconds: float = 60,
    variables: Mapping[str, str] | None = None,
    way: str | None = None,
) -> dict[Host, Answer]:
    """A command of its own on each machine, all at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = pool.map(lambda host: run_on(host, commands[host], seconds, variables, way), commands)
        return dict(zip(commands, answers))


def run_on_all(hosts: Iterable[Host], words: Iterable[str], seconds: float = 60) -> dict[Host, Answer]:
    """The same command on all machines at once."""
    words = list(words)
    return run_each(dict.fromkeys(hosts, words), seconds)
