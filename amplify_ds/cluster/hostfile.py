"""The hostfile: which machines, and how many ranks on each. One line per machine, `NAME slots=N`, # begins a comment.

DeepSpeed silently trains on this machine alone when the file is missing, and mixes up devices when the numbers of slots
differ. Here both are errors, as is a name that appears twice.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

from amplify_ds.errors import AmplifyError

LINE = re.compile(r"(?P<name>\S+)\s+slots=(?P<slots>[1-9][0-9]*)")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:-]*")  # what ssh and pdsh take as one host, and not as an option


@dataclass(frozen=True)
class Host:
    """A machine, by the name that ssh uses, and its number of ranks: one for each GPU, or CPU ranks."""

    name: str
    slots: int

    @property
    def is_here(self) -> bool:
        """Whether the name is one of this machine's."""
        names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn()}
        return self.name in names | {socket.gethostname().partition(".")[0]}


def read_hostfile(path: Path) -> list[Host]:
    """Return the machines in the order of the file; rank 0 is on the first one.

    Raises AmplifyError for a file that cannot be read, names no machine or has an invalid line, and for machines with
    different numbers of slots.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AmplifyError(f"--hostfile {path}: cannot be read ({error}); see launch/hostfile.example") from None
    hosts: dict[str, Host] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = LINE.fullmatch(text)
        if not match or not NAME.fullmatch(match["name"]):
            raise AmplifyError(
                f"{path}, line {number}: expected 'NAME slots=N', as in 'node-1 slots=8', found {text!r}"
            )
        if match["name"] in hosts:
            raise AmplifyError(f"{path}, line {number}: {match['name']} appears twice; list it once")
        hosts[match["name"]] = Host(match["name"], int(match["slots"]))
    if not hosts:
        raise AmplifyError(f"{path}: names no machine; expected lines 'NAME slots=N', see launch/hostfile.example")
    if len({host.slots for host in hosts.values()}) > 1:
        slots = ", ".join(f"{host.name} {host.slots}" for host in hosts.values())
        raise AmplifyError(
            f"{path}: the machines have different numbers of slots ({slots}). DeepSpeed would assign ranks to wrong "
            "devices: use the smallest number on all machines."
        )
    return list(hosts.values())


def hostfile_text(hosts: list[Host]) -> str:
    """Return a hostfile for DeepSpeed, without comments and blank lines, which it would misread."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts)
