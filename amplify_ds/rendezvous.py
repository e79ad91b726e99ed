"""Where the ranks find each other: a key-value store on rank 0, which listens on one address only.

torch's own store listens on all interfaces, and gloo on the address of the host's name, whatever network that is on.
Here the ranks of one machine use loopback; those of several machines use MASTER_ADDR and the network that leads there
(network.py names the exceptions). DeepSpeed and torch get the store through `URL`, as their init_method.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from datetime import timedelta

from torch.distributed import DistError, HashStore, PrefixStore, Store, TCPStore, register_rendezvous_handler

from amplify_ds import network
from amplify_ds.errors import AmplifyError, first_line

URL = "amplify://"
SECONDS_BETWEEN_TRIES = 0.1
JOB = "amplify_ds/job"

_store: Store | None = None


def meet(timeout: timedelta) -> Store:
    """Return the store that all ranks share, made by the first call. Reads what a launcher sets: RANK, WORLD_SIZE, …

    Raises AmplifyError when rank 0 cannot listen, or another rank does not find it within `timeout`.
    """
    global _store
    if _store is None:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if world_size == 1:
            _store = HashStore()  # in memory: nothing listens
            return _store
        of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # which has made a store already
        address = network.LOOPBACK if on_one_machine() and not of_torchrun else os.environ["MASTER_ADDR"]
        port = int(os.environ["MASTER_PORT"])
        try:
            serve = rank == 0 and not of_torchrun
            found: Store = _serve(address, port, timeout) if serve else _connect(address, port, timeout)
            if of_torchrun:  # its store outlives the ranks: after a restart they shall find nothing of those before
                found = PrefixStore(f"amplify_ds/{os.environ['TORCHELASTIC_RESTART_COUNT']}", found)
            if rank == 0:
                found.set(JOB, _job())
            if found.get(JOB).decode() != _job():
                raise OSError(errno.EADDRINUSE, "the ranks of another job meet there")
        except (OSError, DistError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise AmplifyError(
                f"the ranks could not meet at {address}:{port}: {reason}. If another job uses that port, give the "
                "launcher another one with --master_port"
            ) from None
        _store = found
    return _store


def choose_interfaces() -> None:
    """Let gloo and NCCL use the network of the store, unless the environment names their interfaces."""
    if name := network.interface_towards(network.LOOPBACK if on_one_machine() else os.environ["MASTER_ADDR"]):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        if on_one_machine():  # of several networks between machines NCCL itself chooses the fastest
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def on_one_machine() -> bool:
    """Whether all ranks run here, as far as the launcher says."""
    return int(os.environ["WORLD_SIZE"]) in (1, network.ranks_here())


def _job() -> str:
    """What the ranks of this start have in common, and those of another on the same port do not, as far as is known."""
    return os.environ.get("AMPLIFY_LAUNCH") or (str(os.getppid()) if on_one_machine() else "")


def _serve(address: str, port: int, timeout: timedelta) -> TCPStore:
    with network.listener(address, port) as listening:
        own = listening.getsockname()[0]
        own = network.LOOPBACK if own in ("0.0.0.0", "::") else own
        descriptor = listening.detach()  # the store closes it
        return TCPStore(own, port, None, True, timeout, wait_for_workers=False, master_listen_fd=descriptor)


def _connect(address: str, port: int, timeout: timedelta) -> TCPStore:
    _wait_for_listener(address, port, timeout.total_seconds())
    return TCPStore(address, port, None, False, timeout, wait_for_workers=False)


def _wait_for_listener(address: str, port: int, seconds: float) -> None:
    """Until rank 0 listens. torch's own waiting prints a screen of C++ frames when a signal interrupts it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((address, port), timeout=max(1.0, deadline - time.monotonic())).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(SECONDS_BETWEEN_TRIES)


def _handler(url: str, timeout: timedelta, **options) -> Iterator[tuple[Store, int, int]]:
    yield meet(timeout), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


register_rendezvous_handler(URL.partition(":")[0], _handler)
