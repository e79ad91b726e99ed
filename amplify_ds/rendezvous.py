"""Rendezvous: the ranks find each other through a key-value store on rank 0, which listens on one address only.

torch's own store listens on all interfaces, and gloo on the address of the host name, on any network.
Here ranks on one machine use loopback; ranks on several machines use MASTER_ADDR and the network that leads there
(network.py has the exceptions). DeepSpeed and torch get the store by passing `URL` as init_method.
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
    """Return the store that all ranks share, created by the first call from RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

    Raises AmplifyError if rank 0 cannot listen or another rank does not reach it within `timeout`.
    """
    global _store
    if _store is None:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if world_size == 1:
            _store = HashStore()  # in memory: nothing listens
            return _store
        by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun already runs a store
        address = network.LOOPBACK if on_one_machine() and not by_torchrun else os.environ["MASTER_ADDR"]
        port = int(os.environ["MASTER_PORT"])
        try:
            serve = rank == 0 and not by_torchrun
            store: Store = _serve(address, port, timeout) if serve else _connect(address, port, timeout)
            if by_torchrun:  # its store outlives the ranks: a restart must not find the keys of earlier ranks
                store = PrefixStore(f"amplify_ds/{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
            if rank == 0:
                store.set(JOB, _job())
            if store.get(JOB).decode() != _job():
                raise OSError(errno.EADDRINUSE, "the ranks of another job use it")
        except (OSError, DistError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise AmplifyError(
                f"the ranks could not meet at {address}:{port}: {reason}. If another job uses that port, choose "
                "another one with --master_port of the launcher"
            ) from None
        _store = store
    return _store


def choose_interfaces() -> None:
    """Make gloo and NCCL use the network of the store, unless the environment sets their interfaces."""
    if name := network.interface_towards(network.LOOPBACK if on_one_machine() else os.environ["MASTER_ADDR"]):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        if on_one_machine():  # between machines NCCL itself chooses the fastest network
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def on_one_machine() -> bool:
    """Return whether all ranks run on this machine, according to the launcher's environment variables."""
    return int(os.environ["WORLD_SIZE"]) in (1, network.ranks_here())


def _job() -> str:
    """Return an identifier of this job: the same on all its ranks, and if possible different in another job."""
    return os.environ.get("AMPLIFY_LAUNCH") or (str(os.getppid()) if on_one_machine() else "")


def _serve(address: str, port: int, timeout: timedelta) -> TCPStore:
    with network.listener(address, port) as listening:
        bound = listening.getsockname()[0]
        bound = network.LOOPBACK if bound in ("0.0.0.0", "::") else bound
        descriptor = listening.detach()  # the store closes it
        return TCPStore(bound, port, None, True, timeout, wait_for_workers=False, master_listen_fd=descriptor)


def _connect(address: str, port: int, timeout: timedelta) -> TCPStore:
    _wait_for_listener(address, port, timeout.total_seconds())
    return TCPStore(address, port, None, False, timeout, wait_for_workers=False)


def _wait_for_listener(address: str, port: int, seconds: float) -> None:
    """Wait until rank 0 listens. (torch prints a screen of C++ frames when a signal interrupts its own waiting.)"""
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
