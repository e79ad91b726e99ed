"""Whether machines reach each other, for the preflight: `python -m amplify_ds.cluster.connectivity QUESTION` on each.

Every machine connects to the first one at the port where the ranks will meet. With its greeting goes a port that the
system chose, as NCCL and Gloo take them; the first machine connects back to it, at the address that it sees. A token
tells ours from strangers. Both sides close when all have met, or their time is over.

Besides, each looks for the files that the others wrote into the output directory.
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

MARGIN = 2.0  # seconds of the time for starting and reporting


def report(question: dict[str, Any]) -> dict[str, Any]:
    """name, address, port, token. peers: how many others for the first machine, else None. files: {name: path}."""
    deadline = time.monotonic() + question["seconds"] - MARGIN
    meet = _be_first if question["peers"] is not None else _come
    found = meet(question, deadline)
    missing = set(question["files"])
    while missing:  # a network file system may show a new name a moment later
        missing = {name for name in missing if not Path(question["files"][name]).is_file()}
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return {**found, "unseen": sorted(missing)}


def _be_first(question: dict[str, Any], deadline: float) -> dict[str, Any]:
    """{"listening": error or None, "back": {name: error or None}}"""
    try:
        listener = network.listener(question["address"], question["port"])  # as rank 0 will
    except OSError as error:
        return {"listening": error.strerror, "back": {}}
    back: dict[str, str | None] = {}
    with listener:
        callers: list[threading.Thread] = []
        while len(callers) < question["peers"]:
            accepted = _accept(listener, deadline)
            if accepted is None:
                break
            callers.append(threading.Thread(target=_answer, args=(*accepted, question["token"], back, deadline)))
            callers[-1].start()
        for caller in callers:
            caller.join()
    return {"listening": None, "back": back}


def _answer(connection: socket.socket, address: str, token: str, back: dict, deadline: float) -> None:
    with connection:
        try:
            connection.settimeout(_left(deadline))
            greeting = json.loads(connection.makefile().readline())
            if greeting["token"] != token:
                return
        except (OSError, ValueError, KeyError, TypeError):  # a stranger
            return
        try:
            with socket.create_connection((address, greeting["port"]), _left(deadline) / 2) as answer:
                answer.sendall(token.encode())
            back[greeting["name"]] = None
        except OSError as error:
            back[greeting["name"]] = f"{address}: {error.strerror or error}"


def _come(question: dict[str, Any], deadline: float) -> dict[str, Any]:
    """{"to_first": error or None}; tries again, for the first machine may begin to listen later."""
    error: str | None = None
    while _left(deadline) > 0.5:
        try:
            with socket.create_connection((question["address"], question["port"]), _left(deadline) / 2) as connection:
                with socket.create_server((connection.getsockname()[0], 0)) as listener:
                    greeting = {key: question[key] for key in ("token", "name")}
                    greeting["port"] = listener.getsockname()[1]
                    connection.sendall(f"{json.dumps(greeting)}\n".encode())
                    _accept(listener, deadline)  # whether it came, the first machine knows
            return {"to_first": None}
        except OSError as caught:
            error = caught.strerror or str(caught)
            time.sleep(min(0.3, max(0.0, _left(deadline))))
    return {"to_first": error or "no time was left"}


def _accept(listener: socket.socket, deadline: float) -> tuple[socket.socket, str] | None:
    listener.settimeout(max(0.01, _left(deadline)))
    try:
        connection, (address, *_) = listener.accept()
    except TimeoutError:
        return None
    return connection, address


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


if __name__ == "__main__":
    answer(report)
