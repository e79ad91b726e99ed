"""Which addresses of this machine are listened on: as few as do.

Whatever listens on all interfaces can be reached from every network that the machine is on. Ranks of one machine need
loopback alone; ranks of several need the one address by which the other machines know the first.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import random
import socket
from contextlib import suppress

import psutil

LOOPBACK = "127.0.0.1"
BELOW_THE_SYSTEMS = range(20_000, 32_768)
_DISCARD = 9  # a port for finding a route; nothing is sent to it


def ranks_here() -> int | None:
    """How many ranks the launcher runs on this machine, as DeepSpeed's or torchrun says it; None where neither does."""
    told = os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE")
    return int(told) if told else None


def free_port(address: str = LOOPBACK) -> int:
    """Return a TCP port that is free at the moment; "" asks for one that is free on all interfaces.

    The port is bound for a moment and never listened on. It lies below those that the system gives to connections
    (from 32768 on in Linux), any of which may be in use before the port is.
    """
    for port in (*random.SystemRandom().sample(BELOW_THE_SYSTEMS, 100), 0):  # 0: let the system choose after all
        with socket.socket() as found, suppress(OSError):
            found.bind((address, port))
            return found.getsockname()[1]
    raise OSError(errno.EADDRINUSE, "no TCP port is free", address)


def listener(address: str, port: int) -> socket.socket:
    """Return a socket that listens on `address`, a name or number, and on no other address of this machine.

    It listens on all interfaces in two cases, in which other machines could not connect otherwise: this machine's own
    /etc/hosts gives the name a loopback address (as Debian does for 127.0.1.1), or the address is not one of this
    machine's (it is translated on the way). Raises OSError when the port is taken or the name is unknown.
    """
    family, found = _resolve(address)
    if _is_misleading(address, found):
        found = "::" if family == socket.AF_INET6 else "0.0.0.0"
    try:
        return socket.create_server((found, port), family=family)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
    return socket.create_server(("", port))


def interface_towards(address: str) -> str | None:
    """Return the network interface, such as eth0, through which this machine reaches `address`; None if unknown."""
    try:
        family, found = _resolve(address)
        if _is_misleading(address, found):
            return None
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((found, _DISCARD))
            own = probe.getsockname()[0]
        interfaces = psutil.net_if_addrs()
    except OSError:
        return None
    return next((name for name, of_it in interfaces.items() if any(one.address == own for one in of_it)), None)


def _resolve(address: str) -> tuple[socket.AddressFamily, str]:
    """(family, number) of a name or number, IPv4 where there is a choice: other machines try all that they find."""
    found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    family, *_, (number, *_) = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, str(number)


def _is_misleading(address: str, number: str) -> bool:
    """Whether a name that is meant for other machines stands for loopback here."""
    return ipaddress.ip_address(number).is_loopback and address not in (number, "localhost")
