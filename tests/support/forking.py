"""Commands in processes forked from one that has imported everything and computed nothing.

An interpreter of its own spends seconds of processor time on imports, hundreds of them minutes. `run` and `ranks` start
a server once in each process of tests; it forks a child for each command, which takes the arguments, variables and
directory that it is given, does what an interpreter does at its start with them, and runs the module or script. What
the start itself is about (imports, real launchers, other packages) is tested with interpreters: commands.py.

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
# Imported before anything is forked. None of them may start threads or touch a device; torch's compiler does, so what
# compiles is not forked.
MODULES = """torch setuptools deepspeed
transformers safetensors.torch numpy pyarrow pyarrow.csv pyarrow.parquet h5py gemmi dnaio
sklearn.linear_model matplotlib.pyplot hypothesis
tensorboard.backend.event_processing.event_accumulator
amplify_ds.training.trainer amplify_ds.training.past_batches
amplify_ds.hub.export amplify_ds.hub.card amplify_ds.hub.folder
amplify_ds.inference.api amplify_ds.inference.resumable amplify_ds.prepare.pipeline
amplify_ds.inspect_shards""".split()
# Variables that these libraries read when they are imported: where a command has others, it imports them again.
READ_AT_IMPORT = ("HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE")
NUMBER = struct.Struct("q")  # how the server sends a process's id, and at its end the exit code


class Process:
    """A forked command, used as subprocess.Popen is; stdout and stderr are always kept, as text."""

    def __init__(self, words: list[str], env: dict[str, str], cwd=ROOT):
        self.args = words
        self.returncode: int | None = None
        with tempfile.NamedTemporaryFile() as stdout, tempfile.NamedTemporaryFile() as stderr:
            self.stdout, self.stderr = open(stdout.name), open(stderr.name)
            request = json.dumps({"words": words, "env": env, "cwd": str(cwd)}).encode()
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(_server())
            socket.send_fds(self._socket, [NUMBER.pack(len(request))], [stdout.fileno(), stderr.fileno()])
            self._socket.sendall(request)
            self.pid = self._receive()

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
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


def run(words: list[str], env: dict[str, str], cwd=ROOT, timeout: float = 600) -> subprocess.CompletedProcess:
    """As subprocess.run with text output captured; words begin with the interpreter."""
    return ranks([words], [env], cwd, timeout)


def ranks(words: list[list[str]], envs: list[dict[str, str]], cwd=ROOT, timeout: float = 600):
    """Several at once: one CompletedProcess with the output of each in turn and the exit code of the first that failed.

    When one has failed, the others have a minute to end by themselves, as behind a launcher that sends no SIGTERM.
    """
    all_of_them = [Process(w, env, cwd) for w, env in zip(words, envs, strict=True)]
    running, deadline, code = list(all_of_them), time.monotonic() + timeout, 0
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
    stdout, stderr = ("".join(texts) for texts in zip(*(process.communicate() for process in all_of_them)))
    return subprocess.CompletedProcess(words[0], code, stdout, stderr)


_address: str | None = None


def _server() -> str:
    """The address of this process's server, started by the first call."""
    global _address
    if _address is None:
        _address = f"{tempfile.mkdtemp(prefix='forking-')}/socket"
        variables = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        variables["PYTHONPATH"] = str(ROOT)
        words = [sys.executable, "-m", "tests.support.forking", _address]
        server = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, env=os.environ | variables)
        atexit.register(server.communicate)
        while not Path(_address).exists():
            assert server.poll() is None, "the server of forked processes did not start"
            time.sleep(0.02)
    return _address


def _serve(address: str) -> tuple[dict, int, int]:
    """Fork until standard input ends. Returns in each child, with its request and its stdout and stderr."""
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
                except OSError:  # nobody waits any more
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


def _become(request: dict, stdout: int, stderr: int) -> None:
    """Be the interpreter that was started with these words."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for place, descriptor in ((1, stdout), (2, stderr)):
        os.dup2(descriptor, place)
        os.close(descriptor)
    if any(os.environ.get(name) != request["env"].get(name) for name in READ_AT_IMPORT):
        for name in [name for name in sys.modules if name.partition(".")[0] in ("huggingface_hub", "transformers")]:
            del sys.modules[name]
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    words = [word for word in request["words"] if word != "-u"]
    sys.orig_argv = list(words)
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    ours = [str(ROOT), ""]
    sys.path[:] = [*path, *(entry for entry in sys.path if entry not in ours)]
    if str(ROOT) not in sys.path:  # where the package is installed, if only by a link
        sys.path.append(str(ROOT))
    if threads := os.environ.get("OMP_NUM_THREADS"):
        sys.modules["torch"].set_num_threads(int(threads))
    for entry in path:
        if (Path(entry) / "sitecustomize.py").exists():
            runpy.run_path(str(Path(entry) / "sitecustomize.py"))
    if words[1] == "-m":
        sys.argv = ["-m", *words[3:]]
        sys.path.insert(0, os.getcwd())
        if words[2].partition(".")[0] == "amplify_ds":
            sys.modules["amplify_ds.start"].begin()
        sys.modules.pop(words[2], None)
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    elif words[1] == "-c":
        sys.argv = ["-c", *words[3:]]
        sys.path.insert(0, "")
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(words[2], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = words[1:]
        sys.path.insert(0, str(Path(words[1]).resolve().parent))
        runpy.run_path(words[1], run_name="__main__")


def _end(command, *arguments) -> NoReturn:
    """Call it and end as an interpreter does, but for freeing memory: with so many modules that takes seconds."""
    code = 0
    try:
        command(*arguments)
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
    gc.freeze()  # what is there now is never collected: its pages stay shared
    _end(_become, *_serve(sys.argv[1]))
