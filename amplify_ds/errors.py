"""How a failure ends: one clear message on standard error, a non-zero exit code, no traceback.

`AmplifyError` says what is wrong, where, what was expected and how to fix it. Code that finds bad input raises it.
`explain` has the messages for what the system refuses: a full disk, a missing permission, too little memory. `command`
prints both. Anything else that escapes is a bug of ours and keeps its traceback.
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

# What the system may refuse because of a path, a disk or a limit of the user's, and what to do about it.
ADVICE = {
    errno.ENOSPC: "Make room or choose another place, and run the command again.",
    errno.EDQUOT: "Your quota is used up: make room or choose another place, and run the command again.",
    errno.EFBIG: "The file system or ulimit -f allows no file of that size: choose another place or raise the limit.",
    errno.EACCES: "User {user} lacks the permission: ask the owner of that path, or choose another one.",
    errno.EPERM: "User {user} lacks the permission: ask the owner of that path, or choose another one.",
    errno.EROFS: "Choose a place that can be written to.",
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "A part of that path is a file: check the path.",
    errno.EISDIR: "A file is expected there: check the path.",
    errno.EEXIST: "Choose another path, or remove what is there.",
    errno.ENOTEMPTY: "Choose another path, or remove what is there.",
    errno.ENAMETOOLONG: "Choose a shorter path.",
    errno.ELOOP: "Its symbolic links lead in a circle: check the path.",
    errno.ESTALE: "It was replaced or removed on the file server meanwhile: run the command again.",
    errno.EIO: "The disk or the file server failed: see the system's log (dmesg).",
    errno.EMFILE: "The limit is {files} (ulimit -n): raise it, as with `ulimit -n 4096`, and run the command again.",
    errno.ENFILE: "All processes of this machine together have too many: end some, and run the command again.",
    errno.ENOMEM: "{memory}",
    "shm": "Workers pass batches on in /dev/shm: enlarge it (docker: --shm-size=8g), or set --data.workers 0.",
}
# C++ libraries have no types of error for these; part of the text -> what it means.
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

prefix = ""  # of messages of this process: which rank it is, where there are several
console: TextIO | None = None  # where errors are shown besides, when standard error is a log


class AmplifyError(Exception):
    """Bad input, a bad setting, or a bad file. The text is written for the user. code: the command's exit code."""

    code = 1


def command(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and end the process: code 1 for a failure that is explained, 130 for Ctrl-C."""
    start.begin()
    try:
        code = main() or 0
        sys.stdout.flush()
    except AmplifyError as error:
        code = _report(f"error: {error}", error.code)
    except KeyboardInterrupt:
        code = _report("interrupted", start.INTERRUPTED)
    except BrokenPipeError:  # the reader of our output (head, less) has gone: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if (text := explain(error)) is None:
            raise
        code = _report(f"error: {text}")
    start.ending()
    sys.exit(code)


def explain(error: BaseException) -> str | None:
    """Return what the system refused and what to do about it, for a user; None for an error that is not of that kind.

    A missing file without a name is not: which one it was is for a traceback to say.
    """
    cause: int | str | None = None
    what, where = str(error), ""
    if isinstance(error, OSError) and error.errno is not None:
        cause, what = error.errno, error.strerror or os.strerror(error.errno)
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    elif isinstance(error, MemoryError):
        cause, what = errno.ENOMEM, what or "out of memory"
    elif not isinstance(error, AmplifyError):
        found = ((line, known) for text, known in TEXTS.items() for line in what.splitlines() if text in line)
        what, cause = next(found, (what, None))
    if cause not in ADVICE or (cause == errno.ENOENT and not where):
        return None
    return f"{where}{what.rstrip('.')}. {advice(cause)}"


def advice(cause: int | str | None) -> str:
    """Return what to do about an errno, a sentence or nothing."""
    return ADVICE.get(cause, "").format(user=_user(), files=_open_files(), memory=_memory())


def first_line(error: BaseException) -> str:
    """Of what a library's error says, or its name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def report(message: str) -> None:
    """Show an error. Nobody reading it any more is no reason to fail."""
    for stream in (sys.stderr, console):
        try:
            if stream is not None:
                print(prefix + message, file=stream, flush=True)
        except OSError:
            pass


def _report(message: str, code: int = 1) -> int:
    with suppress(OSError, ValueError):
        sys.stdout.flush()  # what was printed before belongs above the message, also where both go into one file
    report(message)
    return code


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a number without a name, as in some containers
        return str(os.getuid())


def _open_files() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _memory() -> str:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return "Memory ran out: end other programs or work on less at a time, and run the command again."
    return f"Memory is limited to {limit / 2**30:.1f} GiB (ulimit -v): raise the limit, and run the command again."
