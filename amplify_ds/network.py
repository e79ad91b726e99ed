"""Ports, listening sockets and network interfaces. Nothing listens on more addresses than necessary.

A socket that listens on all interfaces can be reached from every network of the machine. Ranks on one machine need only
loopback; ranks on several machines need the one address by which the others reach the first.
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
PORTS = range(20_000, 32_768)  # below those that Linux assigns to connections
_DISCARD = 9  # a port for finding a route; nothing is sent to it


def ranks_here() -> int | None:
    """Return the number of ranks on this machine, as DeepSpeed's launcher or torchrun sets it; None without one."""
    count = os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE")
    return int(count) if count else None


def free_port(address: str = LOOPBACK) -> int:
    """Return a TCP port that is free at the moment on `address`, or on all interfaces if that is "".

    The port is bound for a moment, without listening. It is below the ports that the system assigns to connections
    (from 32768 on in Linux), because one of those may be taken before it is used.
    """
    for port in (*random.SystemRandom().sample(PORTS, 100), 0):  # 0: the system chooses
        with socket.socket() as candidate, suppress(OSError):
            candidate.bind((address, port))
            return candidate.getsockname()[1]
    raise OSError(errno.EADDRINUSE, "no TCP port is free", address)


def listener(address: str, port: int) -> socket.socket:
    """Return a socket that listens on `address`, a host name or IP address, and on no other address of this machine.

    It listens on all interfaces in two cases, in which other machines could not connect otherwise: /etc/hosts of this
    machine gives the name a loopback address (as Debian does with 127.0.1.1), or the address does not belong to this
    machine because it is translated on the way. Raises OSError if the port is taken or the name is unknown.
    """
    family, ip = _resolve(address)
    if _is_misleading(address, ip):
        ip = "::" if family == socket.AF_INET6 else "0.0.0.0"
    try:
        return socket.create_server((ip, port), family=family)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
    return socket.create_server(("", port))


def interface_towards(address: str) -> str | None:
    """Return the network interface, such as eth0, through which this machine reaches `address`; None if unknown."""
    try:
        family, ip = _resolve(address)
        if _is_misleading(address, ip):
            return None
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((ip, _DISCARD))
            local = probe.getsockname()[0]
        interfaces = psutil.net_if_addrs()
    except OSError:
        return None
    return next((name for name, entries in interfaces.items() if any(x.address == local for x in entries)), None)


def _resolve(address: str) -> tuple[socket.AddressFamily, str]:
    """Return family and IP address of a host name or IP address, IPv4 if possible: other machines try all addresses."""
    candidates = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    family, *_, (ip, *_) = min(candidates, key=lambda candidate: candidate[0] != socket.AF_INET)
    return family, str(ip)


def _is_misleading(address: str, ip: str) -> bool:
    """Return whether a name for use by other machines resolves to loopback on this one."""
    return ipaddress.ip_address(ip).is_loopback and address not in (ip, "localhost")
