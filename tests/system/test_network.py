"""Listening sockets: those of real ranks, on one machine and on two nodes."""

import re
import socket
import subprocess
import time

import psutil
import pytest

from amplify_ds import network
from amplify_ds.training import rank_files
from tests.support.commands import environment
from tests.support.needs import needs_environment, needs_nodes
from tests.support.nodes import LOOPBACK, loopback_nodes
from tests.support.paths import ROOT
from tests.support.run_on_nodes import RunOnNodes
from tests.support.training import launch_words

SLOW = """
import os, time
if "LOCAL_RANK" in os.environ:
    from amplify_ds.data.loader import TrainingBatches
    read = TrainingBatches.__getitem__
    TrainingBatches.__getitem__ = lambda self, index: time.sleep(0.2) or read(self, index)
"""


def listening(processes) -> dict[int, set[str]]:
    """Return {port: addresses} on which these processes listen."""
    addresses: dict[int, set[str]] = {}
    for process in processes:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                addresses.setdefault(connection.laddr.port, set()).add(connection.laddr.ip)
    return addresses


def test_the_ranks_of_one_machine_listen_on_loopback_alone(shards, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    output = tmp_path / "run"
    command = launch_words(2, output, shards)
    port = int(command[command.index("--master_port") + 1])
    command[command.index("--master_addr") + 1] = socket.gethostname()  # an address of a real network, if there is one
    variables = {name: value for name, value in environment(2).items() if not name.endswith("SOCKET_IFNAME")}
    run = subprocess.Popen(
        command, cwd=ROOT, env=variables | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, stderr=subprocess.PIPE
    )
    try:
        while len(records := list((output / rank_files.FOLDER).glob("rank-*.json"))) < 2:  # they are not connected yet
            assert run.poll() is None, run.stderr.read().decode()
            time.sleep(0.1)
        assert len(records) == 2
        ports = listening(psutil.Process(run.pid).children(recursive=True))
        with pytest.raises(ConnectionRefusedError), socket.socket() as client:
            client.connect((LOOPBACK[0], port))  # this machine by another address than 127.0.0.1
    finally:
        _, stderr = run.communicate()
    assert run.returncode == 0, stderr.decode()
    assert ports[port] == {"127.0.0.1"}, "the store that all ranks share"
    assert len(ports) >= 3 and set().union(*ports.values()) == {"127.0.0.1"}, ports


@pytest.mark.slow
@needs_environment
@needs_nodes
def test_two_nodes_listen_on_the_addresses_of_the_hostfile_alone(shards, tmp_path):
    with loopback_nodes(tmp_path, RECORD=str(tmp_path / "run.rows")) as nodes:
        run = RunOnNodes(tmp_path, nodes, shards)
        run.start()
        run.wait_for_steps(1)
        ranks = [[p for p in nodes.processes(i) if "amplify_ds.train" in p.cmdline()] for i in (0, 1)]
        ports = [listening(processes) for processes in ranks]
        assert run.end() == 0, run.log.read_text()
    port = int(nodes.launcher[nodes.launcher.index("--master_port") + 1])
    assert ports[0][port] == {LOOPBACK[0]} and port not in ports[1]
    assert all(ports), "gloo listens on each node"
    assert set().union(*ports[0].values(), *ports[1].values()) <= {"127.0.0.1", *LOOPBACK}


def test_a_port_that_is_taken_is_one_message(shards, tmp_path):
    command = launch_words(2, tmp_path / "run", shards)
    port = int(command[command.index("--master_port") + 1])
    with socket.create_server(("", port)):
        result = subprocess.run(command, cwd=ROOT, env=environment(2), text=True, capture_output=True, timeout=120)
    assert result.returncode == 1 and not (tmp_path / "run").exists()
    messages = [line for line in result.stderr.splitlines() if not re.match(r"\[\d{4}-.* \[ERROR\] \[launch.py", line)]
    assert (
        len(messages) == 1
        and f"error: the ranks could not meet at 127.0.0.1:{port}: Address already in use" in messages[0]
    )
    assert "--master_port" in messages[0]


@pytest.mark.parametrize(
    "name, number, expected",
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("localhost", None, "127.0.0.1"),
        ("127.0.0.2", None, "127.0.0.2"),
        ("node-1", "127.0.0.3", "0.0.0.0"),  # as in /etc/hosts of Debian: other machines could not connect
        ("node-1", "192.0.2.7", "0.0.0.0"),  # not an address of this machine: translated by a router
    ],
)
def test_a_listener_accepts_connections_at_its_address_only(monkeypatch, name, number, expected):
    if number:
        answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, 0))]
        getaddrinfo = socket.getaddrinfo
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *a, **k: answer if host == name else getaddrinfo(host, *a, **k)
        )
    with network.listener(name, 0) as listener:
        assert listener.getsockname()[0] == expected


def test_the_interface_is_that_of_the_route():
    interfaces = psutil.net_if_addrs().items()
    loopback = next(name for name, entries in interfaces if any(entry.address == "127.0.0.1" for entry in entries))
    assert network.interface_towards("127.0.0.1") == network.interface_towards("127.0.0.2") == loopback
    assert network.interface_towards("no-such-host.invalid") is None
    for name, entries in interfaces:
        for entry in entries:
            if entry.family == socket.AF_INET and psutil.net_if_stats()[name].isup:
                assert name == network.interface_towards(entry.address) or entry.address.startswith("127.")
