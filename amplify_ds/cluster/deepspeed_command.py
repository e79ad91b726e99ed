"""The command line of DeepSpeed's launcher: for this machine, for all machines of a hostfile, for one node of a job."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amplify_ds.cluster import variables
from amplify_ds.cluster.hostfile import Host, hostfile_text
from amplify_ds.cluster.remote import OPTIONS
from amplify_ds.errors import AmplifyError

# No names of machines in front of pdsh's lines, and no log of DeepSpeed's launcher on each machine. The runner has no
# option for the latter, but copies the value of --enable_each_rank_log into the remote command.
QUIET = ("--launcher_args=-N", "--enable_each_rank_log=None --log_level=critical")


PORT_WITHOUT_SSH = 29500  # where the ranks meet when nodes are started separately: all must know it in advance


class MemoryFiles:
    """Files in memory that processes of the same user can open by path while this process keeps them open.

    They disappear with this process however it ends; a file in the temporary directory would outlive a SIGKILL.
    """

    def __init__(self) -> None:
        self._descriptors: list[int] = []

    def __enter__(self) -> MemoryFiles:
        return self

    def __exit__(self, *_) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def add(self, name: str, text: str) -> str:
        """Return the path of a new file that contains `text`. name: shown in /proc."""
        descriptor = os.memfd_create(name)
        self._descriptors.append(descriptor)
        with open(descriptor, "w", encoding="utf-8", closefd=False) as file:
            file.write(text)
        return f"/proc/{os.getpid()}/fd/{descriptor}"


@dataclass(frozen=True)
class Rendezvous:
    """Address and port at which the ranks find each other."""

    address: str
    port: int


@dataclass(frozen=True)
class Launch:
    """What to start."""

    training: Sequence[str]  # arguments of amplify_ds.train
    options: Sequence[str]  # the user's own options for DeepSpeed's launcher
    hosts: list[Host] = field(default_factory=list)  # [] for this machine alone
    ranks: int | None = None  # on this machine alone; None: one for each GPU
    node: int | None = None  # index of this machine in hosts, if nodes are started separately, without ssh

    @property
    def by_ssh(self) -> bool:
        return bool(self.hosts) and self.node is None and not (len(self.hosts) == 1 and self.hosts[0].is_here)

    def command(self, rendezvous: Rendezvous, files: MemoryFiles) -> list[str]:
        """Return the command. Its hostfile is added to `files`, which must stay open as long as the command runs.

        Raises AmplifyError if pdsh is missing or needed paths contain characters that a shell interprets.
        """
        command = [_deepspeed(), "--log_level", "critical", "--master_addr", rendezvous.address]
        command += ["--master_port", str(rendezvous.port)]
        if self.node is not None:
            command += ["--hostfile", files.add("hostfile", hostfile_text(self.hosts))]
            command += ["--no_ssh", "--node_rank", str(self.node)]
        elif self.by_ssh:
            if not shutil.which("pdsh"):
                raise AmplifyError("pdsh is not installed here: apt install pdsh, or start each node with --no_ssh")
            for path in (str(Path.cwd()), sys.executable):  # the runner copies them unquoted into a remote command
                if shlex.quote(path) != path:
                    raise AmplifyError(
                        f"{path}: the path contains blanks or characters that a shell interprets; move the repository"
                    )
            command += ["--hostfile", files.add("hostfile", hostfile_text(self.hosts))]
            command += ["--no_ssh_check", "--force_multi", *QUIET]
        else:
            command += self._devices()
        training = [for_pdsh(argument) for argument in self.training] if self.by_ssh else self.training
        return [*command, *self.options, "--no_local_rank", "--module", "amplify_ds.train", *training]

    def environment(self, files: MemoryFiles, extra: Mapping[str, str]) -> dict[str, str]:
        """Return the launcher's environment. extra: additional variables for every rank of this launch."""
        environment = {**os.environ, **extra}
        if self.by_ssh:
            environment["DS_ENV_FILE"] = files.add("deepspeed_env", variables.file_text(environment, extra))
            options = os.environ.get("PDSH_SSH_ARGS_APPEND", "")  # the user's first: ssh uses the first of two
            environment["PDSH_SSH_ARGS_APPEND"] = f"{options} {shlex.join(OPTIONS)}".strip()
        else:
            environment["AMPLIFY_LAUNCHER_PID"] = f"{os.environ.get('AMPLIFY_LAUNCHER_PID', '')} {os.getpid()}".strip()
        return environment

    def _devices(self) -> list[str]:
        """Return the launcher's options that choose devices. With a number, DeepSpeed ignores CUDA_VISIBLE_DEVICES."""
        ranks = self.hosts[0].slots if self.hosts else self.ranks
        visible = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
        if ranks is None:
            return []
        if not visible:
            return ["--num_accelerators", str(ranks)]
        if ranks > len(visible):
            raise AmplifyError(f"{ranks} ranks, but CUDA_VISIBLE_DEVICES lists only {len(visible)} devices")
        return ["--include", f"localhost:{','.join(visible[:ranks])}"]


def for_pdsh(argument: str) -> str:
    """Return the argument quoted such that it arrives unchanged after pdsh, DeepSpeed's runner and the remote shell.

    pdsh replaces %h, %u and %n. The runner puts an argument with a blank into double quotes and escapes those inside;
    it leaves other arguments to the shell. Raises AmplifyError for a line break.
    """
    if "\n" in argument or "\r" in argument:
        raise AmplifyError(f"{argument!r}: options with line breaks cannot be passed to other machines")
    argument = argument.replace("%", "%%")
    if " " not in argument:
        return shlex.quote(argument)
    return "".join("\\" + letter if letter in "\\$`" else letter for letter in argument)


def _deepspeed() -> str:
    """Return the path of the deepspeed launcher."""
    beside_python = Path(sys.executable).with_name("deepspeed")
    path = str(beside_python) if beside_python.exists() else shutil.which("deepspeed")
    if not path:
        raise AmplifyError("the deepspeed launcher is not installed; pip install -r requirements.txt")
    return path
