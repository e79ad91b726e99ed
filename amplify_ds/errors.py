"""Errors for users: one clear message on standard error, a non-zero exit code, no traceback.

Code that finds bad input raises `AmplifyError`: what is wrong, where, what was expected, how to fix it. `explain`
returns the message for errors of the system, such as a full disk, a missing permission or too little memory. `command`
prints both. Any other exception is a bug in this package and keeps its traceback.
"""

from __future__ import annotations

import errno
import getpass
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from amplify_ds import start

# Errors of the system that come from a path, a disk or a limit of the user, and what to do about them.
ADVICE = {
    errno.ENOSPC: "Make room or choose another directory, and run the command again.",
    errno.EDQUOT: "Your quota is used up: make room or choose another directory, and run the command again.",
    errno.EFBIG: "The file system or ulimit -f allows no file of that size: choose another one or raise the limit.",
    errno.EACCES: "User {user} lacks the permission: ask the owner of that path, or choose another one.",
    errno.EPERM: "User {user} lacks the permission: ask the owner of that path, or choose another one.",
    errno.EROFS: "Choose a directory that can be written to.",
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "A part of that path is a file: check the path.",
    errno.EISDIR: "Expected a file, found a directory: check the path.",
    errno.EEXIST: "Choose another path, or remove what is there.",
    errno.ENOTEMPTY: "Choose another path, or remove what is there.",
    errno.ENAMETOOLONG: "Choose a shorter path.",
    errno.ELOOP: "Its symbolic links form a loop: check the path.",
    errno.ESTALE: "The file was replaced or removed on the file server: run the command again.",
    errno.EIO: "The disk or the file server failed: see the system log (dmesg).",
    errno.EMFILE: "The limit is {files} (ulimit -n): raise it, for example with `ulimit -n 4096`, and run the command "
    "again.",
    errno.ENFILE: "The processes of this machine have too many open files: end some, and run the command again.",
    errno.ENOMEM: "{memory}",
    "shm": "Workers pass batches through /dev/shm: enlarge it (docker: --shm-size=8g), or set --data.workers 0.",
}
# C++ libraries raise untyped errors for these: part of the message -> its meaning.
TEXTS: dict[str, int | str] = {
    "unable to allocate shared memory": "shm",
    "out of shared memory": "shm",
    "Too many open files": errno.EMFILE,
    "No space left on device": errno.ENOSPC,
    "File too large": errno.EFBIG,
    "annot allocate memory": errno.ENOMEM,
    "can't allocate memory": errno.ENOMEM,
    "failed to map segment from shared object": errno.ENOMEM,
    "bad_alloc": errno.ENOMEM,
    "can't start new thread": errno.ENOMEM,
}

prefix = ""  # put before every message of this process: its rank, if there are several
console: TextIO | None = None  # errors are printed here too, when standard error goes to a log


class AmplifyError(Exception):
    """Bad input, a bad setting or a bad file. The message is written for the user. code: the command's exit code."""

    code = 1


def command(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with the code it returns, 1 after an error with a message, or 130 after Ctrl-C."""
    start.begin()
    try:
        code = main() or 0
        sys.stdout.flush()
    except AmplifyError as error:
        code = _fail(f"error: {error}", error.code)
    except KeyboardInterrupt:
        code = _fail("interrupted", start.INTERRUPTED)
    except BrokenPipeError:  # the reader of our output (head, less) has exited, which is no failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if (text := explain(error)) is None:
            raise
        code = _fail(f"error: {text}")
    start.ending()
    sys.exit(code)


def explain(error: BaseException) -> str | None:
    """Return a message for an error of the system, with what to do about it; None for any other error.

    A missing file without a name also gives None, so that the traceback shows which file it was.
    """
    cause: int | str | None = None
    message, where = str(error), ""
    if isinstance(error, OSError) and error.errno is not None:
        cause, message = error.errno, error.strerror or os.strerror(error.errno)
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    elif isinstance(error, MemoryError):
        cause, message = errno.ENOMEM, message or "out of memory"
    elif not isinstance(error, AmplifyError):
        matches = ((line, known) for text, known in TEXTS.items() for line in message.splitlines() if text in line)
        message, cause = next(matches, (message, None))
    if cause not in ADVICE or (cause == errno.ENOENT and not where):
        return None
    return f"{where}{message.rstrip('.')}. {advice(cause)}"


def advice(cause: int | str | None) -> str:
    """Return what to do about an errno, as a sentence; an empty string if there is no advice."""
    return ADVICE.get(cause, "").format(user=_user(), files=_open_files(), memory=_memory())


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def print_error(message: str) -> None:
    """Print a message to standard error, and to `console` if that is set. Closed streams are ignored."""
    for stream in (sys.stderr, console):
        try:
            if stream is not None:
                print(prefix + message, file=stream, flush=True)
        except OSError:
            pass


def _fail(message: str, code: int = 1) -> int:
    """Print a message; return the exit code."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()  # what was printed before belongs above the message, also where both go into one file
    print_error(message)
    return code


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user id without a name, as in some containers
        return str(os.getuid())


def _open_files() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _memory() -> str:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return "Memory ran out: end other programs or use smaller batches, and run the command again."
    return f"Memory is limited to {limit / 2**30:.1f} GiB (ulimit -v): raise the limit, and run the command again."
