"""The start and end of commands: Ctrl-C at any time, low limits, unusual terminals, errors of the system."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from amplify_ds import errors, start
from tests.support.commands import interpreter
from tests.support.paths import EXAMPLE, ROOT

COMMANDS = [
    "-m amplify_ds.train",
    "-m amplify_ds.embed",
    "-m amplify_ds.benchmark",
    "-m amplify_ds.launch",
    "-m amplify_ds embed",
    "-m amplify_ds.build_shards",
    "data_prep/build_shards.py",
    "data_prep/fetch_ur100p.py",
    "data_prep/decontaminate.py",
]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("seconds", [0.15, 0.6])
def test_ctrl_c_in_the_first_second(tmp_path, name, seconds):
    command = [sys.executable, *name.split(), "--help"]
    # A slow import, as on a slow file system, so that the signal arrives during it.
    (tmp_path / "sitecustomize.py").write_text(SLOW_IMPORT)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "IMPORTING": str(tmp_path / "importing")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=-1, stderr=-1)
    deadline = time.monotonic() + 60
    while not (tmp_path / "importing").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr == "interrupted\n", stderr


SLOW_IMPORT = """
import builtins, os, pathlib, time
right = builtins.__import__
def slow(name, *rest, **options):
    if name == "argparse" or name.startswith("amplify_ds.errors"):
        builtins.__import__ = right
        pathlib.Path(os.environ["IMPORTING"]).touch()
        for _ in range(200):
            time.sleep(0.01)
    return right(name, *rest, **options)
builtins.__import__ = slow
"""


def test_ctrl_c_later_lets_a_command_clean_up(tmp_path):
    program = (
        "import sys, time; from amplify_ds.errors import command\n"
        "def main():\n"
        "    try: print('begun', flush=True); time.sleep(60)\n"
        "    finally: print('cleaned up', flush=True)\n"
        "command(main)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, text=True, stdout=-1, stderr=-1)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (130, "cleaned up\n", "interrupted\n")


def test_only_commands_are_set_up():
    program = "import signal, amplify_ds; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0, "importing changes nothing"
    assert start.is_command(["-m", "x"], ["python", "-u", "-m", "amplify_ds.train", "x"])
    assert not start.is_command(["-m"], ["python", "-m", "pytest", "-m", "amplify_ds.train"])
    assert not start.is_command(["tool.py", "-m", "amplify_ds.train"], ["python", "tool.py", "-m", "amplify_ds.train"])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_the_terminal_cannot_show_are_escaped(encoding):
    result = subprocess.run(
        [sys.executable, "-m", "amplify_ds.plot", b"r\xff\xc3\xbc\xe2\x82\xac"],
        cwd=ROOT,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert result.returncode == 1 and b"Traceback" not in result.stderr, result.stderr
    assert b"\\udcff" in result.stderr and b"no TensorBoard events" in result.stderr


def limited(limit: int, value: int):
    return lambda: resource.setrlimit(limit, (value, value))


def refused(*arguments, **options) -> str:
    """Run a command that must exit with code 1 and without a traceback; return its message."""
    result = interpreter(*arguments, **options)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    return result.stderr.splitlines()[-1]


def test_too_few_open_files_are_one_message(tmp_path):
    command = ["data_prep/build_shards.py", "--input", EXAMPLE / "train.fasta.gz", "--output", tmp_path / "out"]
    message = refused(*command, preexec_fn=limited(resource.RLIMIT_NOFILE, 6))
    assert (
        message.startswith("error: ") and "Too many open files" in message and "The limit is 6 (ulimit -n)" in message
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_too_little_address_space_is_one_message(name):
    message = refused(*name.split(), "--help", preexec_fn=limited(resource.RLIMIT_AS, 2**29))
    assert message.startswith("error: memory is limited to 512 MiB (ulimit -v)")


def test_memory_that_runs_out_later_is_one_message():
    program = "import numpy; from amplify_ds.errors import command; command(lambda: numpy.ones(2**34) and 0)"
    message = refused("-c", program, preexec_fn=limited(resource.RLIMIT_AS, 2**32))
    assert message.startswith("error: Unable to allocate 128. GiB") and "limited to 4.0 GiB (ulimit -v)" in message


@pytest.mark.parametrize("words", [["-m", "amplify_ds.train"], ["-m", "amplify_ds.embed"], ["build_shards.py"]])
def test_a_deleted_working_directory_is_one_message(tmp_path, words):
    (gone := tmp_path / "gone").mkdir()
    words = [str(ROOT / "data_prep" / word) if word.endswith(".py") else word for word in words]
    program = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); os.execv({sys.executable!r}, "
    program += f"{[sys.executable, *words, '--help']!r})"
    result = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: the working directory no longer exists")


@pytest.mark.parametrize(
    "error, expected, absent",
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: Permission denied. User ", "room"),
        (PermissionError(errno.EPERM, "Operation not permitted", "/a"), "lacks the permission", "room"),
        (OSError(errno.EROFS, "Read-only file system", "/a"), "/a: Read-only file system. Choose", "room"),
        (OSError(errno.ENOSPC, "No space left on device"), "Make room", "permission"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", b"/a"), "/a: Disk quota exceeded. Your quota", "permission"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a"), "/a: No such file", "room"),
        (OSError(errno.ESTALE, "Stale file handle", "/a"), "file server", "room"),
        (RuntimeError("[enforce fail] can't allocate memory: you tried"), "can't allocate memory", "room"),
        (ImportError("x.so: failed to map segment from shared object"), "x.so: failed to map", "room"),
        (MemoryError(), "out of memory", "room"),
        # From a DataLoader worker in a container with a /dev/shm of 1 MiB, with its traceback.
        (
            RuntimeError(
                "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                "RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device "
                "(28)\n"
            ),
            "/dev/shm: enlarge it",
            "Traceback",
        ),
    ],
)
def test_errors_of_the_system_come_with_advice(error, expected, absent):
    message = errors.explain(error)
    assert expected in message and absent not in message


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "No file"), RuntimeError("shape"), ValueError()])
def test_other_errors_keep_their_traceback(error):
    assert errors.explain(error) is None
