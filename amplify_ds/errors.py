"""How bad input ends: one clear message on standard error, a non-zero exit code, no traceback.

`AmplifyError` says what is wrong, where, what was expected and how to mend it. Code that finds bad input raises it;
`command` is the only place that prints it. Anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import TextIO

# Failures of a path or a disk that the user gave us; any other OSError is a bug of ours.
OF_THE_USER = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR,
    errno.EISDIR, errno.ENAMETOOLONG,
)  # fmt: skip


prefix = ""  # of messages of this process: which rank it is, where there are several
console: TextIO | None = None  # where errors are shown besides, when standard error is a log


class AmplifyError(Exception):
    """Bad input, a bad setting, or a bad file. The text is written for the user."""


def command(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and end the process with its exit code (1 for an `AmplifyError` or a full disk)."""
    try:
        code = main() or 0
        sys.stdout.flush()
    except AmplifyError as error:
        code = _report(f"error: {error}")
    except KeyboardInterrupt:
        code = _report("interrupted", code=130)
    except BrokenPipeError:  # the reader of our output (head, less) has gone: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.errno not in OF_THE_USER:
            raise
        where = f"{error.filename}: " if error.filename else ""
        code = _report(f"error: {where}{error.strerror}. Make room or choose another place, and run the command again.")
    sys.exit(code)


def report(message: str) -> None:
    """Show an error. Nobody reading it any more is no reason to fail."""
    for stream in (sys.stderr, console):
        try:
            if stream is not None:
                print(prefix + message, file=stream, flush=True)
        except OSError:
            pass


def _report(message: str, code: int = 1) -> int:
    report(message)
    return code
