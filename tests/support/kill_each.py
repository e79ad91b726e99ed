"""Run by test_build_failures: kill a build before its 1st, 2nd, 3rd … disk operation, then resume it."""

import os
import shutil
import signal
import sys
from pathlib import Path
from unittest import mock

from amplify_ds import build_shards
from amplify_ds.prepare import pipeline

directory = Path(sys.argv[1])
pipeline.MEGABYTE = 20
mock.patch.object(os, "fsync").start()  # not needed: a killed process loses nothing that it has written
OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.truncate", "fcntl.flock"}
left = 0  # operations until the kill; 0: no kill


def watch(event: str, arguments: tuple) -> None:
    global left
    if left and event in OPERATIONS and (event == "fcntl.flock" or str(arguments[0]).startswith(str(directory))):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)


def build(output: Path, kill_at: int = 0) -> int:
    """Build in a child process, killed before operation number `kill_at` if that is not 0. Return its exit code."""
    global left
    if not (child := os.fork()):
        left = kill_at
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        arguments = [
            "--input",
            directory / "in.fasta",
            "--output",
            output / "train",
            "--validation-output",
            output / "valid",
        ]
        arguments += ["--validation-fraction", 0.3, "--row-tokens", 256, "--max-length", 64]
        build_shards.command(lambda: build_shards.main([str(argument) for argument in arguments]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


sys.addaudithook(watch)
assert build(directory / "undisturbed") == 0
expected, number, code = content(directory / "undisturbed"), 0, -9
while code == -9:
    number += 1
    code = build(directory / "out", number)
    assert code in (0, -9), f"operation {number}: exit code {code}"
    assert code == 0 or build(directory / "out") == 0, f"killed at operation {number}: the next run failed"
    assert content(directory / "out") == expected, f"killed at operation {number}: other bytes"
    shutil.rmtree(directory / "out")
print(number)
