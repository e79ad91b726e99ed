"""Two nodes on one machine, each with its own ssh server, for tests of several nodes.

    loopback_nodes     127.0.0.2 and 127.0.0.3: enough for hostfile, pdsh and ssh
    namespace_nodes    two network namespaces connected by a link that can be cut, each with its own host name,
                       /etc/hosts and processes, like two machines; needs root

Both yield `Nodes`. All files are in the given directory; nodes share the file system, as in a cluster. At the end all
processes and namespaces are removed, also after a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from amplify_ds.network import free_port
from amplify_ds.processes import end_with_parent

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") or "sshd"
LOOPBACK = ("127.0.0.2", "127.0.0.3")
ISOLATED = ("192.0.2.1", "192.0.2.2")  # RFC 5737: reserved for documentation
CABLE = "cable"  # network interface at both ends of the link
NAME = "TEST_NODE"  # variable of processes that run on a node or were launched from here
PREFIX = "amplify-"  # of namespace names; followed by the id of the process that created them
FILES = Path("/etc/netns")  # files that `ip netns exec` mounts over those in /etc
SECONDS_TO_START = 120


class Nodes:
    """Two nodes and their ssh servers.

    hostfile: both nodes with one slot each. variables: environment of the launching process. before: prefix of a
    command that starts it on the first node. launcher: arguments for DeepSpeed's launcher.
    """

    def __init__(self, directory: Path, addresses: tuple[str, str], interface: str, before: tuple[str, ...] = ()):
        self.directory, self.addresses, self.before = directory, addresses, list(before)
        self.ports = [free_port(address) if interface == "lo" else 22 for address in addresses]
        self.hostfile, self.config = directory / "hostfile", directory / "ssh_config"
        self.hostfile.write_text("".join(f"{address} slots=1\n" for address in addresses))
        self.config.write_text(
            "".join(f"Host {address}\n  Port {port}\n" for address, port in zip(addresses, self.ports))
            + f"Host *\n  IdentityFile {directory}/user_key\n  IdentitiesOnly yes\n  BatchMode yes\n  LogLevel ERROR\n"
            "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
        )
        self.variables = {"PDSH_SSH_ARGS_APPEND": f"-F {self.config}", NAME: f"{directory}/launch"}
        # DeepSpeed's runner also calls ssh itself, without PDSH_SSH_ARGS_APPEND: to check nodes and to find an address.
        self.launcher = ["--hostfile", str(self.hostfile), "--no_ssh_check", "--master_addr", addresses[0]]
        self.launcher += ["--master_port", str(free_port("127.0.0.1"))]
        self.servers: list[subprocess.Popen] = []

    def processes(self, node: int) -> list[psutil.Process]:
        """Return the processes that were started on this node through ssh, and their children."""
        return [process for name, process in _named_processes() if name == self._name(node)]

    def hang_up(self, node: int) -> None:
        """Kill the ssh sessions of this node. Processes they started keep running, and new sessions are accepted."""
        for process in self._sshd(node)[1:]:
            process.kill()

    def kill_sshd(self, node: int) -> None:
        """Kill the sessions and the ssh server: the node is no longer reachable."""
        for process in self._sshd(node):
            process.kill()

    def serve(self, node: int, before: list[str], variables: dict[str, str]) -> None:
        """Start the ssh server of a node; `variables` are set in all its sessions."""
        key, file = self.directory / f"host_key_{node}", self.directory / f"sshd_config_{node}"
        _keygen(key)
        environment = {NAME: self._name(node), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        environment |= variables
        file.write_text(
            f"ListenAddress {self.addresses[node]}\nPort {self.ports[node]}\nHostKey {key}\nPidFile none\n"
            f"AuthorizedKeysFile {self.directory}/user_key.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            f"SetEnv {' '.join(f'{name}={value}' for name, value in environment.items())}\n"
        )
        with open(self.directory / f"sshd_{node}.log", "w") as log:
            command = [*before, SSHD, "-D", "-e", "-f", str(file)]
            # Servers end with this process even if it is killed.
            self.servers.append(subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=end_with_parent))

    def wait_until_reachable(self) -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        for address in self.addresses:
            command = [*self.before, "ssh", "-F", str(self.config), address, "true"]
            while (result := subprocess.run(command, text=True, capture_output=True)).returncode:
                assert time.monotonic() < deadline, f"{address} cannot be reached by ssh: {result.stderr}"
                time.sleep(0.1)

    def end(self) -> None:
        """Kill the servers, the processes launched from here and those on the nodes."""
        remaining = [process for name, process in _named_processes() if name.startswith(f"{self.directory}/")]
        for process in [*remaining, *(process for server in self.servers for process in _tree(server))]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for server in self.servers:
            server.wait()

    def _name(self, node: int) -> str:
        return f"{self.directory}/node-{node + 1}"

    def _sshd(self, node: int) -> list[psutil.Process]:
        """Return the server process, followed by one process per session."""
        return [process for process in _tree(self.servers[node]) if process.name() == "sshd"]


@contextmanager
def loopback_nodes(directory: Path, **variables: str) -> Iterator[Nodes]:
    """Start two nodes on loopback addresses; `variables` are also set for processes on the nodes."""
    with ExitStack() as at_end:
        nodes = Nodes(directory, LOOPBACK, "lo")
        at_end.callback(nodes.end)
        _keygen(directory / "user_key")
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)  # required by sshd; its service usually creates it
        for node in (0, 1):
            nodes.serve(node, [], variables)
        nodes.wait_until_reachable()
        yield nodes


class NamespaceNodes(Nodes):
    def __init__(self, directory: Path, names: list[str]):
        super().__init__(directory, ISOLATED, CABLE, ("ip", "netns", "exec", names[0]))
        self.names = names

    def cut_off(self) -> None:
        """Cut the link of the second node: packets are lost without any error."""
        _ip("-n", self.names[1], "link", "set", CABLE, "down")

    def rejoin(self) -> None:
        _ip("-n", self.names[1], "link", "set", CABLE, "up")


@contextmanager
def namespace_nodes(directory: Path, **variables: str) -> Iterator[NamespaceNodes]:
    """Start two nodes in network namespaces that can be cut off. Needs permission to create namespaces."""
    _remove_stale_namespaces()
    names = [f"{PREFIX}{os.getpid()}-{node}" for node in (1, 2)]
    with ExitStack() as at_end:
        for name in names:
            _ip("netns", "add", name)
            at_end.callback(_ip, "netns", "del", name)
            folder = FILES / name
            folder.mkdir(parents=True)
            at_end.callback(shutil.rmtree, folder)
            hosts = "".join(f"{address} node-{i + 1}\n" for i, address in enumerate(ISOLATED))
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        _ip("link", "add", CABLE, "netns", names[0], "type", "veth", "peer", "name", CABLE, "netns", names[1])
        for name, address in zip(names, ISOLATED):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", CABLE)
            for interface in ("lo", CABLE):
                _ip("-n", name, "link", "set", interface, "up")
        nodes = NamespaceNodes(directory, names)
        at_end.callback(nodes.end)
        _keygen(directory / "user_key")
        os.makedirs("/run/sshd", exist_ok=True)
        for node, name in enumerate(names):
            # The shell is process 1 of the node and outlives its ssh server; all its processes end with it.
            program = f'hostname node-{node + 1} && "$@"; exec sleep infinity'
            unshare = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", program, "sh"]
            nodes.serve(node, ["ip", "netns", "exec", name, *unshare], variables)
        nodes.wait_until_reachable()
        yield nodes


def _remove_stale_namespaces() -> None:
    """Remove the namespaces that killed processes left behind."""
    for folder in FILES.glob(f"{PREFIX}[0-9]*-[12]"):
        if not psutil.pid_exists(int(folder.name.split("-")[1])):
            subprocess.run(["ip", "netns", "del", folder.name], capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)


def _named_processes() -> Iterator[tuple[str, psutil.Process]]:
    """Yield processes with their node name, "" if they have none."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or belongs to another user
            yield process.environ().get(NAME, ""), process


def _keygen(file: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True)


def _ip(*arguments: str) -> None:
    result = subprocess.run(["ip", *arguments], text=True, capture_output=True)
    assert result.returncode == 0, f"ip {' '.join(arguments)}: {result.stderr}"


def _tree(server: subprocess.Popen) -> list[psutil.Process]:
    try:
        process = psutil.Process(server.pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
