"""The hostfile: which machines, and how many ranks on each. One line per machine, `NAME slots=N`, # begins a comment.

DeepSpeed trains on this machine alone, without a word, when the file is missing, and mixes up devices when the numbers
of slots differ. Here both are errors, like a name that stands twice.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

from amplify_ds.errors import AmplifyError

LINE = re.compile(r"(?P<name>\S+)\s+slots=(?P<slots>[1-9][0-9]*)")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:-]*")  # what ssh and pdsh take as one host, and no option


@dataclass(frozen=True)
class Host:
    """A machine as ssh knows it, and its ranks: one for each GPU, or CPU ranks."""

    name: str
    slots: int

    @property
    def is_here(self) -> bool:
        """It is this machine, by name."""
        names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn()}
        return self.name in names | {socket.gethostname().partition(".")[0]}


def read_hostfile(path: Path) -> list[Host]:
    """Return the machines in their order, the first one with rank 0; AmplifyError if they cannot train together."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AmplifyError(f"--hostfile {path}: cannot be read ({error}); see launch/hostfile.example") from None
    hosts: dict[str, Host] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = LINE.fullmatch(text)
        if not found or not NAME.fullmatch(found["name"]):
            raise AmplifyError(
                f"{path}, line {number}: expected 'NAME slots=N', as in 'node-1 slots=8', found {text!r}"
            )
        if found["name"] in hosts:
            raise AmplifyError(f"{path}, line {number}: {found['name']} appears twice; list it once")
        hosts[found["name"]] = Host(found["name"], int(found["slots"]))
    if not hosts:
        raise AmplifyError(f"{path}: names no machine; expected lines 'NAME slots=N', see launch/hostfile.example")
    if len({host.slots for host in hosts.values()}) > 1:
        slots = ", ".join(f"{host.name} {host.slots}" for host in hosts.values())
        raise AmplifyError(
            f"{path}: the machines have different numbers of slots ({slots}). DeepSpeed gives ranks the wrong devices "
            "then: use the smallest number on all."
        )
    return list(hosts.values())


def hostfile_text(hosts: list[Host]) -> str:
    """Return what DeepSpeed reads: comments and blanks are gone, so is what it would misread."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts)
