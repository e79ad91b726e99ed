"""The preflight on two real ssh servers: its output without failures, and for each kind of failure.

Some failures are faked, and marked so: another version of a package is a folder of metadata; a wrong clock and a
process that hangs are modules that Python imports at its start.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

from amplify_ds.cluster import checks, connectivity, node_report
from amplify_ds.cluster.hostfile import Host
from amplify_ds.cluster.remote import run_on
from amplify_ds.network import free_port
from tests.support.commands import python
from tests.support.needs import needs
from tests.support.nodes import LOOPBACK, Nodes, loopback_nodes
from tests.support.paths import ROOT
from tests.support.training import training_words

HERE = {"PYTHONPATH": str(ROOT)}


def can_mount() -> bool:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


needs_sshd = needs("sshd")
needs_mounts = pytest.mark.skipif(  # in CI the tests run, and fail
    not can_mount() and not os.environ.get("CI"), reason="no right to mount: a node needs a file system of its own"
)


@contextmanager
def unlike_nodes(directory, prefixes, variables):
    """Start two nodes that differ. prefixes: of the commands of their ssh servers; variables: of their environments."""
    with ExitStack() as at_end:
        nodes = Nodes(directory, LOOPBACK, "lo")
        at_end.callback(nodes.end)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "user_key"], check=True)
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        for number, (prefix, of_node) in enumerate(zip(prefixes, variables)):
            nodes.serve(number, prefix, of_node)
        nodes.wait_until_reachable()
        yield nodes


def check(nodes, hostfile, *arguments):
    environment = {**os.environ, **nodes.variables, "OMP_NUM_THREADS": "1"}
    return python("-m", "amplify_ds.preflight", hostfile, *arguments, env=environment)


def cells(result) -> dict:
    """Return {(host, check): cell} of the table."""
    lines = [line.split("  ") for line in result.stdout.splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    head = next(row for row in rows if row[:1] == ["host"])
    return {(row[0], name): cell for row in rows if len(row) == len(head) for name, cell in zip(head, row)}


def failed(result) -> set:
    return {key for key, cell in cells(result).items() if cell == "FAILED"}


@needs_sshd
def test_two_nodes_that_can_train(shards, tmp_path):
    directory = tmp_path / "nodes"
    (output := directory / "runs").mkdir(parents=True)
    with loopback_nodes(directory, **HERE) as nodes:
        result = check(nodes, nodes.hostfile, *training_words(output / "run", shards))
        assert not nodes.processes(0) and not nodes.processes(1)
    assert result.returncode == 0, result.stdout + result.stderr
    table = cells(result)
    for host in LOOPBACK:
        assert table[host, "step"].endswith("iB") and table[host, "slots"].startswith("1 of ")
        for name in ("ssh", "versions", "clock", "shards", "output", "ports", "all-reduce"):
            assert table[host, name] == "ok"
    assert "all-reduce: 2 ranks" in result.stdout
    assert f"Next: bash launch/train.sh --hostfile {nodes.hostfile} -- --recipe tiny" in result.stdout
    assert not list(output.iterdir()), "the preflight removes its files"


@needs_sshd
@needs_mounts
def test_all_failures_are_found_at_once(shards, tmp_path):
    directory, output, faked = tmp_path / "nodes", tmp_path / "runs", tmp_path / "faked"
    for folder in (directory, output, faked / "deepspeed-0.0.1.dist-info"):
        folder.mkdir(parents=True)
    (faked / "deepspeed-0.0.1.dist-info/METADATA").write_text("Name: deepspeed\nVersion: 0.0.1\nSummary: a fake\n")
    (faked / "sitecustomize.py").write_text(
        "import time\ntrue = time.time\ntime.time = lambda: true() + 3600  # fake\n"
    )
    copy = tmp_path / "shards"
    shutil.copytree(shards["train"], copy)
    hide = 'mount -t tmpfs none "$0" && exec "$@"'
    prefixes = [
        ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"', str(output)],
        ["unshare", "-m", "sh", "-c", hide, str(copy)],
    ]
    variables = [HERE, {"PYTHONPATH": os.pathsep.join([str(faked), str(ROOT)])}]
    with unlike_nodes(directory, prefixes, variables) as nodes:
        cores = len(os.sched_getaffinity(0))
        nodes.hostfile.write_text("".join(f"{host} slots={cores + 1}\n" for host in LOOPBACK))
        arguments = training_words(output / "run", {**shards, "train": copy})
        result = check(nodes, nodes.hostfile, *arguments, "--training.global_batch_tokens", 1024 * 2 * (cores + 1))
    assert result.returncode == 1, result.stdout + result.stderr
    first, second = LOOPBACK
    assert failed(result) == {
        (first, "slots"),
        (first, "disk"),
        *((second, name) for name in ("slots", "versions", "clock", "shards", "output")),
    }, result.stdout + result.stderr
    # 70,363 parameters (2 blocks of 33,408, embedding, decoder and last norm), 12 bytes each, 4 times: 3.2 MiB.
    for text in (
        "deepspeed 0.0.1 (elsewhere ",
        "off by 3,",
        f"{cores + 1} slots, {cores} cores",
        f"{copy} contains no manifest.json",
        f"{output} is another directory there than on {first}",
        "1 MiB free, 3 MiB needed for 4 checkpoints",
        f"slots on {first}, {second}: ",
    ):
        assert text in result.stderr, result.stderr
    assert result.stderr.count("-> ") == 6, "each with its remedy, equal ones once"
    assert cells(result)[first, "ports"] == "ok" and cells(result)[first, "all-reduce"] == "-"
    assert not list(output.iterdir()), "the second node's file is removed too"


@needs_sshd
def test_machines_that_are_not_reached_and_a_port_that_is_taken(tmp_path):
    with loopback_nodes(tmp_path, **HERE) as nodes, socket.create_server((LOOPBACK[0], 0)) as taken:
        port = taken.getsockname()[1]
        hosts = (LOOPBACK[0], "127.0.0.9", "no-such-machine.invalid")
        nodes.hostfile.write_text("".join(f"{host} slots=1\n" for host in hosts))
        result = check(nodes, nodes.hostfile, "--master_port", port)
    assert result.returncode == 1
    assert failed(result) == {(hosts[0], "ports"), (hosts[1], "ssh"), (hosts[2], "ssh")}, result.stdout + result.stderr
    for text in (
        f"{hosts[0]}:{port}: Address already in use",
        "127.0.0.9 port 22",
        "Could not resolve hostname",
        "ssh-copy-id 127.0.0.9",
        "another --master_port",
    ):
        assert text in result.stderr, result.stderr
    assert "left out: shards, output, disk, step" in result.stdout


@needs_sshd
def test_a_machine_that_hangs_does_not_delay_the_check_and_no_process_remains(tmp_path):
    (faked := tmp_path / "faked").mkdir()
    (faked / "sitecustomize.py").write_text("import time\ntime.sleep(3600)  # a fake of a file system that hangs\n")
    with unlike_nodes(tmp_path, [[], []], [HERE, {"PYTHONPATH": str(faked)}]) as nodes:
        began = time.monotonic()
        result = check(nodes, nodes.hostfile, "--seconds", 20)
        duration = time.monotonic() - began
        assert not nodes.processes(1), "the hanging process was killed"
    assert result.returncode == 1 and failed(result) == {(LOOPBACK[1], "ssh")}, result.stdout + result.stderr
    assert "no answer in time" in result.stderr
    assert duration < 40


def test_ranks_that_cannot_connect_and_a_batch_of_too_few_rows(shards, tmp_path):
    (tmp_path / "hostfile").write_text("localhost slots=2\n")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "absent0", "OMP_NUM_THREADS": "1"}
    arguments = [*training_words(tmp_path / "run", shards), "--training.global_batch_tokens", 1024]
    result = python("-m", "amplify_ds.preflight", tmp_path / "hostfile", *arguments, env=environment)
    assert result.returncode == 1
    assert failed(result) == {("localhost", "shards"), ("localhost", "all-reduce")}, result.stdout + result.stderr
    assert "set it to a multiple of 1,024 that is at least 2,048" in result.stderr
    assert "absent0" in result.stderr and "GLOO_SOCKET_IFNAME" in result.stderr
    assert cells(result)["localhost", "step"] == "-"


@pytest.mark.parametrize(
    "content, text",
    [
        (None, "cannot be read"),
        ("# nobody\n", "names no machine"),
        ("node-1 slots=8\nnode-2 slots=4\n", "different numbers of slots"),
        ("node-1\n", "expected 'NAME slots=N'"),
    ],
)
def test_an_invalid_hostfile_is_refused(tmp_path, content, text):
    if content is not None:
        (tmp_path / "hostfile").write_text(content)
    result = python("-m", "amplify_ds.preflight", tmp_path / "hostfile")
    assert result.returncode == 1 and text in result.stderr and "Traceback" not in result.stderr
    assert not result.stdout


def test_invalid_settings_are_refused_before_any_machine_is_contacted(tmp_path):
    (tmp_path / "hostfile").write_text("no-such-machine.invalid slots=1\n")
    arguments = ["--recipe", "120M", "--data.train", "absent", "--output", "run", "--optimizer.leraning_rate", "1"]
    result = python("-m", "amplify_ds.preflight", tmp_path / "hostfile", *arguments)
    assert result.returncode == 1 and "no such setting" in result.stderr


def test_an_interpreter_that_is_missing():
    answer = run_on(Host("localhost", 1), ["/absent/python", "-m", "amplify_ds.cluster.node_report"])
    (finding,) = checks.reached(Host("node-1", 1), answer, False, "/absent/python", "ssh")
    assert finding.check == "versions" and "/absent/python" in finding.text and "the same path" in finding.remedy


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    report = {"output": node_report._output(tmp_path / "file" / "run", ".preflight")}
    (finding,) = checks.output(Host("node-1", 1), report)
    assert finding.check == "output" and "Not a directory" in finding.text and finding.remedy


def test_the_hash_changes_with_one_byte_of_the_source(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "amplify_ds", tmp_path / "amplify_ds", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(node_report, "PACKAGE", tmp_path / "amplify_ds")
    before = node_report.source_hash()
    file = tmp_path / "amplify_ds/recipes/120M.yaml"
    file.write_text(file.read_text().replace("lr: 1.0e-3", "lr: 2.0e-3"))
    assert node_report.source_hash() != before


def query(port, **others):
    """Return a query for the connectivity module."""
    machine = {"name": "node-2", "address": "127.0.0.1", "port": port}
    return {**machine, "token": "of the preflight", "files": {}, "seconds": 4, **others}


def test_a_first_machine_that_does_not_listen():
    report = connectivity.report(query(free_port(), peers=None))
    assert report["to_first"] == "Connection refused"


def test_a_machine_that_the_first_one_cannot_reach_and_a_foreign_connection():
    port, closed, report = free_port(), free_port(), {}
    first = threading.Thread(target=lambda: report.update(connectivity.report(query(port, peers=2))))
    first.start()
    for token, name in (("another", "node-3"), ("of the preflight", "node-2")):
        greeting = {"token": token, "name": name, "port": closed}
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    connection.sendall(f"{json.dumps(greeting)}\n".encode())
                break
            except ConnectionRefusedError:  # it does not listen yet
                time.sleep(0.05)
    first.join()
    assert report["back"] == {"node-2": "127.0.0.1: Connection refused"}


def test_help_names_every_check():
    result = python("-m", "amplify_ds.preflight", "--help")
    assert result.returncode == 0 and all(f"  {name} " in result.stdout for name in checks.CHECKS)
    assert sys.executable not in result.stdout
