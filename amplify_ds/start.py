"""What every command does first, before imports that take seconds.

Ctrl-C during an import ends the process at once: an import that is interrupted half-way shows that in many ways, none
of which helps. At other moments it raises KeyboardInterrupt, so that what was begun can be cleaned up. A directory that
was deleted under the shell is named, for libraries fail on it in ways that do not. Text that the terminal has no
letters for is escaped.

`python -m amplify_ds.NAME` does this when the package is imported; scripts and `amplify-ds` do it in their first line.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

INTERRUPTED = 130  # what a shell reports for SIGINT
ADDRESS_SPACE = 2**30  # bytes; with less, libraries abort the process while they are imported
_ends = False


def begin() -> None:
    """Prepare this process for being a command. Calling it again does nothing more."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else ignored, or a command's own
        signal.signal(signal.SIGINT, _interrupted)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _unhandled
    try:
        os.getcwd()
    except OSError:
        _leave("error: the working directory no longer exists: change to another one, and run the command again", 1)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= limit < ADDRESS_SPACE:  # -1: no limit
        _leave(
            f"error: memory is limited to {limit / 2**20:.0f} MiB (ulimit -v), and the libraries alone need "
            f"{ADDRESS_SPACE / 2**20:.0f}: raise the limit, and run the command again",
            1,
        )


def ending() -> None:
    """The command is done: from now on there is nothing to clean up."""
    global _ends
    _ends = True


def is_command(argv: list[str], original: list[str]) -> bool:
    """Whether Python is starting a module of this package: argv is sys.argv, original sys.orig_argv."""
    if argv[:1] != ["-m"] or "-m" not in original:
        return False
    module = original[original.index("-m") + 1]
    return module.split(".")[0] == __name__.split(".")[0]


def _interrupted(number: int, frame) -> None:
    if _ends or _imports(frame):
        _leave("interrupted", INTERRUPTED)
    raise KeyboardInterrupt


def _imports(frame) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _unhandled(kind, error, traceback) -> None:
    """Outside of `errors.command`: during the imports at the top of a command."""
    if issubclass(kind, KeyboardInterrupt):
        _leave("interrupted", INTERRUPTED)
    from amplify_ds import errors

    text = errors.explain(error)
    if text is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        errors.report(f"error: {text}")


def _leave(message: str, code: int) -> None:
    try:
        os.write(2, f"{message}\n".encode())
    finally:
        os._exit(code)
