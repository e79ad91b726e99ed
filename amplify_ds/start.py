"""Set up the process of a command, before imports that take seconds.

Ctrl-C during an import ends the process at once, because an interrupted import fails in many confusing ways. At any
other time it raises KeyboardInterrupt, so that unfinished work can be cleaned up. A deleted working directory and a
very low memory limit are errors here, because libraries fail on them with unclear messages. Characters that the
terminal cannot show are escaped.

`python -m amplify_ds.NAME` calls `begin` when the package is imported; scripts and `amplify-ds` call it first.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

INTERRUPTED = 130  # the exit code that shells use for SIGINT
ADDRESS_SPACE = 2**30  # bytes; with less, libraries abort the process on import
_ends = False


def begin() -> None:
    """Set up this process as described above. Further calls have no effect."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise ignored, or handled by the command
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
            f"error: memory is limited to {limit / 2**20:.0f} MiB (ulimit -v), but the libraries need "
            f"{ADDRESS_SPACE / 2**20:.0f} MiB: raise the limit, and run the command again",
            1,
        )


def ending() -> None:
    """Note that the command is done: from now on, Ctrl-C ends the process at once."""
    global _ends
    _ends = True


def is_command(argv: list[str], original: list[str]) -> bool:
    """Return whether Python is running a module of this package. argv: sys.argv; original: sys.orig_argv."""
    if argv[:1] != ["-m"] or "-m" not in original:
        return False
    module = original[original.index("-m") + 1]
    return module.split(".")[0] == __name__.split(".")[0]


def _interrupted(number: int, frame) -> None:
    if _ends or _is_importing(frame):
        _leave("interrupted", INTERRUPTED)
    raise KeyboardInterrupt


def _is_importing(frame) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _unhandled(kind, error, traceback) -> None:
    """Handle an exception outside `errors.command`, that is, during the imports at the top of a command."""
    if issubclass(kind, KeyboardInterrupt):
        _leave("interrupted", INTERRUPTED)
    from amplify_ds import errors

    text = errors.explain(error)
    if text is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        errors.print_error(f"error: {text}")


def _leave(message: str, code: int) -> None:
    try:
        os.write(2, f"{message}\n".encode())
    finally:
        os._exit(code)
