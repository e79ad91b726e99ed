"""Run commands in processes forked from one that has imported everything and computed nothing.

A new interpreter spends seconds of processor time on imports, so hundreds of them take minutes. `run` and `ranks` start
one server per test process. It forks a child for each command; the child takes over the given arguments, environment
and directory, does what an interpreter does at its start, and runs the module or script. Tests of the start itself
(imports, real launchers, other packages) use new interpreters: commands.py.

    python -m tests.support.forking SOCKET      the server, until its standard input ends
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
# Imported before anything is forked. None of them may start threads or use a device; torch's compiler does, so commands
# that compile are not forked.
MODULES = """torch setuptools deepspeed
transformers safetensors.torch numpy pyarrow pyarrow.csv pyarrow.parquet h5py gemmi dnaio
sklearn.linear_model matplotlib.pyplot hypothesis
tensorboard.backend.event_processing.event_accumulator
amplify_ds.training.trainer amplify_ds.training.past_batches
amplify_ds.hub.export amplify_ds.hub.card amplify_ds.hub.folder
amplify_ds.inference.api amplify_ds.inference.resumable amplify_ds.prepare.pipeline
amplify_ds.inspect_shards""".split()
# Variables that libraries read when imported: a command with other values imports them again.
READ_AT_IMPORT = ("HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE")
NUMBER = struct.Struct("q")  # format of a process id, and later its exit code, as the server sends them


class Process:
    """A forked command with the interface of subprocess.Popen; stdout and stderr are captured as text."""

    def __init__(self, command: list[str], env: dict[str, str], cwd=ROOT):
        self.args = command
        self.returncode: int | None = None
        with tempfile.NamedTemporaryFile() as stdout, tempfile.NamedTemporaryFile() as stderr:
            self.stdout, self.stderr = open(stdout.name), open(stderr.name)
            request = json.dumps({"command": command, "env": env, "cwd": str(cwd)}).encode()
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(_server())
            socket.send_fds(self._socket, [NUMBER.pack(len(request))], [stdout.fileno(), stderr.fileno()])
            self._socket.sendall(request)
            self.pid = self._receive()

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._socket.settimeout(timeout)
            try:
                self.returncode = self._receive()
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._socket.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _receive(self) -> int:
        data = self._socket.recv(NUMBER.size, socket.MSG_WAITALL)
        assert len(data) == NUMBER.size, "the server of forked processes has ended"
        return NUMBER.unpack(data)[0]


def run(command: list[str], env: dict[str, str], cwd=ROOT, timeout: float = 600) -> subprocess.CompletedProcess:
    """Like subprocess.run with captured text output; `command` begins with the interpreter."""
    return ranks([command], [env], cwd, timeout)


def ranks(commands: list[list[str]], envs: list[dict[str, str]], cwd=ROOT, timeout: float = 600):
    """Run several commands at once. Return the outputs one after another and the exit code of the first that failed.

    When one has failed, the others have a minute to end by themselves, as under a launcher that sends no SIGTERM.
    """
    processes = [Process(command, env, cwd) for command, env in zip(commands, envs, strict=True)]
    running, deadline, code = list(processes), time.monotonic() + timeout, 0
    try:
        while running:
            for process in list(running):
                try:
                    ended = process.wait(0.02 if len(running) > 1 else max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    if time.monotonic() > deadline:
                        raise
                    continue
                running.remove(process)
                if ended and not code:
                    code, deadline = ended, time.monotonic() + 60
    finally:
        for process in running:
            process.kill()
    stdout, stderr = ("".join(texts) for texts in zip(*(process.communicate() for process in processes)))
    return subprocess.CompletedProcess(commands[0], code, stdout, stderr)


_address: str | None = None


def _server() -> str:
    """Return the address of this process's server. The first call starts it."""
    global _address
    if _address is None:
        _address = f"{tempfile.mkdtemp(prefix='forking-')}/socket"
        variables = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        variables["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, "-m", "tests.support.forking", _address]
        server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, env=os.environ | variables)
        atexit.register(server.communicate)
        while not Path(_address).exists():
            assert server.poll() is None, "the server of forked processes did not start"
            time.sleep(0.02)
    return _address


def _serve(address: str) -> tuple[dict, int, int]:
    """Fork a child per request until standard input ends. Return in each child its request, stdout and stderr."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)
    os.rename(f"{address}.new", address)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:
                sys.exit()
            if key.fileobj is not listener:
                descriptor, (pid, connection) = key.fd, key.data
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                selector.unregister(descriptor)
                os.close(descriptor)
                try:
                    connection.sendall(NUMBER.pack(status))
                except OSError:  # the client has gone
                    pass
                connection.close()
                continue
            connection, _ = listener.accept()
            size, (stdout, stderr), _, _ = socket.recv_fds(connection, NUMBER.size, 2)
            request = json.loads(connection.recv(NUMBER.unpack(size)[0], socket.MSG_WAITALL))
            if not (pid := os.fork()):
                for other in list(selector.get_map().values()):
                    if isinstance(other.data, tuple):
                        other.data[1].close()
                        os.close(other.fd)
                selector.close()
                listener.close()
                connection.close()
                return request, stdout, stderr
            os.close(stdout)
            os.close(stderr)
            connection.sendall(NUMBER.pack(pid))
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))


def _execute(request: dict, stdout: int, stderr: int) -> None:
    """Run the command of `request` in this process as a new interpreter would."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, descriptor in ((1, stdout), (2, stderr)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if any(os.environ.get(name) != request["env"].get(name) for name in READ_AT_IMPORT):
        for name in [name for name in sys.modules if name.partition(".")[0] in ("huggingface_hub", "transformers")]:
            del sys.modules[name]
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    command = [argument for argument in request["command"] if argument != "-u"]
    sys.orig_argv = list(command)
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [*path, *(entry for entry in sys.path if entry not in (str(ROOT), ""))]
    if str(ROOT) not in sys.path:  # the package is installed there, if only as a link
        sys.path.append(str(ROOT))
    if threads := os.environ.get("OMP_NUM_THREADS"):
        sys.modules["torch"].set_num_threads(int(threads))
    for entry in path:
        if (Path(entry) / "sitecustomize.py").exists():
            runpy.run_path(str(Path(entry) / "sitecustomize.py"))
    if command[1] == "-m":
        sys.argv = ["-m", *command[3:]]
        sys.path.insert(0, os.getcwd())
        if command[2].partition(".")[0] == "amplify_ds":
            sys.modules["amplify_ds.start"].begin()
        sys.modules.pop(command[2], None)
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    elif command[1] == "-c":
        sys.argv = ["-c", *command[3:]]
        sys.path.insert(0, "")
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(command[2], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = command[1:]
        sys.path.insert(0, str(Path(command[1]).resolve().parent))
        runpy.run_path(command[1], run_name="__main__")


def _run_and_exit(function, *arguments) -> NoReturn:
    """Call `function` and exit as an interpreter does, except that no memory is freed: that takes seconds."""
    code = 0
    try:
        function(*arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    from importlib import import_module

    for _name in MODULES:
        import_module(_name)
    gc.collect()
    gc.freeze()  # existing objects are never collected, so their pages stay shared
    _run_and_exit(_execute, *_serve(sys.argv[1]))
