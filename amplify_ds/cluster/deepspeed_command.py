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

# pdsh puts no names of machines in front of lines; DeepSpeed's launcher on each machine does not tell what it does. The
# runner has no option for the second, but writes this one's value as it is into the remote command.
QUIET = ("--launcher_args=-N", "--enable_each_rank_log=None --log_level=critical")


PORT_WITHOUT_SSH = 29500  # where the ranks meet when nodes are started one by one: all must know it beforehand


class MemoryFiles:
    """Files in memory that processes of the same user can open by their paths while this process holds them.

    They are gone with this process however it ends: a file in the temporary directory would outlive a SIGKILL.
    """

    def __init__(self) -> None:
        self._descriptors: list[int] = []

    def __enter__(self) -> MemoryFiles:
        return self

    def __exit__(self, *_) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def add(self, name: str, text: str) -> str:
        """Return the path of a new file. name: for people who look at the process."""
        descriptor = os.memfd_create(name)
        self._descriptors.append(descriptor)
        with open(descriptor, "w", encoding="utf-8", closefd=False) as file:
            file.write(text)
        return f"/proc/{os.getpid()}/fd/{descriptor}"


@dataclass(frozen=True)
class Meeting:
    """Where the ranks find each other."""

    address: str
    port: int


@dataclass(frozen=True)
class Launch:
    """What to start. hosts: [] for this machine alone. node: this machine's place among them, started without ssh."""

    training: Sequence[str]  # words for amplify_ds.train
    options: Sequence[str]  # further ones for the launcher, as the user gave them
    hosts: list[Host] = field(default_factory=list)
    ranks: int | None = None  # of this machine alone; None: one for each GPU
    node: int | None = None

    @property
    def by_ssh(self) -> bool:
        return bool(self.hosts) and self.node is None and not (len(self.hosts) == 1 and self.hosts[0].is_here)

    def words(self, meeting: Meeting, files: MemoryFiles) -> list[str]:
        """Return the command; what it reads is put into `files`, which must be open as long as it runs."""
        words = [_deepspeed(), "--log_level", "critical", "--master_addr", meeting.address]
        words += ["--master_port", str(meeting.port)]
        if self.node is not None:
            words += ["--hostfile", files.add("hostfile", hostfile_text(self.hosts))]
            words += ["--no_ssh", "--node_rank", str(self.node)]
        elif self.by_ssh:
            if not shutil.which("pdsh"):
                raise AmplifyError("pdsh is not installed here: apt install pdsh, or start each node with --no_ssh")
            for path in (str(Path.cwd()), sys.executable):  # the runner writes them as they are into a remote command
                if shlex.quote(path) != path:
                    raise AmplifyError(f"{path}: the path must have no blanks or signs that a shell reads; move it")
            words += ["--hostfile", files.add("hostfile", hostfile_text(self.hosts))]
            words += ["--no_ssh_check", "--force_multi", *QUIET]
        else:
            words += self._devices()
        training = [for_pdsh(word) for word in self.training] if self.by_ssh else self.training
        return [*words, *self.options, "--no_local_rank", "--module", "amplify_ds.train", *training]

    def environment(self, files: MemoryFiles, own: Mapping[str, str]) -> dict[str, str]:
        """Return the launcher's environment. own: what every rank of this launch gets besides."""
        environment = {**os.environ, **own}
        if self.by_ssh:
            environment["DS_ENV_FILE"] = files.add("deepspeed_env", variables.file_text(environment, own))
            given = os.environ.get("PDSH_SSH_ARGS_APPEND", "")  # ssh takes the first of two
            environment["PDSH_SSH_ARGS_APPEND"] = f"{given} {shlex.join(OPTIONS)}".strip()
        else:
            environment["AMPLIFY_LAUNCHER_PID"] = f"{os.environ.get('AMPLIFY_LAUNCHER_PID', '')} {os.getpid()}".strip()
        return environment

    def _devices(self) -> list[str]:
        """Given a number, DeepSpeed would ignore CUDA_VISIBLE_DEVICES."""
        ranks = self.hosts[0].slots if self.hosts else self.ranks
        visible = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
        if ranks is None:
            return []
        if not visible:
            return ["--num_accelerators", str(ranks)]
        if ranks > len(visible):
            raise AmplifyError(f"{ranks} ranks are asked for, CUDA_VISIBLE_DEVICES shows {len(visible)} devices")
        return ["--include", f"localhost:{','.join(visible[:ranks])}"]


def for_pdsh(word: str) -> str:
    """A word that the remote shell gives back as it is, after pdsh and DeepSpeed's runner have had their way with it.

    pdsh replaces %h, %u and %n. The runner puts a word with a blank into double quotes, and escapes those inside; other
    words it leaves to the shell.
    """
    if "\n" in word or "\r" in word:
        raise AmplifyError(f"{word!r}: a line end in an option does not reach other machines")
    word = word.replace("%", "%%")
    if " " not in word:
        return shlex.quote(word)
    return "".join("\\" + letter if letter in "\\$`" else letter for letter in word)


def _deepspeed() -> str:
    beside = Path(sys.executable).with_name("deepspeed")
    found = str(beside) if beside.exists() else shutil.which("deepspeed")
    if not found:
        raise AmplifyError("the deepspeed launcher is not installed; pip install -r requirements.txt")
    return found
