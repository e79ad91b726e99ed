"""Two real nodes on one machine, each with its own ssh server, for what only several nodes can show.

    loopback_nodes     127.0.0.2 and 127.0.0.3: enough for hostfile, pdsh and ssh
    namespace_nodes    two network namespaces joined by a cable that can be pulled, each with its own host name,
                       /etc/hosts and processes, as two machines have; needs root

Both yield `Nodes`. All files lie in the `place` that is given; the file system is shared, as a cluster's is. In the end
nothing of them is left, whatever happened.
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
ISOLATED = ("192.0.2.1", "192.0.2.2")  # RFC 5737: for documentation, no machine has them
CABLE = "cable"  # the network interface of either end
NAME = "TEST_NODE"  # in the environment of what runs on a node, or was launched from here
PREFIX = "amplify-"  # of names of namespaces; the process that has made them follows
FILES = Path("/etc/netns")  # what `ip netns exec` puts in the place of files in /etc
SECONDS_TO_START = 120


class Nodes:
    """hostfile: both nodes, a slot each. variables: what the launching process needs in its environment. before: words
    in front of a command that start it on the first node. launcher: words for DeepSpeed's launcher."""

    def __init__(self, place: Path, addresses: tuple[str, str], interface: str, before: tuple[str, ...] = ()):
        self.place, self.addresses, self.before = place, addresses, list(before)
        self.ports = [free_port(address) if interface == "lo" else 22 for address in addresses]
        self.hostfile, self.config = place / "hostfile", place / "ssh_config"
        self.hostfile.write_text("".join(f"{address} slots=1\n" for address in addresses))
        self.config.write_text(
            "".join(f"Host {address}\n  Port {port}\n" for address, port in zip(addresses, self.ports))
            + f"Host *\n  IdentityFile {place}/user_key\n  IdentitiesOnly yes\n  BatchMode yes\n  LogLevel ERROR\n"
            "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
        )
        self.variables = {"PDSH_SSH_ARGS_APPEND": f"-F {self.config}", NAME: f"{place}/launch"}
        # The runner's own ssh, to check and to find an address, knows nothing of PDSH_SSH_ARGS_APPEND.
        self.launcher = ["--hostfile", str(self.hostfile), "--no_ssh_check", "--master_addr", addresses[0]]
        self.launcher += ["--master_port", str(free_port("127.0.0.1"))]
        self.servers: list[subprocess.Popen] = []

    def processes(self, node: int) -> list[psutil.Process]:
        """What was started on this node through ssh, and all below it."""
        return [process for name, process in _named_processes() if name == self._name(node)]

    def hang_up(self, node: int) -> None:
        """End the ssh sessions of this node at once. What they have started is left alone; new ones are taken."""
        for process in self._sshd(node)[1:]:
            process.kill()

    def kill_sshd(self, node: int) -> None:
        """End its ssh server, too: the node cannot be reached any more."""
        for process in self._sshd(node):
            process.kill()

    def serve(self, node: int, before: list[str], variables: dict[str, str]) -> None:
        """Start the ssh server of a node; `variables` are set for all that is started through it."""
        key, file = self.place / f"host_key_{node}", self.place / f"sshd_config_{node}"
        _keygen(key)
        of_all = {NAME: self._name(node), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        of_all |= variables
        file.write_text(
            f"ListenAddress {self.addresses[node]}\nPort {self.ports[node]}\nHostKey {key}\nPidFile none\n"
            f"AuthorizedKeysFile {self.place}/user_key.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            f"SetEnv {' '.join(f'{name}={value}' for name, value in of_all.items())}\n"
        )
        with open(self.place / f"sshd_{node}.log", "w") as log:
            words = [*before, SSHD, "-D", "-e", "-f", str(file)]
            # They end with this process, too, should it be killed.
            self.servers.append(subprocess.Popen(words, stdout=log, stderr=log, preexec_fn=end_with_parent))

    def wait_until_reached(self) -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        for address in self.addresses:
            words = [*self.before, "ssh", "-F", str(self.config), address, "true"]
            while (result := subprocess.run(words, text=True, capture_output=True)).returncode:
                assert time.monotonic() < deadline, f"{address} cannot be reached by ssh: {result.stderr}"
                time.sleep(0.1)

    def end(self) -> None:
        """End the servers, and what was launched from here or runs on the nodes."""
        left = [process for name, process in _named_processes() if name.startswith(f"{self.place}/")]
        for process in [*left, *(process for server in self.servers for process in _tree(server))]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for server in self.servers:
            server.wait()

    def _name(self, node: int) -> str:
        return f"{self.place}/node-{node + 1}"

    def _sshd(self, node: int) -> list[psutil.Process]:
        """The server first, then one for each session."""
        return [process for process in _tree(self.servers[node]) if process.name() == "sshd"]


@contextmanager
def loopback_nodes(place: Path, **variables: str) -> Iterator[Nodes]:
    """variables: also set for what runs on the nodes."""
    with ExitStack() as at_end:
        nodes = Nodes(place, LOOPBACK, "lo")
        at_end.callback(nodes.end)
        _keygen(place / "user_key")
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)  # sshd's own directory, which its service makes elsewhere
        for node in (0, 1):
            nodes.serve(node, [], variables)
        nodes.wait_until_reached()
        yield nodes


class NamespaceNodes(Nodes):
    def __init__(self, place: Path, names: list[str]):
        super().__init__(place, ISOLATED, CABLE, ("ip", "netns", "exec", names[0]))
        self.names = names

    def cut_off(self) -> None:
        """Pull the second node's cable: nothing that is sent arrives, and nobody is told."""
        _ip("-n", self.names[1], "link", "set", CABLE, "down")

    def rejoin(self) -> None:
        _ip("-n", self.names[1], "link", "set", CABLE, "up")


@contextmanager
def namespace_nodes(place: Path, **variables: str) -> Iterator[NamespaceNodes]:
    """The same with nodes that can be cut off. Needs the right to make namespaces."""
    _forget_killed()
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
        nodes = NamespaceNodes(place, names)
        at_end.callback(nodes.end)
        _keygen(place / "user_key")
        os.makedirs("/run/sshd", exist_ok=True)
        for node, name in enumerate(names):
            # The shell is the first process of the node and outlives its ssh server; all end with it.
            program = f'hostname node-{node + 1} && "$@"; exec sleep infinity'
            unshare = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", program, "sh"]
            nodes.serve(node, ["ip", "netns", "exec", name, *unshare], variables)
        nodes.wait_until_reached()
        yield nodes


def _forget_killed() -> None:
    """Names of namespaces that a killed process has left."""
    for folder in FILES.glob(f"{PREFIX}[0-9]*-[12]"):
        if not psutil.pid_exists(int(folder.name.split("-")[1])):
            subprocess.run(["ip", "netns", "del", folder.name], capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)


def _named_processes() -> Iterator[tuple[str, psutil.Process]]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is somebody else's
            yield process.environ().get(NAME, ""), process


def _keygen(file: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True)


def _ip(*words: str) -> None:
    result = subprocess.run(["ip", *words], text=True, capture_output=True)
    assert result.returncode == 0, f"ip {' '.join(words)}: {result.stderr}"


def _tree(server: subprocess.Popen) -> list[psutil.Process]:
    try:
        process = psutil.Process(server.pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
