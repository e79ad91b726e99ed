"""Check whether machines reach each other (preflight): `python -m amplify_ds.cluster.connectivity QUERY` on each.

Every machine connects to the first one at the port where the ranks will meet, and sends its name and the number of a
port that the system chose, as NCCL and Gloo do; the first machine connects back to that port, at the address from which
the connection came. A token distinguishes this preflight's connections from others. Sockets are closed when all
machines have connected or the time is over.

Each machine also checks that it sees the files that the others wrote into the output directory.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

from amplify_ds import network
from amplify_ds.cluster.remote_query import answer

MARGIN = 2.0  # seconds reserved for starting and reporting


def report(query: dict[str, Any]) -> dict[str, Any]:
    """Return the results of `_listen` or `_connect`, and the names of machines whose files are missing, "unseen".

    query: name, address, port, token, seconds; peers: on the first machine the number of others, else None; files:
    {name: path}.
    """
    deadline = time.monotonic() + query["seconds"] - MARGIN
    result = _connect(query, deadline) if query["peers"] is None else _listen(query, deadline)
    unseen = set(query["files"])
    while unseen:  # a network file system may show a new name a moment later
        unseen = {name for name in unseen if not Path(query["files"][name]).is_file()}
        if not unseen or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return {**result, "unseen": sorted(unseen)}


def _listen(query: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Return {"listening": error or None, "back": {name: error of the connection back, or None}}."""
    try:
        listener = network.listener(query["address"], query["port"])  # as rank 0 does
    except OSError as error:
        return {"listening": error.strerror, "back": {}}
    back: dict[str, str | None] = {}
    with listener:
        threads: list[threading.Thread] = []
        while len(threads) < query["peers"]:
            accepted = _accept(listener, deadline)
            if accepted is None:
                break
            threads.append(threading.Thread(target=_connect_back, args=(*accepted, query["token"], back, deadline)))
            threads[-1].start()
        for thread in threads:
            thread.join()
    return {"listening": None, "back": back}


def _connect_back(connection: socket.socket, address: str, token: str, back: dict, deadline: float) -> None:
    """Read a greeting, connect to the port that it names, and set back[name] to the error, or None."""
    with connection:
        try:
            connection.settimeout(_remaining(deadline))
            greeting = json.loads(connection.makefile().readline())
            if greeting["token"] != token:
                return
        except (OSError, ValueError, KeyError, TypeError):  # not a connection of this preflight
            return
        try:
            with socket.create_connection((address, greeting["port"]), _remaining(deadline) / 2) as reply:
                reply.sendall(token.encode())
            back[greeting["name"]] = None
        except OSError as error:
            back[greeting["name"]] = f"{address}: {error.strerror or error}"


def _connect(query: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Return {"to_first": error or None}. Tries again, because the first machine may start to listen later."""
    error: str | None = None
    while _remaining(deadline) > 0.5:
        try:
            with socket.create_connection((query["address"], query["port"]), _remaining(deadline) / 2) as connection:
                with socket.create_server((connection.getsockname()[0], 0)) as listener:
                    greeting = {key: query[key] for key in ("token", "name")}
                    greeting["port"] = listener.getsockname()[1]
                    connection.sendall(f"{json.dumps(greeting)}\n".encode())
                    _accept(listener, deadline)  # the first machine reports whether it could connect
            return {"to_first": None}
        except OSError as caught:
            error = caught.strerror or str(caught)
            time.sleep(min(0.3, max(0.0, _remaining(deadline))))
    return {"to_first": error or "no time was left"}


def _accept(listener: socket.socket, deadline: float) -> tuple[socket.socket, str] | None:
    """Return the next connection and its IP address, or None at the deadline."""
    listener.settimeout(max(0.01, _remaining(deadline)))
    try:
        connection, (address, *_) = listener.accept()
    except TimeoutError:
        return None
    return connection, address


def _remaining(deadline: float) -> float:
    """Return the seconds until the deadline, at least 0."""
    return max(0.0, deadline - time.monotonic())


if __name__ == "__main__":
    answer(report)
